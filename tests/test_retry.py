"""Retry: the pure policy, and the transport that follows it, on a clock that jumps."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import islice
from typing import Any, get_args

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_lab.answers import MAX_BODY
from foundry_lab.clock import VirtualClock
from foundry_lab.errors import BreakerOpen, DeadlineExceeded, InvalidRequest, QueueFull
from foundry_lab.records import Attempt, GaveUp, Record, Wait
from foundry_lab.retry import (
    Jitter,
    RetryBudget,
    RetryPolicy,
    RetryTransport,
    backoff_delays,
    retry_after,
)

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
anyio = pytest.mark.anyio

# --- The policy: delays, Retry-After, budget -----------------------------------------------------


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - for waits, not for secrets


JITTERS = st.sampled_from(get_args(Jitter))
SECONDS = st.floats(0, 100)


def delays(n: int, base: float, cap: float, jitter: Jitter, seed: int) -> list[float]:
    return list(islice(backoff_delays(base, cap, jitter, seeded(seed)), n))


def test_without_jitter_the_waits_double_up_to_the_cap() -> None:
    """The defaults are 0.1 s and 5 s."""
    waits = list(islice(backoff_delays(jitter="none"), 8))
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert list(islice(backoff_delays(2.0, 1.0, "none"), 2)) == [1.0, 1.0]


@unhurried
@given(SECONDS, SECONDS, st.integers())
def test_each_jitter_keeps_its_bounds(base: float, cap: float, seed: int) -> None:
    """Full lies in [0, expo], equal in its upper half; no wait is longer than the cap."""
    expos = [min(cap, base * 2**n) for n in range(20)]
    assert delays(20, base, cap, "none", seed) == expos
    for wait, expo in zip(delays(20, base, cap, "full", seed), expos, strict=True):
        assert 0 <= wait <= expo
    for wait, expo in zip(delays(20, base, cap, "equal", seed), expos, strict=True):
        assert expo / 2 <= wait <= expo


@unhurried
@given(SECONDS, SECONDS, st.integers())
def test_decorrelated_waits_follow_their_recursion(base: float, cap: float, seed: int) -> None:
    """Each is drawn between the base and three times the one before, and capped."""
    chance, previous = seeded(seed), base
    for wait in delays(20, base, cap, "decorrelated", seed):
        drawn = chance.uniform(base, 3 * previous)
        assert wait == min(cap, drawn)
        assert min(base, cap) <= wait <= max(base, 3 * previous)
        previous = wait


@unhurried
@given(JITTERS, st.integers())
def test_the_same_seed_gives_the_same_waits(jitter: Jitter, seed: int) -> None:
    """With another seed they differ, but for those without jitter."""
    waits = delays(10, 0.1, 5.0, jitter, seed)
    assert waits == delays(10, 0.1, 5.0, jitter, seed)
    assert (waits == delays(10, 0.1, 5.0, jitter, seed + 1)) is (jitter == "none")


def test_full_jitter_is_spread_evenly() -> None:
    """Each quarter of the range gets about a quarter of a thousand first waits."""
    chance = seeded(1)
    firsts = [next(backoff_delays(1.0, 5.0, "full", chance)) for _ in range(1000)]
    quarters = [sum(start <= 4 * wait < start + 1 for wait in firsts) for start in range(4)]
    assert all(200 < count < 300 for count in quarters), quarters


def test_two_transports_do_not_wait_alike() -> None:
    """Unless it is seeded, chance is another one for each: that is what jitter is for."""
    first, second = (next(RetryPolicy().delays()) for _ in range(2))
    assert first != second


NOW = datetime(1994, 11, 6, 8, 49, 7, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120),
        ("0", 0),
        (" 7 ", 7),
        ("0000000000000007", 7),
        ("1" + "0" * 18, 1e18),
        ("9" * 5000, float("inf")),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 30),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 30),
        ("Sun Nov  6 08:49:37 1994", 30),
        ("Sun, 06 Nov 1994 09:49:37 +0100", 30),
        ("Sun, 06 Nov 1994 08:49:07 GMT", 0),
        ("Sun, 06 Nov 1983 08:49:37 GMT", 0),
        ("Sun, 06 Nov 1994 08:49:37 +99999999999", None),
        ("Sun, 06 Nov 1994 08:49:37 +9999999999999999", None),
        ("Sun, 06 Nov 1994 88:49:37 GMT", None),
        ("Sun, 06 Nov 99999 08:49:37 GMT", None),
        *((odd, None) for odd in ("-1", "+1", "1.5", "1e3", "٣", "²", "soon", "", "nan", "inf")),
        (None, None),
    ],
    ids=lambda value: str(value)[:40],
)
def test_retry_after_in_both_its_forms(text: str | None, seconds: float | None) -> None:
    """Seconds, and the three formats of a date that RFC 9110 section 5.6.7 has; else None."""
    assert retry_after(text, NOW) == seconds


@unhurried
@given(st.text() | st.text("0123456789 :,+-SunNovGMT"))
def test_retry_after_never_fails(text: str) -> None:
    """Whatever a server writes there is a number of seconds from zero up, or None."""
    seconds = retry_after(text, NOW)
    assert seconds is None or seconds >= 0


@unhurried
@given(st.integers(-800_000_000, 200_000_000_000))
def test_retry_after_reads_every_date(offset: int) -> None:
    """What a server formats from its clock, until the year 8000, is read back to the second."""
    moment = NOW + timedelta(seconds=offset)
    seconds = retry_after(format_datetime(moment, usegmt=True), NOW)
    assert seconds == max(0, offset)


@unhurried
@given(st.floats(0, 2), st.floats(0, 20), st.lists(st.booleans()))
def test_a_budget_is_never_overdrawn(ratio: float, reserve: float, calls: list[bool]) -> None:
    """Calls and retries in any order: the retries stay within reserve + ratio · calls."""
    budget, retries, deposits = RetryBudget(ratio, reserve), 0, 0
    for call in calls:
        if call:
            budget.deposit()
            deposits += 1
        else:
            retries += budget.withdraw()
        assert retries <= reserve + ratio * deposits + 1e-6
        assert 0 <= budget.tokens <= reserve


def test_a_budget_allows_what_it_promises() -> None:
    """First the reserve, then one retry for ten calls, and no more than the reserve is saved."""
    budget = RetryBudget(ratio=0.125, reserve=3)
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]
    for _ in range(8):
        assert not budget.withdraw()
        budget.deposit()
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    for _ in range(1000):
        budget.deposit()
    assert [budget.withdraw() for _ in range(4)] == [True, True, True, False]


@pytest.mark.parametrize(
    "mistake",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"base": -0.1},
        {"base": float("nan")},
        {"base": 6.0},
        {"cap": 0.0},
        {"cap": float("nan")},
        {"jitter": "some"},
        {"longest_wait": -1.0},
        {"longest_wait": float("nan")},
    ],
    ids=str,
)
def test_a_policy_that_nobody_can_follow_is_refused(mistake: dict[str, Any]) -> None:
    """It says so where it is made, not at the first failure."""
    with pytest.raises(InvalidRequest, match="No retrying can follow"):
        RetryPolicy(**mistake)


# --- The transport: what is repeated, and when it ends -------------------------------------------

Answer = int | Exception | Callable[[], httpx.Response]


class Bench:
    """A plain httpx client, a retry on a virtual clock, and a server that keeps to a script."""

    def __init__(
        self,
        *answers: Answer,
        policy: RetryPolicy | None = None,
        budget: RetryBudget | None = None,
    ) -> None:
        self.answers = list(answers)
        self.sent: list[bytes] = []
        self.story: list[Record] = []
        self.clock = VirtualClock()
        self.retry = RetryTransport(
            httpx.MockTransport(self._answer),
            policy or RetryPolicy(jitter="none"),
            budget=budget,
            clock=self.clock,
            rng=seeded(1),
            hook=self.story.append,
        )
        self.http = httpx.AsyncClient(transport=self.retry, base_url="http://model")

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request.content)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer) if isinstance(answer, int) else answer()

    @property
    def outcomes(self) -> list[str]:
        return [record.outcome for record in self.story if isinstance(record, Attempt)]

    @property
    def gave_up(self) -> str | None:
        return next((record.reason for record in self.story if isinstance(record, GaveUp)), None)


RETRIED = [
    httpx.ConnectError("refused"),
    httpx.ConnectTimeout("late"),
    httpx.ReadTimeout("late"),
    httpx.WriteTimeout("late"),
    httpx.PoolTimeout("late"),
    httpx.ReadError("reset"),
    httpx.WriteError("reset"),
    httpx.CloseError("reset"),
    httpx.RemoteProtocolError("cut off"),
    *(408, 429, 502, 503, 504),
]
NOT_RETRIED = [
    BreakerOpen("open", fix="wait", retry_in=1.0),
    QueueFull("full", fix="wait"),
    DeadlineExceeded("late", fix="wait"),
    httpx.LocalProtocolError("our mistake"),
    httpx.UnsupportedProtocol("ftp"),
    httpx.ProxyError("no"),
    httpx.TransportError("some other"),
    ValueError("a bug"),
    *(200, 201, 204, 304, 400, 401, 403, 404, 409, 422, 500, 501, 505),
]


def asking(status: int, retry_after: str) -> Answer:
    return lambda: httpx.Response(status, headers={"Retry-After": retry_after})


def name_of(answer: Answer) -> str:
    return str(answer) if isinstance(answer, int) else type(answer).__name__


@anyio
@pytest.mark.parametrize("failure", RETRIED, ids=name_of)
async def test_what_may_pass_is_retried(failure: Answer) -> None:
    """A broken connection, a timeout and five statuses are tried again until there is an answer."""
    bench = Bench(failure, failure, 200)
    answer = await bench.http.post("/", content=b"the whole body")
    assert (answer.status_code, answer.extensions["attempts"]) == (200, 3)
    assert bench.outcomes == [name_of(failure)] * 2 + ["200"]
    assert bench.sent == [b"the whole body"] * 3
    assert bench.clock.now() == pytest.approx(0.1 + 0.2)


@anyio
@pytest.mark.parametrize("failure", RETRIED, ids=name_of)
async def test_the_last_failure_is_what_the_caller_gets(failure: Answer) -> None:
    """After all attempts the error is raised, the status returned, with the number of attempts."""
    bench = Bench(failure, failure, failure, failure, 200)
    if isinstance(failure, httpx.RequestError):
        with pytest.raises(type(failure)) as caught:
            await bench.http.get("/")
        attempts = caught.value.request.extensions["attempts"]
    else:
        answer = await bench.http.get("/")
        assert answer.status_code == failure
        attempts = answer.extensions["attempts"]
    assert attempts == len(bench.sent) == RetryPolicy().attempts == 4
    assert bench.gave_up == "attempts"


@anyio
@pytest.mark.parametrize("answer", NOT_RETRIED, ids=name_of)
async def test_what_will_not_pass_is_not_retried(answer: Answer) -> None:
    """An open breaker, a full queue, the caller's mistakes, 500 and each answer end it at once."""
    bench = Bench(answer)
    if isinstance(answer, Exception):
        with pytest.raises(type(answer)):
            await bench.http.get("/")
    else:
        assert (await bench.http.get("/")).extensions["attempts"] == 1
    assert bench.outcomes == [name_of(answer)]
    assert (bench.gave_up, bench.clock.now()) == (None, 0)


@anyio
async def test_the_records_tell_the_story_in_order() -> None:
    """Each attempt with its times, each wait with its reason, all with the id of the call."""
    answers = httpx.ConnectError("refused"), 503, asking(429, "2"), 503
    bench = Bench(*answers, policy=RetryPolicy(base=0.125, jitter="none"))
    await bench.http.get("/", extensions={"call": "c1"})
    assert bench.story == [
        Attempt(1, 0, 0, "ConnectError", "c1"),
        Wait(1, 0.125, "backoff", "c1"),
        Attempt(2, 0.125, 0.125, "503", "c1"),
        Wait(2, 0.25, "backoff", "c1"),
        Attempt(3, 0.375, 0.375, "429", "c1"),
        Wait(3, 2.5, "Retry-After", "c1"),
        Attempt(4, 2.875, 2.875, "503", "c1"),
        GaveUp(4, "attempts", "c1"),
    ]


@anyio
@pytest.mark.parametrize("jitter", get_args(Jitter))
async def test_retry_after_is_a_floor(jitter: Jitter) -> None:
    """The backoff and its jitter come on top: those who were told the same do not come at once."""
    policy = RetryPolicy(jitter=jitter, base=1.0)
    waits = []
    for value in ("7", "no time"):
        bench = Bench(asking(503, value), 200, policy=policy)
        await bench.http.get("/")
        waits.append(bench.clock.now())
    assert waits[0] == pytest.approx(7 + waits[1])
    assert waits[1] > 0


@anyio
async def test_retry_after_as_a_date_is_waited_for() -> None:
    """The header's date is compared with the wall clock."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    bench = Bench(asking(503, soon), 200)
    await bench.http.get("/")
    assert 20 < bench.clock.now() <= 30.1


@anyio
async def test_a_retry_after_of_just_the_longest_wait_is_waited_for() -> None:
    """The limit is for what the server asks, not for the backoff that comes on top, or alone."""
    bench = Bench(asking(429, "60"), 503, 200, policy=RetryPolicy(base=70, cap=70, jitter="none"))
    assert (await bench.http.get("/")).status_code == 200
    assert bench.clock.now() == 60 + 70 + 70


@anyio
@pytest.mark.parametrize("value", ["61", "9" * 400, "Sun, 06 Nov 2994 08:49:37 GMT"])
async def test_a_retry_after_that_is_too_long_ends_it(value: str) -> None:
    """Nobody waits longer than the policy says; the status is handed over at once."""
    bench = Bench(asking(429, value), 200)
    assert (await bench.http.get("/")).status_code == 429
    assert (bench.outcomes, bench.gave_up, bench.clock.now()) == (["429"], "patience", 0)


@anyio
@pytest.mark.parametrize(
    ("deadline", "attempts"), [(0.05, 1), (0.1, 1), (0.15, 2), (0.25, 2), (0.35, 3)]
)
async def test_a_wait_beyond_the_deadline_is_not_begun(deadline: float, attempts: int) -> None:
    """What can't fit ends it with the last failure, before the time is over."""
    bench = Bench(503, 503, 503, 503)
    answer = await bench.http.get("/", extensions={"deadline": deadline})
    assert answer.status_code == 503
    assert answer.extensions["attempts"] == attempts
    assert bench.gave_up == "deadline"
    assert bench.clock.now() < deadline


@anyio
async def test_a_retry_after_beyond_the_deadline_ends_it() -> None:
    """There is time for a backoff, but not for what the server asks."""
    bench = Bench(asking(503, "2"), 200)
    assert (await bench.http.get("/", extensions={"deadline": 2.0})).status_code == 503
    assert (bench.gave_up, bench.clock.now()) == ("deadline", 0)


@anyio
async def test_calls_share_one_budget() -> None:
    """When it is used up a failure is final; later calls fill it again."""
    budget = RetryBudget(ratio=0.5, reserve=2)
    bench = Bench(503, 503, 503, 503, 503, 200, budget=budget)
    first = await bench.http.get("/")
    assert (first.extensions["attempts"], bench.gave_up) == (3, "budget")
    second = await bench.http.get("/")
    assert second.extensions["attempts"] == 1
    third = await bench.http.get("/")  # with the second one it has paid for a retry
    assert (third.status_code, third.extensions["attempts"]) == (200, 2)


@anyio
async def test_one_attempt_means_no_retry() -> None:
    """A policy of one attempt hands the first failure over and waits for nothing."""
    bench = Bench(503, policy=RetryPolicy(attempts=1))
    assert (await bench.http.get("/")).status_code == 503
    assert (bench.gave_up, bench.clock.now()) == ("attempts", 0)


class Unread(httpx.AsyncBaseTransport):
    """Takes part of a request's body, then breaks the connection, as a real server may."""

    def __init__(self) -> None:
        self.calls = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.calls += 1
        assert isinstance(request.stream, httpx.AsyncByteStream)
        await anext(aiter(request.stream))
        raise httpx.WriteError("reset")


@anyio
async def test_a_body_from_a_generator_is_not_repeated() -> None:
    """What it gave is gone: half a request must not be sent as if it were whole, and it says so."""

    async def body() -> AsyncIterator[bytes]:
        yield b"first half"
        yield b"second half"

    server, story = Unread(), list[Record]()
    async with httpx.AsyncClient(transport=RetryTransport(server, hook=story.append)) as http:
        with pytest.raises(httpx.WriteError):
            await http.post("http://model", content=body())
        assert server.calls == 1
        assert story[-1] == GaveUp(1, "body")


class Patient(VirtualClock):
    """A clock that is waited for until it is told to go on."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.asked.set()
        await asyncio.Future()


@anyio
async def test_a_wait_can_be_cancelled() -> None:
    """Who leaves in the middle of a wait is let go at once, and nothing is sent any more."""
    clock, sent = Patient(), list[httpx.Request]()

    def failing(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(503)

    transport = RetryTransport(httpx.MockTransport(failing), clock=clock)
    async with httpx.AsyncClient(transport=transport) as http:
        call = asyncio.create_task(http.get("http://model"))
        await clock.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    assert len(sent) == 1


# --- The commit point of a stream ----------------------------------------------------------------

ALIVE, DONE = b": keep-alive\n\n", b"data: [DONE]\n\n"
ERROR = b'data: {"error": {"message": "out of memory"}}\n\n'


def delta(content: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': content}}]})}\n\n".encode()


ROLE, ONE, TWO = delta(""), delta("one"), delta(" two")
WHOLE = ROLE + ONE + TWO + DONE
BROKEN = httpx.ReadError("reset")


class Body(httpx.AsyncByteStream):
    """A body that gives these packets, raises an error among them, and is silent at None."""

    def __init__(self, *packets: bytes | Exception | None) -> None:
        self.packets = packets
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for packet in self.packets:
            if packet is None:
                await asyncio.Future()
            elif isinstance(packet, Exception):
                raise packet
            else:
                yield packet

    async def aclose(self) -> None:
        self.closed = True


def streaming(*packets: bytes | Exception | None, status: int = 200) -> Answer:
    return lambda: streamed(Body(*packets), status)


def streamed(body: Body, status: int = 200) -> httpx.Response:
    return httpx.Response(status, headers={"Content-Type": "text/event-stream"}, stream=body)


GOOD = streaming(ROLE, ONE, TWO, DONE)


async def read(bench: Bench, **extensions: Any) -> tuple[bytes, Exception | None]:
    """Read a stream to its end or its error, as a plain httpx client does."""
    text = bytearray()
    try:
        async with bench.http.stream("POST", "/", extensions=extensions) as answer:
            async for packet in answer.aiter_bytes():
                text += packet
    except httpx.TransportError as error:
        return bytes(text), error
    return bytes(text), None


@anyio
@pytest.mark.parametrize(
    "packets",
    [
        (BROKEN,),
        (ROLE, BROKEN),
        (ALIVE, ALIVE, ROLE, ALIVE, BROKEN),
        (ROLE, ONE[:-1], BROKEN),
        (ROLE,),
        (ALIVE,),
        (),
        (ROLE, httpx.ReadTimeout("no first token in time")),
    ],
    ids=[
        "at once",
        "after the role",
        "after comments",
        "within the first content",
        "polite end after the role",
        "polite end after a comment",
        "empty body",
        "first token late",
    ],
)
async def test_before_the_first_content_a_retry_is_invisible(packets: tuple[Any, ...]) -> None:
    """The reader gets one whole stream and nothing of the one that broke."""
    bench = Bench(streaming(*packets), GOOD)
    assert await read(bench) == (WHOLE, None)
    assert len(bench.sent) == 2


@anyio
async def test_after_the_first_content_nothing_is_repeated() -> None:
    """The error reaches the reader behind all the text that came before it."""
    bench = Bench(streaming(ROLE, ONE, TWO, BROKEN), GOOD)
    assert await read(bench) == (ROLE + ONE + TWO, BROKEN)
    assert (len(bench.sent), bench.outcomes) == (1, ["200"])


@anyio
async def test_the_first_content_is_handed_over_before_the_rest_comes() -> None:
    """A stream that goes on for ever is a stream from its first content on."""
    bench = Bench(streaming(ROLE, ONE, None))
    async with asyncio.timeout(5), bench.http.stream("POST", "/") as answer:
        packets = answer.aiter_bytes()
        assert [await anext(packets), await anext(packets)] == [ROLE, ONE]


@anyio
@pytest.mark.parametrize(
    "packets",
    [(ROLE, ONE, BROKEN), (ROLE + ONE + TWO,), (ROLE, ONE, httpx.ReadTimeout("stalled"))],
    ids=["broken", "polite end", "stalled"],
)
async def test_who_wants_the_whole_answer_gets_a_whole_one(packets: tuple[Any, ...]) -> None:
    """With commit at the end a stream that breaks off anywhere is asked for again."""
    bench = Bench(streaming(*packets), GOOD)
    assert await read(bench, commit="end") == (WHOLE, None)
    assert len(bench.sent) == 2


@anyio
@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ([streaming(ROLE, ONE, TWO, BROKEN)], "one two"),
        ([streaming(ROLE, ONE, BROKEN), streaming(ROLE, ONE, TWO)], "one two"),
        ([streaming(ROLE, ONE, TWO), streaming(ROLE, ONE, b"data: {", BROKEN)], "one"),
        ([streaming(ROLE, ONE, BROKEN), streaming(ROLE, BROKEN), BROKEN], "one"),
        ([streaming(ROLE, BROKEN), BROKEN], None),
    ],
    ids=["one attempt", "a polite end", "the last one counts", "if it has any", "none has any"],
)
async def test_text_that_was_not_handed_over_is_not_lost(
    answers: list[Answer], text: str | None
) -> None:
    """What a broken attempt had read of an answer is in the request of the error."""
    bench = Bench(*answers, policy=RetryPolicy(attempts=len(answers)))
    received, error = await read(bench, commit="end")
    assert received == b""
    assert isinstance(error, httpx.RequestError)
    assert error.request.extensions.get("content") == text


@anyio
@pytest.mark.parametrize("commit", ["", "end"])
@pytest.mark.parametrize(
    "packets",
    [(WHOLE,), (ROLE, ONE + TWO + DONE), (WHOLE + b"\n", ALIVE)],
    ids=["one packet", "two packets", "and more"],
)
async def test_a_whole_answer_in_few_packets_is_whole(
    packets: tuple[bytes, ...], commit: str
) -> None:
    """Content and [DONE] in one packet are as good as in two: nothing is asked for again."""
    bench = Bench(streaming(*packets))
    text, error = await read(bench, commit=commit)
    assert text.startswith(WHOLE)
    assert error is None


@anyio
@pytest.mark.parametrize("commit", ["", "end"])
@pytest.mark.parametrize(
    "packets",
    [(ROLE, ERROR), (ROLE, ONE, ERROR), (ROLE + ONE + ERROR,), (b"data: {\n\n",), (ROLE, DONE)],
    ids=["error", "after content", "in one packet", "broken JSON", "no content"],
)
async def test_an_answer_that_says_what_is_wrong_is_handed_over(
    packets: tuple[bytes, ...], commit: str
) -> None:
    """An error event, a stranger's event and an empty answer would be the same again."""
    bench = Bench(streaming(*packets))
    assert await read(bench, commit=commit) == (b"".join(packets), None)


@anyio
@pytest.mark.parametrize("rest", [BROKEN, None], ids=["broken", "silent"])
async def test_after_done_an_answer_is_whole_whatever_happens(rest: Exception | None) -> None:
    """A connection that breaks or falls silent then costs neither a retry nor much time."""
    body = Body(ROLE, ONE, TWO, DONE, rest)
    bench = Bench(lambda: streamed(body))
    async with asyncio.timeout(2):
        assert await read(bench, commit="end") == (WHOLE, None)
    assert body.closed


@anyio
@pytest.mark.parametrize(
    "kind",
    [
        "text/event-stream",
        "Text/Event-Stream; charset=utf-8",
        "text/event-stream, text/event-stream",
    ],
)
async def test_a_stream_is_known_by_its_content_type(kind: str) -> None:
    """In any case, with a charset, or sent twice, as Foundry Local does."""
    head = {"Content-Type": kind}
    broken, good = (httpx.Response(200, headers=head, stream=Body(*b)) for b in ((ROLE,), (WHOLE,)))
    bench = Bench(lambda: broken, lambda: good)
    assert await read(bench) == (WHOLE, None)


@anyio
@pytest.mark.parametrize("status", [400, 500])
async def test_a_refusal_is_not_taken_for_a_stream(status: int) -> None:
    """An error page under the content type of a stream is an answer: it needs no [DONE]."""
    bench = Bench(streaming(b"no such model", status=status))
    assert (await bench.http.get("/")).text == "no such model"


@anyio
async def test_an_answer_without_a_stream_is_read_whole_first() -> None:
    """JSON that breaks off in the middle is asked for again, and its caller never sees half."""
    bench = Bench(
        lambda: httpx.Response(200, stream=Body(b'{"half":', BROKEN)),
        lambda: httpx.Response(200, stream=Body(b'{"whole":', b" true}")),
    )
    assert (await bench.http.get("/")).json() == {"whole": True}


@anyio
async def test_an_answer_of_any_size_is_handed_over() -> None:
    """Up to a bound it can be asked for again; a longer one arrives, too, and nothing is lost."""
    packet = b"x" * 1_000_000
    number = 3 * MAX_BODY // len(packet)
    bench = Bench(lambda: httpx.Response(200, stream=Body(*[packet] * number, BROKEN)), 200)
    text, error = await read(bench)
    assert (len(text), error) == (number * len(packet), BROKEN)


@anyio
async def test_what_is_not_read_to_its_end_is_closed_before_the_next_attempt() -> None:
    """A failure with an endless page, and one that breaks, give their connections back."""
    endless, broken = Body(*[b"x" * 1_000_000] * 100), Body(ROLE, BROKEN)
    closed = list[bool]()

    def second() -> httpx.Response:
        closed.append(endless.closed)
        return streamed(broken)

    def third() -> httpx.Response:
        closed.append(broken.closed)
        return httpx.Response(200)

    bench = Bench(lambda: httpx.Response(503, stream=endless), second, third)
    assert (await bench.http.get("/")).status_code == 200
    assert closed == [True, True]


@anyio
async def test_an_attempt_that_is_cancelled_is_closed() -> None:
    """Who leaves before the first content leaves no connection behind."""
    body, story = Body(ROLE, None), list[Record]()
    transport = httpx.MockTransport(lambda _: streamed(body))
    async with httpx.AsyncClient(transport=RetryTransport(transport, hook=story.append)) as http:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await http.get("http://model")
        assert body.closed
    assert [type(record) for record in story] == [Attempt]


# --- On real sockets -----------------------------------------------------------------------------


def http_answer(status: int, body: bytes, promised: int | None = None) -> bytes:
    """Make an answer that says it has `promised` bytes; more than it has is an answer cut off."""
    kind = "text/event-stream" if b"data:" in body else "text/plain"
    length = len(body) if promised is None else promised
    return b"HTTP/1.1 %d X\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (
        status,
        kind.encode(),
        length,
        body,
    )


@asynccontextmanager
async def listening(*connections: list[bytes]) -> AsyncIterator[tuple[httpx.AsyncClient, set[int]]]:
    """Give each connection its answers, then close it; have a client that retries, and tell which
    connections were opened."""
    opened = set[int]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers = connections[len(opened)]
        opened.add(len(opened))
        for answer in answers:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            writer.write(answer)
        writer.close()

    transport = RetryTransport(httpx.AsyncHTTPTransport(), clock=VirtualClock())
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(transport=transport, base_url=url) as http:
            yield http, opened


@anyio
async def test_retries_use_the_same_connection() -> None:
    """Statuses that are retried are read to their end: nothing leaks, nothing is opened anew."""
    failures = http_answer(503, b"busy " * 20_000), http_answer(429, b""), http_answer(502, b"x")
    async with listening([*failures, http_answer(200, b"at last")]) as (http, opened):
        answer = await http.post("/", content=b"x" * 100_000)
    assert (answer.text, answer.extensions["attempts"]) == ("at last", 4)
    assert len(opened) == 1


@anyio
async def test_a_broken_connection_is_replaced() -> None:
    """Closed before the answer, in its head, in its body: each attempt gets a new connection."""
    half_a_body = http_answer(200, ROLE, promised=len(WHOLE))
    good = http_answer(200, WHOLE)
    connections = [b""], [good[:10]], [half_a_body], [good]
    async with listening(*connections) as (http, opened):
        answer = await http.post("/", content=b"x" * 100_000)
    assert (answer.content, answer.extensions["attempts"]) == (WHOLE, 4)
    assert len(opened) == 4
