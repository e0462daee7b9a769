"""Answers to the exercises of lesson 04: other right ones, and typical wrong ones."""

import random

from answers import Answers


def _ceiling(retry: int, base: float, cap: float) -> float:
    return float(min(cap, base * 2**retry))


def _scaled(retry: int, base: float, cap: float, rng: random.Random) -> float:
    return rng.random() * _ceiling(retry, base, cap)


ANSWERS = {
    "04-1": Answers(
        right=[_scaled],
        wrong={
            "no jitter": (lambda r, b, c, rng: _ceiling(r, b, c), "every one was"),
            "no cap": (lambda r, b, c, rng: rng.uniform(0, b * 2**r), "the longest was"),
            "equal jitter": (
                lambda r, b, c, rng: _ceiling(r, b, c) * (0.5 + rng.random() / 2),
                "they lay between",
            ),
        },
    ),
}
