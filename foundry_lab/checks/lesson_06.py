"""Graders for the exercises of lesson 06: latency."""

import asyncio
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from foundry_lab.checks.bench import (
    Outcome,
    attempt,
    expect,
    expect_number,
    expect_written,
    is_number,
    value_of,
)
from foundry_lab.clock import VirtualClock
from foundry_lab.latency import closed_loop, open_loop

__all__ = ["GRADERS"]


def _numbers(given: Any, names: Sequence[str]) -> dict[str, float]:
    """Look up some numbers of a dict."""
    expect(
        isinstance(given, Mapping) and all(name in given for name in names),
        tried="look at what you handed in",
        expected=f"a dict with {', '.join(names)}",
        happened=f"it is {given!r}"[:100],
        look="the stub of the answer: it has every name",
    )
    for name in names:
        expect_number(given[name], name=name)
    return {name: float(given[name]) for name in names}


def readings(given: Any) -> None:
    """06-1: a share, a percentile and a promise, read from an ECDF."""
    read = _numbers(given, ("a_percent", "b_ms", "a_late"))
    for name, low, high, unit, look in (
        ("a_percent", 65, 75, "%", "the height of A's line above 60 ms"),
        ("b_ms", 67, 76, "ms", "where B's line is at 90 %; the marker shows the median"),
        ("a_late", 250, 350, "calls", "the share of A's calls that lies to the right of 100 ms"),
    ):
        expect(
            low <= read[name] <= high,
            tried=f"your reading {name}",
            expected="what the figure shows, with some slack",
            happened=f"{read[name]:g} {unit} is too {'low' if read[name] < low else 'high'}",
            look=look,
        )
    expect_written(
        given.get("promise"), tried="look at promise", expected='"A" or "B" in place of `...`'
    )
    promise = str(given["promise"]).strip().upper()
    expect(
        promise == "B",
        tried='the promise "nine of ten within 100 ms"',
        expected="the service of which nine of ten calls took at most 100 ms",
        happened=f"you took {promise}"
        + (", the one with the better median: three of its ten are late" if promise == "A" else ""),
        look="each line's height above 100 ms",
    )


@dataclass(frozen=True)
class _Sample:
    """A sample with a known percentile; None stands for a failed call."""

    told: str
    durations: list[float | None]
    q: float
    value: float
    look: str


def _shuffled(n: int, failed: int = 0) -> list[float | None]:
    """Seconds from 0.1 up in steps of 0.1, in some order; the last ones failed."""
    numbers = np.random.default_rng(6).permutation(n) + 1
    return [None if number > n - failed else round(number / 10, 1) for number in numbers.tolist()]


PERCENTILES = [
    _Sample("300 calls of 0.1 to 30 s", _shuffled(300), 95, 28.5, "which rank it is, from 1"),
    _Sample("90 calls of 0.1 to 9 s", _shuffled(90), 75, 6.8, "how a rank between two is rounded"),
    _Sample("59 calls of 0.1 to 5.9 s", _shuffled(59), 95, 5.7, "how many calls p95 takes"),
    _Sample("100 calls, of which 10 failed", _shuffled(100, 10), 95, math.inf, "which call it is"),
    _Sample(
        "60 calls, of which 2 failed", _shuffled(60, 2), 95, 5.7, "what a failed call counts for"
    ),
    _Sample(
        "3,000 calls of 0.1 to 300 s",
        _shuffled(3_000),
        99.9,
        299.7,
        "the rank before it is rounded up: print it. 99.9 is not quite 99.9 in binary",
    ),
]


def percentile(function: Callable[..., Any]) -> None:
    """06-2: the nearest rank of all calls, and a refusal that says how many it takes."""
    for sample in PERCENTILES:
        tried = f"p{sample.q:g} of {sample.told}"
        given = sample.durations.copy()
        refused = isinstance(attempt(function, given, sample.q, tried=tried).error, ValueError)
        expect(
            not refused,
            tried=tried,
            expected="a value: there are enough calls",
            happened="it raised ValueError",
            look=sample.look,
        )
        given = sample.durations.copy()
        got = value_of(function, given, sample.q, tried=tried)
        expect(
            is_number(got) and (got == sample.value or abs(got - sample.value) < 1e-6),
            tried=tried,
            expected="the duration of a failed call, which is math.inf"
            if sample.value == math.inf
            else f"{sample.value:g} s, which {sample.q:g} % of all calls do not exceed",
            happened=f"it gave {got!r}",
            look=sample.look,
        )
        expect(
            given == sample.durations,
            tried=tried,
            expected="that the caller's list stays as it is",
            happened="the list was another one afterwards",
            look="what `list.sort` and `list.remove` change",
        )
    for n, q, needed in ((58, 95, 59), (3, 95, 59), (298, 99, 299), (28, 90, 29)):
        tried = f"p{q} of {n} calls"
        outcome = attempt(function, _shuffled(n, 1), q, tried=tried)
        _refused(outcome, tried, needed)


def _refused(outcome: Outcome, tried: str, needed: int) -> None:
    expect(
        isinstance(outcome.error, ValueError),
        tried=tried,
        expected="a ValueError: so few calls can't tell",
        happened=f"it {outcome.told}",
        look="the chance that all of them lie below the true percentile",
    )
    numbers = re.findall(r"\d[\d,_]*", str(outcome.error))
    expect(
        str(needed) in [number.strip(",_").replace(",", "") for number in numbers],
        tried=tried,
        expected="a message that says how many calls it takes",
        happened=f"it {outcome.told}",
        look="the number in your message; section 2 of the lesson counts it",
    )


@dataclass
class _Call:
    """A call of 06-3."""

    first_token: float | None
    ended: float
    prompt_tokens: int = 20
    tokens: int = 11
    ok: bool = True


_FAILED = _Call(None, 30.0, tokens=0, ok=False)
_QUICK = _Call(0.5, 1.0)

REPORTS: list[tuple[str, list[_Call], dict[str, float | None], str]] = [
    (
        "three answers after 60.1, 105.4 and 191.8 s",
        [_Call(9.0, ended) for ended in (60.1, 105.4, 191.8)],
        {"max_s": 191.8, "p95_s": None},
        "how many calls a p95 takes",
    ),
    (
        "90 answers after 1 s, 10 failures after 30 s",
        [*[_QUICK] * 90, *[_FAILED] * 10],
        {"failed": 10, "max_s": 30.0, "p95_s": 30.0},
        "whose seconds are in the list",
    ),
    (
        "60 answers after 1, 2, … 60 s",
        [_Call(0.5, float(ended)) for ended in range(60, 0, -1)],
        {"max_s": 60.0, "p95_s": 57.0},
        "the nearest rank: sorted, rounded up, counted from 1",
    ),
    ("58 answers", [_QUICK] * 58, {"p95_s": None}, "how many calls a p95 takes"),
    ("59 answers", [_QUICK] * 59, {"p95_s": 1.0}, "how many calls a p95 takes"),
    (
        "one answer: prompt of 1,000 tokens, first token after 2 s, all 41 after 4 s",
        [_Call(2.0, 4.0, 1_000, 41)],
        {"tokens_per_s": 20.0},
        "which tokens the model writes, in which seconds",
    ),
    (
        "two answers of 11 tokens in half a second each, and one of a single token",
        [_QUICK, _Call(0.5, 0.5, tokens=1), _QUICK],
        {"tokens_per_s": 20.0},
        "whether a single token has a speed",
    ),
    (
        "one such answer, and two streams that broke, after 3 tokens in 100 s",
        [_QUICK, *[_Call(1.0, 100.0, tokens=3, ok=False)] * 2],
        {"failed": 2, "tokens_per_s": 20.0},
        "which calls are answers",
    ),
    (
        "speeds of 20, 20 and 2,000 tokens/s",
        [_QUICK, _QUICK, _Call(0.5, 0.505)],
        {"tokens_per_s": 20.0},
        "what one outlier does to a mean",
    ),
    (
        "failures only",
        [_FAILED] * 3,
        {"failed": 3, "max_s": 30.0, "p95_s": None, "tokens_per_s": None},
        "what is left when no call succeeded",
    ),
]


def report(function: Callable[..., Any]) -> None:
    """06-3: failures counted, no p95 beyond the sample, and the speed of the writing only."""
    for told, calls, wanted, look in REPORTS:
        got = value_of(function, list(calls), tried=told)
        expect(
            isinstance(got, Mapping) and all(name in got for name in wanted),
            tried=told,
            expected=f"a dict with {', '.join(wanted)}",
            happened=f"it gave {got!r}"[:100],
            look="the names in the task",
        )
        for name, value in wanted.items():
            same = is_number(got[name]) and value is not None and abs(got[name] - value) < 1e-6
            shown = f"{got[name]:.6g}" if is_number(got[name]) else repr(got[name])
            expect(
                same or (value is None and got[name] is None),
                tried=told,
                expected=f"{name} {'None' if value is None else f'{value:g}'}",
                happened=f"{name} was {shown}",
                look=look,
            )


LOGS: list[tuple[str, list[tuple[float, float]], float, list[float], str]] = [
    ("no hole", [(0, 2), (10, 13), (20, 22)], 10, [2, 3, 2], "what to do when nothing is missing"),
    (
        "the example",
        [(0, 2), (10, 12), (20, 55), (60, 63)],
        10,
        [2, 2, 35, 25, 15, 5, 3],
        "who would have come at 30, 40 and 50 ms, and when they would have had their answers",
    ),
    (
        "an answer in the very moment when the next is due",
        [(0, 20), (20, 21)],
        10,
        [20, 10, 1],
        "who is sent in the moment of an answer",
    ),
    ("a hole at the end", [(0, 2), (10, 45)], 10, [2, 35, 25, 15, 5], "the last row of the log"),
    ("another plan", [(0, 1), (4, 15), (16, 17)], 4, [1, 11, 7, 3, 1], "the interval of the plan"),
    (
        "times that are no whole numbers",
        [(0.0, 0.5), (2.5, 8.25), (10.0, 10.5)],
        2.5,
        [0.5, 5.75, 3.25, 0.75, 0.5],
        "which types the stub names: ms may have a fraction",
    ),
    ("an empty log", [], 10, [], "a log without rows"),
]


def honest(function: Callable[..., Any]) -> None:
    """06-4: the latencies of all requests of a plan, those that a closed loop left out too."""
    for told, log, interval, wanted, look in LOGS:
        tried = f"{told}: {log}, a request every {interval:g} ms"
        got = value_of(
            lambda log, interval: _listed(function(log, interval)), log, interval, tried=tried
        )
        expect(
            isinstance(got, list) and all(map(is_number, got)),
            tried=tried,
            expected="a list of ms",
            happened=f"it gave {got!r}"[:100],
            look="what the stub's docstring says comes out",
        )
        expect(
            len(got) == len(wanted),
            tried=tried,
            expected=f"{len(wanted)} latencies, one for each request of the plan",
            happened=f"it gave {len(got)}: {_rounded(got)}",
            look=look,
        )
        expect(
            np.allclose(sorted(got), sorted(wanted)),
            tried=tried,
            expected=f"latencies whose sum is {sum(wanted):g} ms",
            happened=f"it gave {_rounded(got)}, in all {sum(got):g} ms",
            look=look,
        )
        expect(
            np.allclose(got, wanted),
            tried=tried,
            expected="the latencies in the order in which the requests were due",
            happened=f"it gave {_rounded(got)}",
            look="when each of them was due",
        )


def _listed(value: Any) -> Any:
    return list(value) if hasattr(value, "__iter__") else value


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]


NEAR: dict[str, tuple[dict[float, str], str]] = {
    "in_progress": (
        {6: "each of the six a second stays for half a second only", 12: "L = λ · W: multiply"},
        "how many come while one call lasts",
    ),
    "seconds": (
        {
            0.2: "that is one user alone; the other eleven are in front of you",
            5 / 12: "the fraction is upside down: calls / (calls a second) = seconds",
            60: "users times answers a second are no seconds",
        },
        "W = L / λ: how many are in the system, and how many leave it each second",
    ),
    "per_second": (
        {
            20: "the users don't ask while they read",
            5: "a round has the answer in it too, not only the reading",
            25: "L = λ · W, so λ is no product",
        },
        "how long one round of a user takes, from question to question",
    ),
    "waiting": (
        {
            0: "two places do 8 calls a second, and 10 come",
            300: "that is all who came; most of them are through",
            2: "that is one second's worth",
        },
        "how many more come each second than two places can do",
    ),
    "wait_s": (
        {
            6: "the queue gets shorter by what the places do, not by what comes",
            0.25: "that is how long it runs; how long does it wait before?",
            30: "so long the load lasts; the wait is for those in front",
            15: "two places empty the queue, each 4 calls a second",
        },
        "those in front, and how many of them get a place each second",
    ),
}


def predicted(given: Any) -> None:
    """06-5: what Little's law says, compared with simulations on the virtual clock."""
    guesses = _numbers(given, tuple(NEAR))
    for name, measured in _played().items():
        guess, (near, look) = guesses[name], NEAR[name]
        reasons = [why for wrong, why in near.items() if math.isclose(guess, wrong, rel_tol=0.02)]
        expect(
            abs(guess - measured) <= 0.06 * measured,
            tried=f"{name}, on a virtual clock",
            expected="your prediction within 6 % of what was measured",
            happened=f"you said {guess:g}, and it was {'more' if guess < measured else 'less'}",
            look=(reasons or [look])[0],
        )


@cache
def _played() -> dict[str, float]:
    return asyncio.run(_simulated())


async def _simulated() -> dict[str, float]:
    """Play the five situations: seconds, calls, and calls a second, as the task names them."""
    clock = VirtualClock()
    come = await open_loop(
        lambda: clock.sleep(0.5),
        rate=6,
        requests=120,
        arrivals="fixed",
        now=clock.now,
        sleep=clock.sleep,
    )
    one, two = asyncio.Semaphore(1), asyncio.Semaphore(2)

    async def served(places: asyncio.Semaphore, seconds: float) -> None:
        async with places:
            await clock.sleep(seconds)

    crowd = await closed_loop(lambda: served(one, 0.2), users=12, requests=180, now=clock.now)
    readers = await closed_loop(lambda: clock.sleep(0.5 + 2), users=10, requests=80, now=clock.now)
    queue = await open_loop(
        lambda: served(two, 0.25),
        rate=10,
        requests=301,
        arrivals="fixed",
        now=clock.now,
        sleep=clock.sleep,
    )
    runs_from = queue.column("ended") - 0.25
    return {
        "in_progress": come.column("latency").sum() / 20,
        "seconds": float(np.median(crowd.column("latency"))),
        "per_second": readers.throughput,
        "waiting": float((runs_from > 30).sum()),
        "wait_s": float(queue.column("latency")[-1] - 0.25),
    }


GRADERS: dict[str, Callable[[Any], None]] = {
    "06-1": readings,
    "06-2": percentile,
    "06-3": report,
    "06-4": honest,
    "06-5": predicted,
}
