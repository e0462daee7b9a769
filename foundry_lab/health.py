"""Is the service well? One record that says so, and why not; and a monitor that keeps asking."""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Literal, Self

import psutil

__all__ = ["Health", "HealthMonitor", "memory_of", "runtime_version"]


@dataclass(frozen=True)
class Health:
    """What one check found."""

    status: Literal["ok", "degraded", "down"]
    """``ok``: it answered a chat. ``degraded``: it runs, but has no model loaded, or the chat
    failed. ``down``: it gave no answer, or not one that Foundry Local gives."""
    reason: str
    """Why it is not ok; empty when it is."""
    loaded_models: list[str] = field(default_factory=list)
    """Ids of the models in memory."""
    memory_usage: float | None = None
    """Megabytes (10⁶ bytes) that the service's process holds in memory; None when not known."""
    ttft: float | None = None
    """Seconds to the first token of a chat of one token; None when there was none."""
    version: str | None = None
    """Version of the runtime; None for a service that this program did not start."""


def memory_of(pid: int) -> float | None:
    """Return the resident memory of a process on this machine in megabytes, None if it is gone."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
        return round(resident / 1e6, 1)
    except (psutil.Error, ValueError):
        return None


def runtime_version() -> str | None:
    """Return the version of Foundry Local that services of this program run on."""
    try:
        return version("foundry-local-sdk")
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class Observation:
    """One check of a monitor."""

    at: float
    """Seconds since the monitor began."""
    health: Health


class HealthMonitor:
    """Checks again and again, remembers what it found, and tells when the status changes.

    One check at a time, and each with a deadline: a monitor must not become the outage. The pauses
    vary, so that many monitors do not check in step.

    ``async with HealthMonitor(client.health_check) as monitor: …``

    Args:
        check: What to ask, such as `FoundryAPIClient.health_check`.
        interval: Seconds between the end of one check and the next, give or take a tenth.
        history: How many checks to remember.
        on_change: Is told the old status, None at first, and what was found.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[Health]],
        *,
        interval: float = 10.0,
        history: int = 1000,
        on_change: Callable[[Health | None, Health], None] = lambda _old, _new: None,
    ) -> None:
        self.history: deque[Observation] = deque(maxlen=history)
        self._check = check
        self._interval = interval
        self._on_change = on_change
        self._began = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    @property
    def latest(self) -> Health | None:
        """What the last check found; None before the first."""
        return self.history[-1].health if self.history else None

    async def __aenter__(self) -> Self:
        self._began = time.monotonic()
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled() and (failure := self._task.exception()):
                raise failure

    async def observe(self) -> Health:
        """Check now, and remember it."""
        new = await self._check()
        old = self.latest
        self.history.append(Observation(time.monotonic() - self._began, new))
        if old is None or old.status != new.status:
            self._on_change(old, new)
        return new

    async def _run(self) -> None:
        while True:
            await self.observe()
            spread = random.uniform(0.9, 1.1)  # noqa: S311 - spreads load, guards nothing
            await asyncio.sleep(self._interval * spread)
