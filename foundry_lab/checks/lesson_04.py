"""Graders for the exercises of lesson 04: retry and backoff."""

import heapq
import inspect
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from statistics import median
from typing import Any

import httpx

import foundry_lab as lab
from foundry_lab.checks.bench import expect, is_number, service, value_of
from foundry_lab.errors import InvalidRequest
from foundry_lab.faults import Always, Reset, Script, Status

__all__ = ["GRADERS", "Herd", "herd"]


def full_jitter(backoff: Callable[..., Any]) -> None:
    """04-1: waits between 0 and min(cap, base · 2^retry), drawn from the generator."""
    rng, draws = random.Random(1), 400
    for retry, base, cap, ceiling in ((0, 0.5, 8, 0.5), (3, 0.2, 8, 1.6), (9, 0.5, 5, 5.0)):
        tried = f"{draws} waits before retry {retry}, with base {base:g} s and cap {cap:g} s"
        began, waits = time.monotonic(), list[Any]()
        while len(waits) < draws:
            waits.append(value_of(backoff, retry, base, cap, rng, tried=tried))
            expect(
                time.monotonic() < began + 5,
                tried=tried,
                expected="to be told them in no time",
                happened=f"after {len(waits)} of them 5 s were over",
                look="whether your function waits itself: it only says how long to wait",
            )
        expect(
            all(map(is_number, waits)),
            tried=tried,
            expected="seconds, as a number",
            happened=f"it gave {waits[0]!r}",
            look="what the function returns; printing is not returning",
        )
        low, high = min(waits), max(waits)
        expect(
            high <= ceiling,
            tried=tried,
            expected=f"none above {ceiling:g} s",
            happened=f"the longest was {high:.2f} s",
            look="in which order the doubling, the cap and the draw come",
        )
        expect(
            len(set(waits)) > 1,
            tried=tried,
            expected="waits that differ",
            happened=f"every one was {low:.2f} s",
            look="where chance enters, and whose generator it is",
        )
        expect(
            low < 0.1 * ceiling and high > 0.9 * ceiling,
            tried=tried,
            expected=f"waits from next to 0 s up to nearly {ceiling:g} s",
            happened=f"they lay between {low:.2f} and {high:.2f} s",
            look="which interval full jitter draws from, compared with equal jitter",
        )
        mean = sum(waits) / draws
        expect(
            0.4 * ceiling < mean < 0.6 * ceiling,
            tried=tried,
            expected=f"waits of {ceiling / 2:g} s on average: each one is as likely as any other",
            happened=f"on average they were {mean:.2f} s",
            look="in which order the doubling, the cap and the draw come",
        )
    tried = "the wait before retry 3, twice, each time with random.Random(7)"
    one, other = (value_of(backoff, 3, 0.5, 8.0, random.Random(7), tried=tried) for _ in "12")
    expect(
        one == other,
        tried=tried,
        expected="the same wait: same seed, same draw",
        happened=f"{one:.2f} s, then {other:.2f} s",
        look="which generator you draw from: the one that is handed in, or another",
    )


# 04-2

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
BACKOFF = 0.4


@dataclass(frozen=True)
class _Case:
    failure: httpx.Response | Exception
    told: str
    wait: float | None
    look: str
    shown: bool = False
    left: float = 30.0


def _asks(after: str, wait: float | None, look: str, code: int = 503, left: float = 30.0) -> _Case:
    answer = httpx.Response(code, headers={"Retry-After": after})
    return _Case(answer, f"{code} with Retry-After: {after}", wait, look, left=left)


def _cases() -> list[_Case]:
    def date(seconds: float) -> str:
        return format_datetime(NOON + timedelta(seconds=seconds), usegmt=True)

    moment = "what can be different in a moment; section 1"
    own = "whose mistake it is, and whether it will be another the next time"
    text = "what is done with a header that can't be read"
    wall = "when the wait would be over, and when the deadline is"
    good = [
        *(_Case(httpx.Response(code), f"status {code}", BACKOFF, moment) for code in AGAIN),
        _Case(httpx.ConnectError("refused"), "ConnectError", BACKOFF, moment),
        _Case(httpx.ReadTimeout("silence"), "ReadTimeout", BACKOFF, moment),
        _Case(httpx.RemoteProtocolError("half"), "RemoteProtocolError", BACKOFF, moment),
        _Case(httpx.ReadError("reset"), "ReadError", BACKOFF, moment),
        _Case(httpx.WriteError("reset"), "WriteError", BACKOFF, moment),
        _Case(httpx.ConnectTimeout("silence"), "ConnectTimeout", BACKOFF, moment),
    ]
    never = [
        *(_Case(httpx.Response(code), f"status {code}", None, own) for code in NEVER),
        _Case(httpx.Response(500), "status 500", None, "what a 500 can mean; section 1"),
        _Case(httpx.UnsupportedProtocol("htp://"), "UnsupportedProtocol", None, own),
        _Case(httpx.LocalProtocolError("a header"), "LocalProtocolError", None, own),
        _Case(TypeError("2 arguments"), "TypeError", None, "whose mistake a TypeError is"),
    ]
    zone = "a date without a zone; section 5"
    after = [
        _asks("2", 2 + BACKOFF, "floor and backoff: is it one of them, or both?"),
        _asks(date(9), 9 + BACKOFF, "the second form of Retry-After; section 5", 429),
        _asks(date(-60), BACKOFF, "what a date in the past means"),
        _asks(f"{NOON.replace(second=9):%a %b %d %H:%M:%S %Y}", 9 + BACKOFF, zone),
        _asks("1.5", BACKOFF, text),
        _asks("soon", BACKOFF, text),
        _asks("60", None, wall, left=10),
        _asks(date(3600), None, wall, left=59),
        _asks("2", None, "what comes on top of the floor, before you compare", left=2.2),
    ]
    seen = "what the user would read; section 7"
    late = _Case(httpx.ReadError("reset"), "ReadError, and no time", None, wall, left=0.3)
    shown = _Case(httpx.ReadError("reset"), "ReadError, some text was shown", None, seen, True)
    return [*good, *never, *after, late, shown]


AGAIN, NEVER = (408, 429, 502, 503, 504), (400, 401, 403, 404, 422)


def once_more(next_wait: Callable[..., Any]) -> None:
    """04-2: how long until the next attempt, if there may be one."""
    for case in _cases():
        tried = f"{case.told}; backoff {BACKOFF} s, {case.left:g} s left"
        arguments = case.failure, case.shown, BACKOFF, case.left, NOON
        told = value_of(next_wait, *arguments, tried=tried)
        number = is_number(told)
        expect(
            told is case.wait or (number and case.wait and abs(told - case.wait) < 1e-6),
            tried=tried,
            expected="None" if case.wait is None else f"{case.wait:g} s",
            happened=f"it gave {told:g} s" if number else f"it gave {told!r}",
            look=case.look,
        )


# 04-3


def four_requests(ask: Callable[..., Any]) -> None:
    """04-3: four attempts where they can help, one where not, and errors that come out."""
    down = Status(503, retry_after="0.01")  # read as such by the openai package only
    again = "what is worth another attempt"
    scenes: dict[str, tuple[Any, int, bool, str]] = {
        "503 to every request": (
            Always(down),
            4,
            False,
            "the requests: who retries, and how often each? And who turns an error into a text?",
        ),
        "429 to every request": (Always(Status(429, retry_after="0.01")), 4, False, again),
        "400 to every request": (Always(Status(400)), 1, False, again),
        "401 to every request": (Always(Status(401)), 1, False, again),
        "503 twice, then an answer": (Script([down] * 2), 3, True, "when the loop ends well"),
        "a broken connection, then an answer": (
            Script([Reset()]),
            2,
            True,
            "the errors that come without any status",
        ),
        "a broken connection, every time": (
            Always(Reset()),
            4,
            False,
            "the errors that come without any status, and what is left after the last attempt",
        ),
        "408, 502 and 504, then an answer": (
            Script([Status(408), Status(502), Status(504)]),
            4,
            True,
            again,
        ),
    }
    with lab.FaultProxy(service().url, only="/v1/chat") as proxy:
        plans = [plan for plan, *_ in scenes.values()]
        stories = value_of(_asked, ask, proxy, plans, tried="call ask, eight scenes", seconds=20)
    for (scene, (_, wanted, text, look)), (requests, result) in zip(
        scenes.items(), stories, strict=True
    ):
        error = isinstance(result, Exception)
        what = f"it raised {type(result).__name__}" if error else f"the caller got {result!r}"
        expect(
            requests == wanted and (isinstance(result, str) if text else error),
            tried=scene,
            expected=f"requests at the server: {wanted}; "
            + ("the caller gets the answer" if text else "the caller gets an exception"),
            happened=f"requests at the server: {requests}; {what[:120]}",
            look=look,
        )


async def _asked(
    ask: Callable[..., Any], proxy: lab.FaultProxy, plans: list[Any]
) -> list[tuple[int, Any]]:
    import openai  # takes a second, and only this exercise needs it

    stories: list[tuple[int, Any]] = []
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="not-checked") as library:
        for plan in plans:
            proxy.plan, before = plan, len(proxy.seen)
            try:
                result = ask(library, service().model_id, "What is jitter?")
                result = await result if inspect.isawaitable(result) else result
            except NotImplementedError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it raises is what came of it
                result = error
            stories.append((len(proxy.seen) - before, result))
    return stories


# 04-4


class _Time:
    """A clock that is set by hand."""

    at = 1_000.0

    def __call__(self) -> float:
        return self.at


def _calls(
    budget: Any, clock: _Time, count: int, pause: float, fails: Callable[[int], int]
) -> tuple[int, int]:
    """Make calls, of which each wants so many retries; give the retries wanted and made."""
    wanted = made = 0
    for number in range(count):
        clock.at += pause
        budget.deposit()
        wanted += (asked := fails(number))
        for _ in range(asked):
            if not budget.withdraw():
                break
            made += 1
    return wanted, made


def spend_retries(budget: Callable[..., Any]) -> None:
    """04-4: few retries in an outage, and none refused to those who need few."""

    def play(scene: str, *parts: tuple[int, float, Callable[[int], int]]) -> tuple[int, int]:
        def run() -> tuple[int, int]:
            clock = _Time()
            one, result = budget(clock), (0, 0)
            for part in parts:
                clock.at += 28_800 * (scene == SCENES[3])
                result = _calls(one, clock, *part)
            return result

        told: tuple[int, int] = value_of(run, tried=scene)
        return told

    storm = 3_000, 0.02, lambda _: 3
    _, made = play(SCENES[0], storm)
    expect(
        made <= 360,
        tried=SCENES[0],
        expected="at most 1.12 requests per call",
        happened=f"{1 + made / 3_000:.2f} requests per call",
        look="what a retry costs, and whether withdraw says no when the pot is empty",
    )
    rng = random.Random(4)
    scenes: list[tuple[tuple[Any, ...], float, str]] = [
        (((120, 60.0, lambda _: 1),), 1.0, "what fills the pot of a program that calls rarely"),
        (((5_000, 0.1, lambda _: rng.random() < 0.05),), 0.95, "what a busy program pays in"),
        ((storm, (600, 0.1, lambda _: 0), (1, 0.1, lambda _: 1)), 1.0, "how the pot fills again"),
    ]
    for scene, (parts, share, look) in zip((*SCENES[1:3], SCENES[4]), scenes, strict=True):
        wanted, made = play(scene, *parts)
        expect(
            made >= share * wanted,
            tried=scene,
            expected=f"{'all' if share == 1 else 'nearly all'} of {wanted} to be retried",
            happened=f"{made} were",
            look=look,
        )
    _, made = play(SCENES[3], (50_000, 0.02, lambda _: 0), (1_000, 0.001, lambda _: 3))
    expect(
        made <= 120,
        tried=SCENES[3],
        expected="at most 120 retries",
        happened=f"{made} retries",
        look="how much the pot may save up, from calls and from time",
    )


SCENES = (
    "an outage: 50 calls a second for a minute, all fail",
    "a call a minute for two hours, each first attempt fails",
    "every day: 10 calls a second, 5 % fail once",
    "1,000 calls fail within a second, after a quiet night and 50,000 good calls",
    "a single failure, a minute after an outage",
)


# 04-5

CLIENTS, PATIENCE, MOST = 200, 60.0, 100_000


@dataclass(frozen=True)
class Herd:
    """What became of two hundred clients who lost the service at second 0."""

    arrivals: list[float]
    """When each request came, in seconds."""
    peak: int
    """Most requests in one second, from the return of the service on."""
    requests: float
    """Requests per client, on average."""
    answered: float
    """The share of the clients that got an answer within 60 s."""
    median: float
    """Seconds until half of the clients had an answer; infinite if they never had."""


def herd(
    policy: Callable[[random.Random], Iterable[float]], back_at: float, capacity: int = 20
) -> Herd:
    """Let two hundred clients retry, each by the same policy, in virtual time.

    Args:
        policy: Takes a client's random generator, gives its waits in seconds.
        back_at: When the service is back, in seconds.
        capacity: How many requests it answers in a second; it refuses the rest.

    Raises:
        InvalidRequest: A wait is no number, or there are more than 100,000 requests.
    """
    waits = [iter(policy(random.Random(client))) for client in range(CLIENTS)]
    due = [(0.0, client) for client in range(CLIENTS)]
    arrivals, answered, busy = list[float](), list[float](), Counter[int]()
    while due:
        at, client = heapq.heappop(due)
        arrivals.append(at)
        second = int(at - back_at) if at >= back_at else -1
        busy[second] += 1
        if second >= 0 and busy[second] <= capacity:
            answered.append(at)
            continue
        wait = next(waits[client], None)
        if wait is not None and at + _checked(wait, len(arrivals)) < PATIENCE:
            heapq.heappush(due, (at + wait, client))
    del busy[-1]
    half = sorted([*answered, *[float("inf")] * (CLIENTS - len(answered))])
    peak, share = max(busy.values(), default=0), len(answered) / CLIENTS
    return Herd(arrivals, peak, len(arrivals) / CLIENTS, share, median(half))


def _checked(wait: Any, requests: int) -> float:
    if not is_number(wait) or not wait >= 0:
        raise InvalidRequest(f"{wait!r} is no wait.", fix="Give seconds, from 0 on.")
    if requests >= MOST:
        raise InvalidRequest(
            f"{MOST:,} requests were made, and there is no end.", fix="Let the policy wait longer."
        )
    return wait


def tame_the_herd(waits: Callable[..., Any]) -> None:
    """04-5: a policy that reaches four objectives in two stories."""
    long = "200 clients, the service is back after 20 s"
    short = "200 clients, the service is back after 0.3 s and has room for all"
    outage: Herd = value_of(herd, waits, 20.0, tried=long)
    blip: Herd = value_of(herd, waits, 0.3, CLIENTS, tried=short)
    found = [
        (
            outage.requests <= 10,
            (long, "at most 10 requests per call", f"{outage.requests:.1f} requests per call"),
            "how long a wait is on average, late in the outage",
        ),
        (
            outage.peak <= 50,
            (long, "at most 50 requests in a second", f"{outage.peak} in one second"),
            "whether the clients' waits differ, and how long they are on average",
        ),
        (
            outage.answered == 1,
            (long, "an answer for every client", f"{outage.answered:.1%} got one"),
            "how long the last waits are, beside the 60 s; and whether they end too soon",
        ),
        (
            blip.median <= 1,
            (short, "half of the clients answered within 1 s", f"it took {blip.median:.1f} s"),
            "how long the first wait is, when the service is gone for a moment only",
        ),
    ]
    for reached, (tried, expected, happened), look in found:
        expect(reached, tried=tried, expected=expected, happened=happened, look=look)


GRADERS: dict[str, Callable[[Any], None]] = {
    "04-1": full_jitter,
    "04-2": once_more,
    "04-3": four_requests,
    "04-4": spend_retries,
    "04-5": tame_the_herd,
}
