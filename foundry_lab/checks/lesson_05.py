"""Graders for the exercises of lesson 05: circuit breaking."""

import asyncio
import heapq
import random
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from typing import Any

import httpx

from foundry_lab.breaker import Breaker, BreakerPolicy
from foundry_lab.checks.bench import Wrong, expect, is_number, value_of

__all__ = ["GRADERS"]

OUTCOMES = {"+": "success", "x": "failure", "o": "neutral"}

WINDOWS: list[tuple[str, float, int, float, float | None, str]] = [
    # calls and seconds between them, least, asked at, ratio, look
    ("+x+x", 1, 4, 3, 0.5, "what the ratio counts"),
    ("xxx", 1, 4, 2, None, "`least`: three calls are not enough to tell"),
    ("xxxx··········++++", 1, 4, 17, 0.0, "how long a call counts"),
    ("xxxx", 1, 4, 60, None, "when a call is forgotten: calls grow old without a new one"),
    ("x+++", 1, 3, 10, 0.0, "a call that is exactly as old as the window"),
    ("xxoo", 1, 4, 3, None, "what a neutral call says"),
    ("xx++oo", 1, 4, 5, 0.5, "what a neutral call says"),
    ("x" * 1500 + "+" * 500, 0.002, 5, 4, 0.75, "what bounds a window: a time, not a number"),
]


def window(kind: Callable[..., Any]) -> None:
    """05-1: the failure ratio of the last seconds, from a minimum throughput on."""
    for calls, every, least, asked, ratio, look in WINDOWS:
        drawn = calls if len(calls) < 30 else f"{calls.count('x')} x, then {calls.count('+')} +"
        tried = (
            f"window 10 s, least {least}; a call every {every:g} s (+ success, x failure, o "
            f"neutral, · none): {drawn}; the ratio at {asked:g} s"
        )
        got = value_of(_ratio, kind, least, calls, every, asked, tried=tried)
        expect(
            got is None if ratio is None else is_number(got) and abs(got - ratio) < 1e-9,
            tried=tried,
            expected="None" if ratio is None else f"{ratio:g}",
            happened=f"it gave {got!r}",
            look=look,
        )
    tried = "two windows; four failures go into the first one"
    got = value_of(_other_window, kind, tried=tried)
    expect(
        got is None,
        tried=tried,
        expected="None from the second one, which has seen no call",
        happened=f"the second one gave {got!r}",
        look="where the calls are kept: in the class, or in each window",
    )
    tried = "5,000 calls, one a second"
    expect(
        value_of(_kept_bytes, kind, tried=tried) < 60_000,
        tried=tried,
        expected="that only those of the last 10 s are kept",
        happened="it keeps too much: its memory grew with every call",
        look="whether what doesn't count any more is thrown away, or only left out",
    )


def _ratio(kind: Callable[..., Any], least: int, calls: str, every: float, asked: float) -> Any:
    one = kind(10, least)
    for place, drawn in enumerate(calls):
        if drawn != "·":
            one.add(place * every, OUTCOMES[drawn])
    return one.ratio(asked)


def _other_window(kind: Callable[..., Any]) -> Any:
    first, second = kind(10, 1), kind(10, 1)
    for now in range(4):
        first.add(now, "failure")
    return second.ratio(4)


def _kept_bytes(kind: Callable[..., Any]) -> int:
    one = kind(10, 5)
    was_on = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for now in range(1_000, 6_000):
            one.add(float(now), "failure" if now % 2 else "success")
            if now % 100 == 0:
                one.ratio(float(now))
        after, _ = tracemalloc.get_traced_memory()
        return after - before
    finally:
        if not was_on:
            tracemalloc.stop()


How = int | str | Exception
"""How a call goes: a status, an error, or a caller who leaves or stays."""

DOWN: list[tuple[float, How]] = [(0, 503), (0, 503), (0, 503)]
LEAVES, STAYS = "a caller who leaves", "a call that stays under way"
GUARDS: list[tuple[list[tuple[float, How]], list[int], str]] = [
    # calls, the numbers of those that must not be sent, look
    ([*DOWN, (1, 200)], [4], "three failures in a row open it"),
    ([*DOWN, (5, STAYS), (5, 200)], [5], "half-open has one place"),
    ([*DOWN, (5, httpx.ReadTimeout("")), (6, 200), (10, 200)], [5], "a probe that fails"),
    (
        [*DOWN, (5, LEAVES), (6, 200), (11, 200)],
        [],
        "what a probe leaves behind when its caller cancels it, whatever it may be",
    ),
    ([*DOWN, (5, LEAVES), (6, STAYS), (6, 200)], [6], "what nobody has found out yet"),
    ([(0, LEAVES)] * 3 + [(1, 200)], [], "who leaves says nothing about the service"),
    ([(0, 503), (0, 503), (0, LEAVES), (0, 503), (1, 200)], [5], "neutral: it changes nothing"),
    ([(0, 400)] * 4, [], "whose mistake a 400 is"),
    ([*DOWN, (5, 404), (5, STAYS), (5, 200)], [], "what a 404 says about the service"),
    (
        [(0, 503), (0, 503), (0, 200), (0, 503), (1, 200)],
        [],
        "in a row: what a success in between does",
    ),
    ([(0, 503), (0, 503), (0, 400), (0, 503), (1, 200)], [], "what a 400 says about the service"),
    ([(0, 429)] * 4, [], "what the task says about 429"),
    ([(0, 503), (0, 503), (0, 429), (0, 503), (1, 200)], [5], "what the task says about 429"),
    ([*DOWN, (5, 429), (5, STAYS), (5, 200)], [6], "a probe that learns nothing"),
]


def guard(kind: Callable[..., Any]) -> None:
    """05-2: a breaker whose probe gives its place back, and that knows three outcomes."""
    for calls, refused, look in GUARDS:
        tried = "; ".join(
            f"{at:g} s: {', '.join(_named(how) for _, how in these)}"
            for at, these in groupby(calls, key=lambda call: call[0])
        )
        ends = value_of(_ends, kind, calls, tried=tried)
        for number, end in enumerate(ends, 1):
            expect(
                end in ("sent", "refused"),
                tried=tried,
                expected="that each caller gets what `send` returned or raised, or Refused",
                happened=f"the caller of call {number} got {end}",
                look="what leaves `call`: the response, the error, the cancellation",
            )
        got = [place for place, end in enumerate(ends, 1) if end == "refused"]
        expect(
            got == refused,
            tried=tried,
            expected=_refused(refused),
            happened=_refused(got),
            look=look,
        )


def _named(how: How) -> str:
    return type(how).__name__ if isinstance(how, Exception) else str(how)


def _refused(numbers: Sequence[int]) -> str:
    if not numbers:
        return "every call is sent"
    return f"not sent: call {' and call '.join(map(str, numbers))}, counted from 1"


async def _ends(kind: Callable[..., Any], calls: Sequence[tuple[float, How]]) -> list[str]:
    """Make the calls, each at its second; say of each whether it was sent, and came back whole."""
    now = 0.0
    guarded = kind(lambda: now)
    ends, staying = [], []
    for at, how in calls:
        now, sent, response = float(at), [0], _response(how)

        async def send(
            how: How = how, sent: list[int] = sent, response: httpx.Response = response
        ) -> httpx.Response:
            sent[0] += 1
            if isinstance(how, Exception):
                raise how
            if isinstance(how, str):
                await asyncio.Event().wait()
            return response

        task = asyncio.ensure_future(guarded.call(send))
        await _settled(task)
        if how == STAYS and not task.done():
            staying.append(task)
            ends.append("sent")
            continue
        if how == LEAVES:
            task.cancel()
            await _settled(task)
        came: Any = (await asyncio.gather(task, return_exceptions=True))[0]
        if not sent[0]:
            ends.append("refused" if _refuses(_error(task)) else _got(task))
        else:
            left = isinstance(came, asyncio.CancelledError)
            whole = left if how == LEAVES else came is (response if isinstance(how, int) else how)
            ends.append("sent" if whole and sent == [1] else _got(task))
    for task in staying:
        task.cancel()
    await asyncio.gather(*staying, return_exceptions=True)
    return ends


def _error(task: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()


def _refuses(error: BaseException | None) -> bool:
    """Whatever it is called, but no slip of the pen."""
    slips = NameError, AttributeError, TypeError, LookupError
    return isinstance(error, Exception) and not isinstance(error, slips)


def _got(task: asyncio.Future[Any]) -> str:
    error = _error(task)
    return repr(task.result()) if error is None else f"{type(error).__name__}: {error}"


def _response(how: How) -> httpx.Response:
    request = httpx.Request("POST", "http://127.0.0.1/v1/chat/completions")
    return httpx.Response(how if isinstance(how, int) else 200, request=request)


async def _settled(task: asyncio.Future[Any]) -> None:
    for _ in range(20):
        await asyncio.sleep(0)
        if task.done():
            return


class _TheirBreaker:
    """The breaker of 05-3, as the sheet shows it."""

    state, failures, opened, places = "closed", 0, 0.0, 0

    def admit(self, now: float) -> bool:
        if self.state == "open" and now - self.opened >= 5:
            self.state, self.places = "half-open", 1
        if self.state == "half-open":
            self.places -= 1
            return self.places >= 0
        return self.state == "closed"

    def settle(self, outcome: str, now: float) -> None:
        if self.state == "open":
            return
        if outcome == "success":
            self.state, self.failures = "closed", 0
            return
        self.failures += 1
        if self.state == "half-open" or self.failures >= 3:
            self.state, self.opened = "open", now


def story(events: Any) -> None:
    """05-3: a story in which the success of an old call closes a breaker in the outage."""
    rows = [tuple(event) for event in events] if isinstance(events, list | tuple) else []
    if not rows or any(len(row) != 3 for row in rows):
        raise _unfit("the whole story", "it is no list of (second, call, event)")
    theirs, sent, ended = _TheirBreaker(), dict[Any, bool](), set[Any]()
    before, opened, wrongly = 0.0, None, False
    for place, (second, call, event) in enumerate(rows, 1):
        tried = f"event {place} of your story: {(second, call, event)}"
        if event not in ("send", "success", "failure"):
            raise _unfit(tried, f"there is no event {event!r}")
        if second < before:
            raise _unfit(tried, f"time goes back, from second {before:g} to {second:g}")
        before = second
        if event == "send":
            if call in sent:
                raise _unfit(tried, f"call {call!r} was sent before")
            if theirs.admit(second):
                sent[call] = opened is not None
            continue
        if call not in sent or call in ended:
            why = "has ended before" if call in ended else "was never sent, or was refused"
            raise _unfit(tried, f"call {call!r} {why}, so it can't end")
        ended.add(call)
        was = theirs.state
        theirs.settle(event, second)
        expect(
            wrongly or not (sent[call] and event == "success"),
            tried=tried,
            expected="no success of a call that was sent since it opened",
            happened=f"call {call!r} found the service well, so to close is right",
            look="whose success may close it, for your story to win",
        )
        opened = second if opened is None and theirs.state == "open" else opened
        wrongly |= was != "closed" and theirs.state == "closed"
    expect(
        wrongly,
        tried=f"your story of {len(rows)} events",
        expected="that the breaker opens, and then closes",
        happened="it never opened"
        if opened is None
        else f"it opened at second {opened:g}, and at the end it was {theirs.state}",
        look="in which of its states a result counts, and what brings it there",
    )


def _unfit(tried: str, happened: str) -> Wrong:
    return Wrong(
        tried=tried,
        expected="a story that can happen",
        happened=happened,
        look="the rules of a story, in the task",
    )


GOOD_SECONDS, HANGING_SECONDS = 0.1, 2.0


def policy(given: Any) -> None:
    """05-4: a breaker's numbers that keep three objectives, in a simulation."""
    if isinstance(given, Mapping):
        given = value_of(BreakerPolicy, **given, tried="make a BreakerPolicy of your numbers")
    expect(
        isinstance(given, BreakerPolicy),
        tried="look at what you handed in",
        expected="a BreakerPolicy",
        happened=f"it is of type {type(given).__name__}",
        look="the name at the left of `=`",
    )
    days = [_played(given, gap=0.1, seconds=80, hangs=(30, 58 + more)) for more in range(6)]
    lost, back = max(day[0] for day in days), max(day[2] for day in days)
    night, _, _ = _played(given, gap=2, seconds=240, hangs=(60, 180))
    trickles = [_played(given, gap=0.1, seconds=300, errors=0.15, seed=seed) for seed in (1, 2, 3)]
    opened = sum(trickle[1] for trickle in trickles)
    again = f"closed again after {back:.1f} s" if back < 1_000 else "not closed again in time"
    figures = (
        f"day: {lost} in vain, {again}; night: {night} in vain; trickle: opened {opened} times"
    )
    for kept, missed, look in (
        (lost <= 90, "by day too many wait in vain", "how many failures open it in a full window"),
        (back <= 6, "by day it is closed too late", "how long a probe hangs, and what comes then"),
        (night <= 25, "at night too many wait in vain", "how many calls the window holds at night"),
        (opened == 0, "it opens in the trickle", "how easily few calls fail by chance"),
    ):
        expect(
            kept,
            tried="six days, a night and three trickles of 5 minutes",
            expected="day: 90 in vain at most, closed again within 6 s; night: 25 in vain at most; "
            "trickle: never opened",
            happened=f"{missed}. {figures}",
            look=look,
        )


def _played(
    policy: BreakerPolicy,
    *,
    gap: float,
    seconds: float,
    hangs: tuple[float, float] = (0, 0),
    errors: float = 0.0,
    seed: int = 1,
) -> tuple[int, int, float]:
    """Play calls, one every `gap` seconds; failed calls, openings, and seconds until it closed."""
    rng, changes, under_way, failed = random.Random(seed), list[Any](), list[Any](), 0
    breaker = Breaker(policy, hook=changes.append)
    for number in range(round(seconds / gap)):
        now = number * gap
        while under_way and under_way[0][0] <= now:
            end, _, permit, good = heapq.heappop(under_way)
            breaker.settle(permit, "success" if good else "failure", end)
        hanging = hangs[0] <= now < hangs[1]
        good = not hanging and rng.random() >= errors
        if permit := breaker.admit(now):
            failed += not good
            end = now + (HANGING_SECONDS if hanging else GOOD_SECONDS)
            heapq.heappush(under_way, (end, number, permit, good))
    closed = [change.at - hangs[1] for change in changes if change.new == "closed"]
    opened = sum(change.new == "open" for change in changes)
    late = [after for after in closed if after >= 0]
    return failed, opened, late[0] if late else 0.0 if not opened else float("inf")


GRADERS: dict[str, Callable[[Any], None]] = {
    "05-1": window,
    "05-2": guard,
    "05-3": story,
    "05-4": policy,
}
