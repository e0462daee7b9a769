"""Answers to the exercises of lesson 06: other right ones, and typical wrong ones."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from answers import Answers

READ = {"a_percent": 70, "b_ms": 71, "a_late": 300, "promise": "B"}


def _needed(q: float) -> int:
    return next(n for n in range(1, 10_000) if (q / 100) ** n <= 0.05)


def _by_cdf(durations: list[float | None], q: float) -> float:
    """The smallest value whose share is large enough, found by counting."""
    if len(durations) < _needed(q):
        raise ValueError(f"It takes {_needed(q):,} calls.")
    ordered = np.sort([math.inf if one is None else one for one in durations])
    shares = [Fraction(place, len(ordered)) for place in range(1, len(ordered) + 1)]
    return float(ordered[bisect_left(shares, Fraction(str(q)) / 100)])


def _ranked(
    durations: list[float | None],
    q: float,
    rank: Callable[[float, int], int] = lambda q, n: math.ceil(q * n / 100),
) -> float:
    if len(durations) < _needed(q):
        raise ValueError(f"p{q:g} takes {_needed(q)}")
    return sorted(math.inf if one is None else one for one in durations)[
        rank(q, len(durations)) - 1
    ]


def _known(durations: list[float | None]) -> list[float]:
    return [one for one in durations if one is not None]


def _in_place(durations: Any, q: float) -> float:
    durations.sort(key=lambda one: math.inf if one is None else one)
    return _ranked(durations, q)


def _gives_up(q: float) -> float:
    raise ValueError(f"p{q:g} takes {_needed(q)} calls")


def _fastest(durations: list[float | None], q: float) -> float:
    return _ranked([one or 0.0 for one in durations], q)


def _silent(durations: list[float | None], q: float) -> float:
    if len(durations) < _needed(q):
        raise ValueError("too few calls")
    return _ranked(durations, q)


def _gives_none(durations: list[float | None], q: float) -> float | None:
    return _ranked(durations, q) if len(durations) >= _needed(q) else None


def _always(durations: list[float | None], q: float) -> float:
    ordered = sorted(math.inf if one is None else one for one in durations)
    return ordered[math.ceil(q * len(ordered) / 100) - 1]


def _extrapolates(durations: list[float | None], q: float) -> float:
    return statistics.quantiles(_known(durations), n=1000)[round(q * 10) - 1]


def _sum_up(
    calls: list[Any],
    timed: Callable[[Any], bool] = lambda call: True,
    speed: Callable[[Any], float] = lambda call: (
        (call.tokens - 1) / (call.ended - call.first_token)
    ),
    has_speed: Callable[[Any], bool] = lambda call: call.ok and call.tokens > 1,
    middle: Callable[[list[float]], float] = statistics.median,
    least: int = 59,
) -> dict[str, float | None]:
    seconds = np.array([call.ended for call in calls if timed(call)])
    speeds = [speed(call) for call in calls if has_speed(call)]
    p95 = np.percentile(seconds, 95, method="inverted_cdf") if len(seconds) >= least else None
    return {
        "failed": len([call for call in calls if not call.ok]),
        "max_s": float(np.max(seconds)),
        "p95_s": None if p95 is None else float(p95),
        "tokens_per_s": middle(speeds) if speeds else None,
    }


def _by_plan(log: list[tuple[float, float]], interval: float) -> Iterator[float]:
    """From the plan, not from the log: who is due, and whose answer ends the wait."""
    if log:
        first, last = log[0][0], log[-1][1]
        for place in range(math.ceil((last - first) / interval)):
            due = first + place * interval
            yield [ended for sent, ended in log if sent <= due][-1] - due


def _holes(
    log: list[tuple[float, float]],
    interval: float,
    wait: Callable[[float, float, float], float] = lambda sent, due, ended: ended - due,
    until: Callable[[float], float] = lambda ended: ended,
) -> list[float]:
    latencies = []
    for sent, ended in log:
        latencies.append(ended - sent)
        due = sent + interval
        while due < until(ended):
            latencies.append(wait(sent, due, ended))
            due += interval
    return latencies


def _between_rows(log: list[tuple[float, float]], interval: float) -> list[float]:
    return _holes(log[:-1], interval) + [ended - sent for sent, ended in log[-1:]]


def _in_range(log: list[Any], interval: Any) -> list[float]:
    return [ended - due for sent, ended in log for due in range(sent, ended, interval)]


PAPER = {"in_progress": 3, "seconds": 2.4, "per_second": 4, "waiting": 60, "wait_s": 7.5}

ANSWERS = {
    "06-1": Answers(
        right=[{"promise": "b", "a_late": 290.0, "b_ms": np.float64(71.6), "a_percent": 68}],
        wrong={
            "took the medians": (READ | {"b_ms": 61.7}, "61.7 ms is too low"),
            "took the maximum": (READ | {"b_ms": 94}, "94 ms is too high"),
            "a share from 0 to 1": (READ | {"a_percent": 0.7}, "0.7 % is too low"),
            "of 40, not 1,000": (READ | {"a_late": 12}, "12 calls is too low"),
            "the better median": (READ | {"promise": "A"}, "three of its ten are late"),
            "with the unit": (READ | {"b_ms": "71 ms"}, "without its unit"),
            "no promise": (READ | {"promise": ...}, "look at promise"),
            "not all": (READ | {"a_late": ...}, "nothing to check yet"),
        },
    ),
    "06-2": Answers(
        right=[_by_cdf],
        wrong={
            "interpolates": (
                lambda d, q: float(np.percentile(_known(d), q)),
                "it gave 28.505",
            ),
            "extrapolates": (_extrapolates, "it gave 28.595"),
            "rounds down": (
                lambda d, q: _ranked(d, q, lambda q, n: math.floor(q * n / 100)),
                "how a rank between two is rounded",
            ),
            "counts from 1": (
                lambda d, q: _ranked(d, q, lambda q, n: math.ceil(q * n / 100) + 1),
                "it gave 28.6",
            ),
            "drops failures": (lambda d, q: _ranked([*_known(d)], q), "it gave 8.6"),
            "failures are fast": (_fastest, "it gave 8.5"),
            "counts successes": (
                lambda d, q: _ranked(d, q) if len(_known(d)) >= _needed(q) else _gives_up(q),
                "there are enough calls",
            ),
            "binary": (
                lambda d, q: _ranked(d, q, lambda q, n: math.ceil(q / 100 * n)),
                "99.9 is not quite",
            ),
            "sorts in place": (_in_place, "the list was another one"),
            "never refuses": (_always, "so few calls can't tell"),
            "returns None": (_gives_none, "it gave None"),
            "says no number": (_silent, "a message that says how many"),
        },
    ),
    "06-3": Answers(
        right=[_sum_up],
        wrong={
            "p95 of three": (lambda c: _sum_up(c, least=1), "p95_s was 191.8"),
            "p95 of twenty": (lambda c: _sum_up(c, least=20), "p95_s was 1"),
            "p95 of sixty only": (lambda c: _sum_up(c, least=60), "p95_s was None"),
            "leaves failures out": (
                lambda c: _sum_up(c, timed=lambda call: call.ok),
                "max_s was 1",
            ),
            "counts the prompt": (
                lambda c: _sum_up(
                    c, speed=lambda call: (call.prompt_tokens + call.tokens) / call.ended
                ),
                "tokens_per_s was 260.25",
            ),
            "waits with it": (
                lambda c: _sum_up(c, speed=lambda call: call.tokens / call.ended),
                "tokens_per_s was 10.25",
            ),
            "counts the first": (
                lambda c: _sum_up(
                    c, speed=lambda call: call.tokens / (call.ended - call.first_token)
                ),
                "tokens_per_s was 20.5",
            ),
            "single tokens": (
                lambda c: _sum_up(c, has_speed=lambda call: bool(call.ok)),
                "ZeroDivisionError",
            ),
            "broken streams": (
                lambda c: _sum_up(c, has_speed=lambda call: call.tokens > 1),
                "tokens_per_s was 0.020202",
            ),
            "a mean": (lambda c: _sum_up(c, middle=statistics.mean), "does to a mean"),
            "prints": (lambda c: print(_sum_up(c)), "it gave None"),
        },
    ),
    "06-4": Answers(
        right=[_by_plan],
        wrong={
            "the log only": (
                lambda log, interval: [ended - sent for sent, ended in log],
                "[2.0, 2.0, 35.0, 3.0]",
            ),
            "each as long as the slow one": (
                lambda log, interval: _holes(log, interval, lambda sent, due, ended: ended - sent),
                "in all 147 ms",
            ),
            "since the slow one": (
                lambda log, interval: _holes(log, interval, lambda sent, due, ended: due - sent),
                "in all 102 ms",
            ),
            "in the moment of the answer": (
                lambda log, interval: _holes(log, interval, until=lambda ended: ended + 1e-9),
                "it gave 4: [20.0, 10.0, 0.0, 1.0]",
            ),
            "sorted by length": (
                lambda log, interval: sorted(_by_plan(log, interval)),
                "when each of them was due",
            ),
            "between rows only": (_between_rows, "the last row of the log"),
            "whole numbers only": (_in_range, "times that are no whole numbers"),
            "always 10": (lambda log, interval: _holes(log, 10), "the interval of the plan"),
            "a number": (lambda log, interval: len(log), "a list of ms"),
        },
    ),
    "06-5": Answers(
        right=[{name: np.float64(value) for name, value in PAPER.items()}],
        wrong={
            "the rate alone": (PAPER | {"in_progress": 6}, "for half a second only"),
            "one user alone": (PAPER | {"seconds": 0.2}, "the other eleven"),
            "upside down": (PAPER | {"seconds": 5 / 12}, "upside down"),
            "forgets the reading": (PAPER | {"per_second": 20}, "while they read"),
            "forgets the answer": (PAPER | {"per_second": 5}, "the answer in it too"),
            "nobody waits": (PAPER | {"waiting": 0}, "two places do 8"),
            "all wait": (PAPER | {"waiting": 300}, "most of them are through"),
            "by what comes": (PAPER | {"wait_s": 6}, "not by what comes"),
            "far off": (PAPER | {"wait_s": 100}, "you said 100, and it was less"),
            "one is missing": ({"in_progress": 3}, "a dict with in_progress, seconds"),
        },
    ),
}
