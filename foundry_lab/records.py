"""What the layers tell about their work: frozen records, handed to a hook.

A hook is any function that takes a record: ``list.append``, a logger, a plot. It must be quick and
must not raise. Times are seconds on the clock of the layer that tells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "Attempt",
    "CacheHit",
    "Call",
    "FirstToken",
    "GaveUp",
    "Hook",
    "Record",
    "StateChange",
    "Wait",
    "ignore",
    "to_all",
]

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call is over."""

    number: int
    """1 for the first."""
    began: float
    ended: float
    outcome: str
    """The status, such as ``200``, or the name of the error, such as ``ReadTimeout``."""
    call: str = ""
    """The id of the call it belongs to, the same in all its records."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Before the next attempt the call waits."""

    attempt: int
    """The attempt that failed."""
    seconds: float
    reason: Literal["backoff", "Retry-After"]
    call: str = ""


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A failure that could have been retried was not."""

    attempts: int
    reason: Literal["attempts", "body", "budget", "deadline", "patience"]
    """What ran out. ``body``: the request's was a generator, and what it gave is gone;
    ``patience``: the server asks for a wait beyond the policy's ``longest_wait``."""
    call: str = ""


@dataclass(frozen=True, slots=True)
class StateChange:
    """A breaker changed its state."""

    key: str
    """What it watches: endpoint and model."""
    old: State
    new: State
    at: float


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The first content of a streamed answer arrived."""

    seconds: float
    """Since the call began: the TTFT, all attempts and waits included."""
    call: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """A whole call is over: an answer, or the end of all attempts."""

    began: float
    ended: float
    outcome: str
    """``ok``, ``left`` when its caller did not want the rest, or the name of the error."""
    tokens: int
    """Tokens of the answer as the service counts them; 0 when that is not known."""
    call: str = ""


@dataclass(frozen=True, slots=True)
class CacheHit:
    """A call was answered without the service."""

    call: str = ""


Record = Attempt | Wait | GaveUp | StateChange | FirstToken | Call | CacheHit
Hook = Callable[[Record], None]


def ignore(_: Record) -> None:
    """The hook of those who do not want to know."""


def to_all(*hooks: Hook) -> Hook:
    """Make one hook that hands each record to several."""

    def tell(record: Record) -> None:
        for hook in hooks:
            hook(record)

    return tell
