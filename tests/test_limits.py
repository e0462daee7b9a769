"""Limits, each alone under a plain httpx client: calls at once, one deadline, time for tokens."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_server import Line, chunk, head, serving

from foundry_lab import Service
from foundry_lab.errors import DeadlineExceeded, InvalidRequest, QueueFull
from foundry_lab.limits import ConcurrencyLimit, DeadlineTransport, TokenTimeouts
from foundry_lab.retry import RetryBudget, RetryPolicy, RetryTransport
from foundry_lab.wire import http_transport

in_a_loop = pytest.mark.anyio

GRACE = 0.5
"""Seconds that a busy machine may take to notice that a time is over."""


def over(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """Make a plain client; the layers bound its calls, not httpx's own timeouts."""
    return httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(None))


@contextlib.contextmanager
def ends_after(seconds: float) -> Iterator[None]:
    """Check that the block takes that long, and not much longer."""
    began = time.monotonic()
    yield
    assert seconds - 0.02 < time.monotonic() - began < seconds + GRACE


async def silent(_: Line) -> None:
    """Say nothing."""
    await asyncio.Event().wait()


# ---- ConcurrencyLimit


class Door:
    """A server that counts who is inside, and lets them out when told."""

    def __init__(self) -> None:
        self.inside = self.most = 0
        self.came: list[bytes] = []
        self.opened = asyncio.Event()

    async def answer(self, line: Line) -> None:
        """Send the head and half of the body; the rest when the door opens."""
        self.came.append(line.request.split()[1])
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await line.send(head(length=4) + b"ab")
            await self.opened.wait()
            self.inside -= 1  # before the client can know
            await line.send(b"cd")
        except BaseException:
            self.inside -= 1
            raise


@contextlib.asynccontextmanager
async def limited(limit: int, queue: int = 100) -> AsyncIterator[tuple[Any, ...]]:
    """Put a limit between a client and a door."""
    door, layer = Door(), ConcurrencyLimit(httpx.AsyncHTTPTransport(), limit, queue)
    async with serving(door.answer) as url, over(layer) as http:
        yield door, layer, http, url


async def until(happened: Any) -> None:
    """Let others work until something is so."""
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - what happens is a server's business
            await asyncio.sleep(0.001)


@in_a_loop
async def test_no_more_than_the_limit_are_inside() -> None:
    """Of 20 calls at once three reach the server; all are answered in the end."""
    async with limited(3) as (door, layer, http, url):
        calls = [asyncio.create_task(http.get(url)) for _ in range(20)]
        await until(lambda: door.inside == 3)
        assert (layer.running, layer.waiting) == (3, 17)
        door.opened.set()
        assert [(await call).text for call in calls] == ["abcd"] * 20
        assert door.most == 3
        assert (layer.running, layer.waiting) == (0, 0)


@in_a_loop
async def test_a_slot_is_taken_until_the_end_of_the_answer() -> None:
    """The headers are there, but the body is not: the next one waits."""
    async with limited(1) as (door, layer, http, url), http.stream("GET", url) as response:
        packets = response.aiter_raw()
        assert await anext(packets) == b"ab"
        second = asyncio.create_task(http.get(url))
        await until(lambda: layer.waiting == 1)
        assert (layer.running, door.came) == (1, [b"/"])
        door.opened.set()
        assert [packet async for packet in packets] == [b"cd"]
        assert (await second).text == "abcd"


@in_a_loop
async def test_the_queue_is_first_come_first_served() -> None:
    """Who waits longest is next."""
    async with limited(1) as (door, layer, http, url):
        calls = []
        for number in range(8):
            calls.append(asyncio.create_task(http.get(f"{url}/{number}")))
            await until(lambda number=number: layer.running + layer.waiting == number + 1)
        door.opened.set()
        await asyncio.gather(*calls)
        assert door.came == [b"/%d" % number for number in range(8)]


@in_a_loop
async def test_a_request_says_whether_it_waits() -> None:
    """In the queue it is not sent yet; a layer outside can see that."""
    async with limited(1) as (door, layer, http, url):
        first, second = (http.build_request("GET", url) for _ in range(2))
        calls = [asyncio.create_task(http.send(request)) for request in (first, second)]
        await until(lambda: door.inside == 1 and layer.waiting == 1)
        assert [request.extensions["queued"] for request in (first, second)] == [False, True]
        door.opened.set()
        await asyncio.gather(*calls)
        assert not second.extensions["queued"]


@in_a_loop
async def test_a_full_queue_refuses_at_once() -> None:
    """One runs, two wait, the fourth is told so; when there is room again, the next may wait."""
    async with limited(1, queue=2) as (door, layer, http, url):
        calls = [asyncio.create_task(http.get(url)) for _ in range(3)]
        await until(lambda: layer.waiting == 2)
        with pytest.raises(QueueFull, match="1 calls run and 2 wait"):
            await http.get(url)
        door.opened.set()
        await asyncio.gather(*calls)
        assert (await http.get(url)).text == "abcd"


@in_a_loop
async def test_without_a_queue_nobody_waits() -> None:
    """A queue of 0 still has its slots."""
    async with limited(2, queue=0) as (door, layer, http, url):
        calls = [asyncio.create_task(http.get(url)) for _ in range(2)]
        await until(lambda: layer.running == 2)
        with pytest.raises(QueueFull):
            await http.get(url)
        door.opened.set()
        await asyncio.gather(*calls)


@pytest.mark.parametrize(("limit", "queue"), [(0, 1), (-1, 1), (1, -1)])
def test_a_limit_that_lets_nothing_through_is_refused(limit: int, queue: int) -> None:
    """That would wait for ever."""
    with pytest.raises(InvalidRequest, match="nothing through"):
        ConcurrencyLimit(httpx.AsyncHTTPTransport(), limit, queue)


@in_a_loop
async def test_a_slot_comes_back_however_a_call_ends() -> None:
    """Closed early, cancelled inside or in the queue, no connection: the next call finds it."""
    async with limited(1) as (door, layer, http, url):
        async with http.stream("GET", url):
            pass
        assert layer.running == 0
        inside, queued = (asyncio.create_task(http.get(url)) for _ in range(2))
        await until(lambda: layer.running and layer.waiting)
        for call in queued, inside:
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:9")
        assert (layer.running, layer.waiting) == (0, 0)
        door.opened.set()
        assert (await http.get(url)).text == "abcd"


@in_a_loop
async def test_a_slot_comes_back_when_the_body_breaks() -> None:
    """An answer that ends before its length gives its slot back."""

    async def cut(line: Line) -> None:
        await line.send(head(length=10) + b"half")

    layer = ConcurrencyLimit(httpx.AsyncHTTPTransport(), 1)
    async with serving(cut) as url, over(layer) as http:
        for _ in range(2):
            with pytest.raises(httpx.RemoteProtocolError):
                await http.get(url)
        assert layer.running == 0


class Steps(httpx.AsyncBaseTransport):
    """Takes as many rounds of the event loop as a request's path says, and counts who is inside."""

    def __init__(self) -> None:
        self.inside = self.most = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Take a while; fail if the path says so."""
        rounds, fails = request.url.path.strip("/").split("/")
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            for _ in range(int(rounds)):
                await asyncio.sleep(0)
            if fails == "True":
                raise httpx.ReadError("as told")
        finally:
            self.inside -= 1
        return httpx.Response(200)


@given(
    limit=st.integers(1, 3),
    queue=st.integers(0, 5),
    calls=st.lists(
        st.tuples(st.integers(0, 4), st.booleans(), st.none() | st.integers(0, 12)), max_size=15
    ),
)
@settings(max_examples=100, deadline=None)
@in_a_loop
async def test_no_slot_is_lost_to_cancellation(
    limit: int, queue: int, calls: list[tuple[int, bool, int | None]]
) -> None:
    """Calls that last, fail or are cancelled at any moment leave all slots and an empty queue."""
    steps = Steps()
    layer = ConcurrencyLimit(steps, limit, queue)
    async with over(layer) as http:

        async def call(rounds: int, fails: bool, patience: int | None) -> None:
            task = asyncio.create_task(http.get(f"http://steps/{rounds}/{fails}"))
            for _ in range(patience if patience is not None else 1000):
                if task.done():
                    break
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.ReadError, QueueFull):
                await task

        await asyncio.gather(*(call(*one) for one in calls))
        assert (layer.running, layer.waiting, steps.inside) == (0, 0, 0)
        assert steps.most <= limit
        last = [http.get("http://steps/3/False") for _ in range(limit)]
        assert all(answer.is_success for answer in await asyncio.gather(*last))


# ---- DeadlineTransport


@in_a_loop
async def test_the_deadline_bounds_the_wait_for_the_headers() -> None:
    """A server that says nothing is left when the time is over, and the message says so."""
    async with (
        serving(silent) as url,
        over(DeadlineTransport(httpx.AsyncHTTPTransport(), 0.2)) as http,
    ):
        with ends_after(0.2), pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
            await http.get(url)


@in_a_loop
async def test_the_deadline_bounds_a_body_that_trickles() -> None:
    """httpx's own timeout is for each packet, so 0.15 s let this answer go on for ever."""
    left = asyncio.Event()

    async def trickle(line: Line) -> None:
        await line.send(head())
        try:
            while True:
                await line.send(b".")
                await asyncio.sleep(0.01)
        finally:
            left.set()

    deadline = DeadlineTransport(httpx.AsyncHTTPTransport(), 0.3)
    async with serving(trickle) as url, httpx.AsyncClient(transport=deadline, timeout=0.15) as http:
        with ends_after(0.3), pytest.raises(DeadlineExceeded):
            await http.get(url)
        await asyncio.wait_for(left.wait(), GRACE)


@in_a_loop
async def test_the_deadline_bounds_the_caller_too() -> None:
    """A stream that its reader takes slowly has no more time than any other."""
    async with (
        limited(1) as (_, layer, _, url),
        over(DeadlineTransport(layer, 0.2)) as http,
        http.stream("GET", url) as response,
    ):
        packets = response.aiter_raw()
        await anext(packets)
        await asyncio.sleep(0.25)
        with pytest.raises(DeadlineExceeded):
            await anext(packets)


@in_a_loop
async def test_the_deadline_bounds_all_attempts_and_waits() -> None:
    """Five silent attempts of 0.15 s with waits in between would take a second; 0.4 s is given."""
    policy = RetryPolicy(attempts=5, base=0.1, cap=0.1, jitter="none")
    retried = RetryTransport(httpx.AsyncHTTPTransport(), policy, budget=RetryBudget(reserve=100))
    async with (
        serving(silent) as url,
        httpx.AsyncClient(transport=DeadlineTransport(retried, 0.4), timeout=0.15) as http,
    ):
        with ends_after(0.4), pytest.raises(DeadlineExceeded):
            await http.get(url)


@in_a_loop
async def test_a_request_may_bring_a_deadline_of_its_own() -> None:
    """It holds instead of the transport's, be it a time to take or a moment."""
    async with (
        serving(silent) as url,
        over(DeadlineTransport(httpx.AsyncHTTPTransport(), 60)) as http,
    ):
        with ends_after(0.1), pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
            await http.get(url, extensions={"seconds": 0.1})
        limits = {"seconds": 5, "deadline": time.monotonic() + 0.1}  # 4.9 s of it are over
        with ends_after(0.1), pytest.raises(DeadlineExceeded, match="within 5 s"):
            await http.get(url, extensions=limits)


@in_a_loop
async def test_a_timeout_of_the_caller_stays_the_callers() -> None:
    """Whoever has less patience gets the error that belongs to it, not a DeadlineExceeded."""
    async with (
        serving(silent) as url,
        over(DeadlineTransport(httpx.AsyncHTTPTransport(), 60)) as http,
    ):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await http.get(url)
        with pytest.raises(httpx.ReadTimeout):
            await http.get(url, timeout=0.1)


@in_a_loop
async def test_what_is_in_time_is_left_alone() -> None:
    """A deadline that is not missed changes nothing of an answer, whatever its status."""
    async with limited(1) as (door, layer, _, url), over(DeadlineTransport(layer, 60)) as http:
        door.opened.set()
        assert (await http.get(url)).text == "abcd"
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:9")


# ---- TokenTimeouts


EVENTS = "text/event-stream; charset=utf-8"
ROLE = chunk("")
DONE = b"data: [DONE]\n\n"


async def collect(packets: AsyncIterator[bytes]) -> bytes:
    """Read to the end."""
    return b"".join([packet async for packet in packets])


class Speech:
    """A server that sends these packets, each after a pause, and then is silent."""

    def __init__(self, *packets: tuple[float, bytes], kind: str = EVENTS) -> None:
        self.packets = packets
        self.kind = kind

    async def answer(self, line: Line) -> None:
        """Speak; end with [DONE], and without it stay silent."""
        await line.send(head(kind=self.kind))
        for pause, packet in self.packets:
            await asyncio.sleep(pause)
            await line.send(packet)
        if not self.packets or self.packets[-1][1] != DONE:
            await silent(line)


def timed(**seconds: float) -> httpx.AsyncClient:
    """Make a client with times for tokens and nothing else."""
    return over(TokenTimeouts(httpx.AsyncHTTPTransport(), **seconds))


@in_a_loop
@pytest.mark.parametrize(
    "speech",
    [
        Speech(),
        Speech((0, ROLE)),
        Speech(*[(0.03, b": keep-alive\n\n")] * 100),
        Speech(*[(0.03, ROLE[i : i + 1]) for i in range(len(ROLE))] * 3),
    ],
    ids=["nothing", "a role", "comments", "bytes"],
)
async def test_the_first_token_must_come_in_time(speech: Speech) -> None:
    """Neither headers nor a chunk without text, comments or bytes are a token."""
    async with serving(speech.answer) as url, timed(first_token=0.25) as http:
        with ends_after(0.25), pytest.raises(httpx.ReadTimeout, match="no first token"):
            await http.get(url)


@in_a_loop
async def test_no_headers_are_no_first_token() -> None:
    """The time begins with the request."""
    async with serving(silent) as url, timed(first_token=0.2) as http:
        with ends_after(0.2), pytest.raises(httpx.ReadTimeout, match="no first token"):
            await http.get(url)


@in_a_loop
@pytest.mark.parametrize(
    "rest",
    [
        [],
        [(0.03, b": keep-alive\n\n")] * 100,
        [(0.03, chunk("b")[i : i + 1]) for i in range(len(chunk("b")))],
        [(0.03, ROLE)] * 100,
    ],
    ids=["nothing", "comments", "bytes", "chunks without text"],
)
async def test_the_next_token_must_come_in_time(rest: list[tuple[float, bytes]]) -> None:
    """After the first, a silence that is too long ends the stream; what came before is there."""
    speech = Speech((0, chunk("a")), *rest)
    async with (
        serving(speech.answer) as url,
        timed(stall=0.25) as http,
        http.stream("GET", url) as response,
    ):
        packets = response.aiter_raw()
        assert await anext(packets) == chunk("a")
        with ends_after(0.25), pytest.raises(httpx.ReadTimeout, match="stalled"):
            await collect(packets)


@in_a_loop
@pytest.mark.parametrize("size", [1, 7, 1000], ids="packets of {} bytes".format)
async def test_tokens_that_keep_coming_may_take_their_time(size: int) -> None:
    """The answer takes longer than both times, no token does, however the packets are cut."""
    said: list[tuple[float, bytes]] = []
    for event in [chunk(str(number)) for number in range(8)]:
        pieces = [event[start : start + size] for start in range(0, len(event), size)]
        said += [(0.05, pieces[0]), *((0, piece) for piece in pieces[1:])]
    speech = Speech(*said, (0, DONE))
    async with serving(speech.answer) as url, timed(first_token=0.3, stall=0.3) as http:
        assert (await http.get(url)).content.endswith(DONE)


@in_a_loop
async def test_a_slow_reader_is_no_stall() -> None:
    """Time in which nobody waits for a token does not count, whatever came last."""
    asked = asyncio.Event()

    async def when_asked(line: Line) -> None:
        await line.send(head(kind=EVENTS) + chunk("a"))
        for packet in ROLE, ROLE, chunk("b"), DONE:
            await asked.wait()
            asked.clear()
            await line.send(packet)

    async with (
        serving(when_asked) as url,
        timed(stall=0.25) as http,
        http.stream("GET", url) as response,
    ):
        read = b""
        async for packet in response.aiter_raw():
            read += packet
            await asyncio.sleep(0.3)
            asked.set()
    assert read.endswith(DONE)


@in_a_loop
async def test_an_answer_that_is_no_stream_needs_its_headers_in_time() -> None:
    """For it a first token is the head; the body may take longer."""
    speech = Speech((0.25, b"{"), (0.25, DONE), kind="application/json")
    async with serving(speech.answer) as url, timed(first_token=0.2, stall=0.2) as http:
        assert (await http.get(url)).content == b"{" + DONE


@in_a_loop
async def test_a_request_may_bring_times_of_its_own() -> None:
    """They hold instead of the transport's, and None is no bound at all."""
    speech = Speech((0.2, chunk("a")), (0.2, DONE))
    async with serving(speech.answer) as url, timed(first_token=0.05, stall=60) as http:
        patient = {"first_token": None, "stall": None}
        assert (await http.get(url, extensions=patient)).is_success
        with pytest.raises(httpx.ReadTimeout, match="stalled"):
            await http.get(url, extensions={"first_token": 10, "stall": 0.05})
        with pytest.raises(httpx.ReadTimeout, match="no first token"):
            await http.get(url)


@in_a_loop
async def test_without_times_nothing_is_bounded() -> None:
    """That is the default, and the body comes through byte by byte."""
    speech = Speech((0, ROLE), (0.1, chunk("a")), (0.1, DONE))
    async with serving(speech.answer) as url, timed() as http:
        assert (await http.get(url)).content == ROLE + chunk("a") + DONE


# ---- On the real service.


@in_a_loop
@pytest.mark.parametrize("layer", ["limit", "deadline", "tokens"])
async def test_the_real_service_streams_through_each(service: Service, layer: str) -> None:
    """A stream of the service comes through each layer as it comes without it."""
    wire = http_transport(httpx.URL(service.url))
    layers: dict[str, httpx.AsyncBaseTransport] = {
        "limit": ConcurrencyLimit(wire),
        "deadline": DeadlineTransport(wire, 30),
        "tokens": TokenTimeouts(wire, first_token=10, stall=10),
    }
    body = {
        "model": service.model_id,
        "messages": [{"role": "user", "content": "Count from 1 to 20."}],
        "stream": True,
    }
    async with over(layers[layer]) as http:
        answer = await http.post(f"{service.url}/v1/chat/completions", json=body)
    assert answer.content.rstrip().endswith(b"data: [DONE]")
    assert b'"finish_reason":"stop"' in answer.content.replace(b" ", b"")
