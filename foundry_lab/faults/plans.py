"""Which request meets which fault: a plan is any iterable of faults, and after its end all pass."""

import itertools
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from math import fsum
from typing import Any

from foundry_lab.errors import InvalidRequest, nearest_names
from foundry_lab.faults.kinds import Fault, Pass, Refuse

__all__ = ["KINDS", "Always", "Mix", "Script", "plan_from"]

KINDS = {kind.__name__: kind for kind in Fault.__subclasses__()}
"""Every kind of fault by its name."""


@dataclass(frozen=True)
class Script:
    """A plan: one fault for each request, in order, then none."""

    faults: Sequence[Fault]

    def __post_init__(self) -> None:
        _check(*self.faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)


@dataclass(frozen=True)
class Always:
    """A plan: the same fault for every request."""

    fault: Fault

    def __post_init__(self) -> None:
        _check(self.fault)

    def __iter__(self) -> Iterator[Fault]:
        return itertools.repeat(self.fault)


@dataclass(frozen=True)
class Mix:
    """A plan: a fault drawn at random for each request.

    Raises:
        InvalidRequest: The shares are no parts of 1, or one is of `Refuse`, which would not end.
    """

    shares: Mapping[Fault, float]
    """The share of the requests, from 0 to 1, that each fault gets; the rest passes."""
    seed: int = 0
    """Same seed, same faults in the same order."""

    def __post_init__(self) -> None:
        _check(*self.shares)
        shares = self.shares.values()
        numbers = all(isinstance(share, (int, float)) and share >= 0 for share in shares)
        if not numbers or fsum(shares) > 1 or Refuse() in self.shares:
            raise InvalidRequest(
                f"{self.shares} can't be mixed.",
                fix="Give each fault but Refuse a share from 0 to 1, no more than 1 together.",
            )

    def __iter__(self) -> Iterator[Fault]:
        draw = random.Random(self.seed)  # noqa: S311 - nothing secret
        weights = [*self.shares.values(), 1 - fsum(self.shares.values())]
        while True:
            yield from draw.choices([*self.shares, Pass()], weights)


def _check(*faults: object) -> None:
    for fault in faults:
        if not isinstance(fault, Fault):
            raise InvalidRequest(f"{fault!r} is not a fault.", fix="Use one such as Status(503).")


def plan_from(texts: Sequence[str], seed: int = 0) -> Iterable[Fault]:
    """Read a plan from a command line's ``NAME[:field=value,…][@share]``.

    With shares it is a `Mix`; without, the faults take turns.

    Raises:
        InvalidRequest: There is no such fault, field or mix.
    """
    faults = [_fault_from(text.partition("@")[0]) for text in texts]
    shares = [_value(text.partition("@")[2]) for text in texts if "@" in text]
    if not shares:
        return itertools.cycle(faults)
    if len(shares) < len(faults):
        raise InvalidRequest(
            f"{' '.join(texts)}: some have a share, some have none.",
            fix="Give each of them a share, such as Status@0.1, or none.",
        )
    return Mix(dict(zip(faults, shares, strict=True)), seed)


def _fault_from(text: str) -> Fault:
    name, _, arguments = text.partition(":")
    if name not in KINDS:
        raise InvalidRequest(f"There is no fault {name!r}.", fix=nearest_names(name, KINDS))
    pairs = [pair.partition("=") for pair in re.split(r",(?=\w+=)", arguments) if pair]
    known = [field.name for field in fields(KINDS[name])]
    if wrong := [key for key, _, _ in pairs if key not in known]:
        fix = nearest_names(wrong[0], known) if known else f"Write just {name}."
        raise InvalidRequest(f"{name} has no {wrong[0]!r}.", fix=fix)
    return KINDS[name](**{key: _value(value) for key, _, value in pairs})


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
