"""Graders for the exercises of lesson 04: retry and backoff."""

import random
from collections.abc import Callable
from typing import Any

from foundry_lab.checks.bench import expect, value_of

__all__ = ["GRADERS"]


def full_jitter(backoff: Callable[..., Any]) -> None:
    """04-1: waits between 0 and min(cap, base · 2^retry), drawn from the generator."""
    rng, draws = random.Random(1), 400
    for retry, ceiling in ((0, 0.5), (3, 4.0), (9, 8.0)):
        tried = f"{draws} waits before retry {retry}, with base 0.5 s and cap 8 s"
        waits = [value_of(backoff, retry, 0.5, 8.0, rng, tried=tried) for _ in range(draws)]
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


GRADERS: dict[str, Callable[[Any], None]] = {"04-1": full_jitter}
