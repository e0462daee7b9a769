"""Time as an argument: the real clock, and one that jumps over every wait.

Whoever waits takes a `Clock`. So a lesson can show a two-minute backoff in a millisecond, with
numbers that are exact and the same in every run.
"""

import asyncio
import heapq
import time
from typing import Protocol

__all__ = ["REAL", "Clock", "RealClock", "VirtualClock"]


class Clock(Protocol):
    """What tells the time and waits."""

    def now(self) -> float:
        """Return seconds on a clock that never goes back; its zero means nothing."""

    async def sleep(self, seconds: float) -> None:
        """Wait for that many seconds."""


class RealClock:
    """The monotonic clock, the one that asyncio uses. The wall clock can jump: never wait by it."""

    def now(self) -> float:
        """Return seconds since some moment in the past."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


REAL = RealClock()


class VirtualClock:
    """A clock that stands still while anything happens and jumps to the next one who waits.

    Several tasks may wait at once: they go on in the order of their times. It can't know of waits
    that do not go through it: a call over a real socket takes no time on this clock.
    """

    SETTLING = 10  # rounds of the event loop in which others may say how long they wait

    def __init__(self) -> None:
        self._now = 0.0
        self._wakes: list[tuple[float, int]] = []
        self._count = 0

    def now(self) -> float:
        """Return virtual seconds since the clock was made."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Let that much time pass at once."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Wait in virtual time: as soon as nobody else has to be woken earlier."""
        self._count += 1
        wake = (self._now + seconds, self._count)
        heapq.heappush(self._wakes, wake)
        try:
            is_next = was_next = False
            while not (is_next and was_next):  # since it became next, others had their say
                was_next = self._wakes[0] == wake
                await self._settle()
                is_next = self._wakes[0] == wake
            self._now = max(self._now, wake[0])
        finally:
            self._wakes.remove(wake)
            heapq.heapify(self._wakes)

    async def _settle(self) -> None:
        for _ in range(self.SETTLING):
            await asyncio.sleep(0)
