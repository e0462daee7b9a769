"""Measuring side by side: in one run and in turns, so that what disturbs one disturbs all."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any, Literal

__all__ = ["Contestant", "Row", "Samples", "Target", "in_turns", "on_one_loop", "second"]

Contestant = Callable[[], float]
"""Does its work once and returns what was measured."""

Samples = Mapping[str, Sequence[float]]
"""Contestant → what was measured, one value a round."""

Target = tuple[Literal["≤", "≥"], float]
"""What the ratio should be at most, or at least."""


@dataclass(frozen=True)
class Row:
    """One line of the table: ours against another."""

    what: str
    ours: float
    other: str
    """What it is compared with."""
    theirs: float
    unit: str
    ratio: float
    """Ours divided by theirs: the median of the rounds' ratios, each of two runs close together. So
    it stays what it is when the machine gets faster or slower meanwhile."""
    spread: tuple[float, float]
    """Where the middle half of these ratios lies."""
    target: Target | None
    n: int
    """Rounds."""

    @classmethod
    def of(
        cls,
        what: str,
        samples: Samples,
        ours: str,
        other: str,
        unit: str,
        target: Target | None = None,
    ) -> "Row":
        """Compare two of the contestants, round by round."""
        mine, theirs = median(samples[ours]), median(samples[other])
        ratios = [a / b for a, b in zip(samples[ours], samples[other], strict=True)]
        low, ratio, high = quantiles(ratios, method="inclusive")
        return cls(what, mine, other, theirs, unit, ratio, (low, high), target, len(ratios))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.target is None:
            return None
        sign, bound = self.target
        return self.ratio <= bound if sign == "≤" else self.ratio >= bound


def in_turns(rounds: int, contestants: Mapping[str, Contestant]) -> Samples:
    """Let the contestants take turns for that many rounds, each round begun by another one.

    One round more comes first and is not counted: it opens connections and fills caches.
    """
    names = list(contestants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            value = contestants[name]()
            if number:
                samples[name].append(value)
    return samples


def on_one_loop(
    runner: asyncio.Runner, work: Callable[[], Coroutine[Any, Any, float]]
) -> Contestant:
    """Make a contestant of a coroutine function. Its connections live as long as the runner."""
    return lambda: runner.run(work())


def second(contestant: Contestant) -> Contestant:
    """Make a contestant that has two turns in a row, of which the second counts."""

    def two_in_a_row() -> float:
        contestant()
        return contestant()

    return two_in_a_row
