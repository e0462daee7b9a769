"""Percentiles that say what they are worth, and refuse to say more than the sample knows."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from foundry_lab.errors import InvalidRequest

__all__ = [
    "CONFIDENCE",
    "Floats",
    "Method",
    "Percentile",
    "finite",
    "percentile",
    "requests_needed",
]

CONFIDENCE = 0.95
"""How sure an interval is: it misses the true percentile in at most one run of twenty."""

Floats = npt.NDArray[np.float64]
Method = Literal["nearest-rank", "linear"]


@dataclass(frozen=True)
class Percentile:
    """One percentile of a sample, and the range in which the true one lies."""

    q: float
    """In percent: 95 for the value that 95 % of all requests stay at or below."""
    value: float
    """In the unit of the values, as are `low` and `high`."""
    low: float
    high: float
    n: int
    method: Method

    def __str__(self) -> str:
        interval = f"{100 * CONFIDENCE:g} % sure: {self.low:.4g} to {self.high:.4g}"
        return f"p{self.q:g} = {self.value:.4g} ({interval}; n = {self.n}, {self.method})"


def percentile(values: Iterable[float], q: float, method: Method = "nearest-rank") -> Percentile:
    """Return a percentile with its confidence interval.

    The interval takes the requests as independent. A stall that hits a hundred in a row is one
    event and not a hundred: then the truth is less sure than the interval says.

    Args:
        values: The sample, of one unit, in any order.
        q: The percentile, in percent: above 0 and below 100.
        method: ``nearest-rank``: the smallest sample that at least q % of the sample do not
            exceed, rank ⌈q/100 · n⌉. ``linear``: between the two samples around position
            q/100 · (n - 1), counted from 0; numpy's default.

    Raises:
        InvalidRequest: The sample is too small for this percentile (see `requests_needed`), a
            value is not finite, or q or the method is not one.
    """
    ordered = finite(values)
    n, needed = len(ordered), requests_needed(q)
    p = q / 100
    if n < needed:
        raise InvalidRequest(
            f"{n} requests are too few for p{q:g}: with a chance of {p**n + (1 - p) ** n:.1%} they "
            "all lie on one side of it.",
            fix=f"Make {needed:,} requests or more, or draw the ECDF with its median and maximum.",
        )
    low, high = _interval(n, p)
    return Percentile(
        q,
        _estimate(ordered, q, method),
        float(ordered[low - 1]),
        float(ordered[high - 1]),
        n,
        method,
    )


def requests_needed(q: float) -> int:
    """Return how many requests it takes to be 95 % sure that pq lies between two of them.

    The smallest n with pⁿ + (1 - p)ⁿ ≤ 0.05, where p = q/100: the chances that all samples lie
    below the true percentile, and that all lie above. From p75 up the second one vanishes and what
    is left is n ≥ ln(0.05) / ln(p): 59 for p95, 299 for p99, 2,995 for p99.9.
    Source: S. S. Wilks, "Determination of Sample Sizes for Setting Tolerance Limits", Annals of
    Mathematical Statistics 12, 1941.

    Raises:
        InvalidRequest: q is not above 0 and below 100.
    """
    if not 0 < q < 100:
        raise InvalidRequest(
            f"q is {q!r}, and a percentile lies above 0 and below 100.",
            fix="Pass percent, such as 95. For the ends of the sample take min() and max().",
        )
    p, miss = q / 100, 1 - CONFIDENCE
    n = math.ceil(math.log(miss) / math.log(max(p, 1 - p)))
    while p**n + (1 - p) ** n > miss:
        n += 1
    return n


def finite(values: Iterable[float]) -> Floats:
    """Return the values in ascending order.

    Raises:
        InvalidRequest: There is none, or one is infinite or not a number. A request that failed
            before its first token has no TTFT: to leave it out is a decision to take in sight.
    """
    ordered = np.sort(np.fromiter(values, dtype=np.float64))
    if missing := int(np.count_nonzero(~np.isfinite(ordered))):
        raise InvalidRequest(
            f"{missing} of {len(ordered)} values are not finite: those requests have no such time.",
            fix="Look at samples.failures first; then take the column of samples.successes.",
        )
    if not len(ordered):
        raise InvalidRequest("There are no values.", fix="Make requests until there are some.")
    return ordered


def _estimate(ordered: Floats, q: float, method: Method) -> float:
    if method == "nearest-rank":
        rank = math.ceil(round(q * len(ordered) / 100, 9))  # 99.9 is not quite 99.9 in binary
        return float(ordered[rank - 1])
    if method == "linear":
        return float(np.percentile(ordered, q, method="linear"))
    raise InvalidRequest(
        f"method is {method!r}.", fix='Pass method="nearest-rank" or method="linear".'
    )


def _interval(n: int, p: float) -> tuple[int, int]:
    """Return the ranks, from 1, of the two samples between which the true percentile lies.

    How many of n samples fall below it is binomial, whatever the latencies' distribution, so the
    chance that it lies between the samples of rank l and u is P(l ≤ B < u), B ~ Bin(n, p).
    Each side may miss with half of 5 %; where a small sample can't do that on one side, the other
    side has to be surer.
    Source: W. J. Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2.
    """
    at_most = _binomial_cdf(n, p)
    miss = 1 - CONFIDENCE
    below = max(miss / 2, (1 - p) ** n)
    above = max(miss / 2, p**n)
    below, above = min(below, miss - above), min(above, miss - below)
    low = int(np.searchsorted(at_most, below, side="right"))
    high = int(np.searchsorted(at_most, 1 - above, side="left")) + 1
    return max(low, 1), min(high, n)


def _binomial_cdf(n: int, p: float) -> Floats:
    """Return P(B ≤ k) for k from 0 to n; in logarithms, as the factorials grow too large."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(k[1:]))))
    ways = log_factorial[n] - log_factorial - log_factorial[::-1]
    return np.cumsum(np.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p)))
