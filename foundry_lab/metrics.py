"""Metrics and logs: two hooks that listen to what the layers tell.

`Metrics` counts, for widgets and plots to read. `log` writes a line per attempt to the logger
``foundry_lab``: never a key, a prompt or an answer.
"""

import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable

from foundry_lab.records import (
    Attempt,
    CacheHit,
    Call,
    FirstToken,
    GaveUp,
    Record,
    StateChange,
    Wait,
)

__all__ = ["Histogram", "Metrics", "log"]

LOGGER = logging.getLogger("foundry_lab")
LOGGER.addHandler(logging.NullHandler())  # a library is silent until its user asks


class Histogram:
    """Counts values in buckets that grow by a tenth each, so every value is known to 5 %.

    It needs the same memory for ten values as for ten million. Values are above 0; smaller ones
    than a microsecond count as that.
    """

    GROWTH = 1.1

    def __init__(self) -> None:
        self.n = 0
        self._buckets = Counter[int]()

    def add(self, value: float) -> None:
        """Count one value."""
        self.n += 1
        self._buckets[round(math.log(max(value, 1e-6), self.GROWTH))] += 1

    def quantile(self, q: float) -> float | None:
        """Return the value that a share `q`, 0 to 1, stays at or below; None without values."""
        wanted = max(1, math.ceil(q * self.n))
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return float(self.GROWTH**bucket)
        return None


class Metrics:
    """A hook that counts.

    Args:
        now: Seconds on the clock of the records.
        window: Seconds that `rate` looks back.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic, window: float = 10.0) -> None:
        self.calls = Counter[str]()
        """Finished calls by outcome."""
        self.attempts = Counter[str]()
        """Attempts by outcome."""
        self.requests = 0
        """First attempts: calls, and what they looked up."""
        self.retries = Counter[str]()
        """Waits before a retry by reason."""
        self.given_up = Counter[str]()
        """Failures that were not retried, by what ran out."""
        self.cache_hits = 0
        self.tokens = 0
        self.breakers: dict[str, str] = {}
        """State of each breaker that ever changed its state."""
        self.ttft = Histogram()
        """Seconds to the first token."""
        self.latency = Histogram()
        """Seconds of the calls that were answered."""
        self._now = now
        self._window = window
        self._ended = deque[float](maxlen=100_000)

    def __call__(self, record: Record) -> None:
        """Count a record."""
        match record:
            case Attempt():
                self.attempts[record.outcome] += 1
                self.requests += record.number == 1
            case Wait():
                self.retries[record.reason] += 1
            case GaveUp():
                self.given_up[record.reason] += 1
            case StateChange():
                self.breakers[record.key] = record.new
            case FirstToken():
                self.ttft.add(record.seconds)
            case CacheHit():
                self.cache_hits += 1
            case Call():
                self._count_call(record)

    @property
    def rate(self) -> float:
        """Calls that ended per second, over the last `window` seconds."""
        start = self._now() - self._window
        while self._ended and self._ended[0] < start:
            self._ended.popleft()
        return len(self._ended) / self._window

    def _count_call(self, call: Call) -> None:
        self.calls[call.outcome] += 1
        self.tokens += call.tokens
        self._ended.append(call.ended)
        if call.outcome == "ok":
            self.latency.add(call.ended - call.began)


def log(record: Record) -> None:
    """Write a record to the logger ``foundry_lab``."""
    match record:
        case Attempt():
            took = (record.ended - record.began) * 1000
            LOGGER.info(
                "call %s attempt %d: %s, %.0f ms", record.call, record.number, record.outcome, took
            )
        case Wait():
            LOGGER.info("call %s waits %.2f s: %s", record.call, record.seconds, record.reason)
        case GaveUp():
            LOGGER.warning("call %s gave up: no %s left", record.call, record.reason)
        case StateChange():
            LOGGER.warning("breaker of %s: %s → %s", record.key, record.old, record.new)
        case FirstToken():
            LOGGER.debug("call %s first token: %.0f ms", record.call, record.seconds * 1000)
        case CacheHit():
            LOGGER.debug("call %s from the cache", record.call)
        case Call():
            took = record.ended - record.began
            LOGGER.info(
                "call %s %s, %.2f s, %d tokens", record.call, record.outcome, took, record.tokens
            )
