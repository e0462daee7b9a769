"""Circuit breaker: stop calling what does not work, and find out when it does again.

`Breaker` is the state machine: it is told the time and how calls ended, and does nothing else.
`BreakerTransport` asks it before each request and tells it afterwards.
"""

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Literal

import httpx

from foundry_lab.clock import REAL, Clock
from foundry_lab.errors import BreakerOpen, InvalidRequest, QueueFull
from foundry_lab.layers import Layer, WatchedBody, is_event_stream, watch
from foundry_lab.records import Hook, State, StateChange, ignore
from foundry_lab.sse import Decoder

__all__ = ["Breaker", "BreakerPolicy", "BreakerTransport", "Outcome", "Permit"]

OWN_ERRORS = (QueueFull, httpx.PoolTimeout, httpx.LocalProtocolError, httpx.UnsupportedProtocol)
"""Errors on the way to the service, which say nothing about it."""

LAST_WORDS = 2_000
"""Bytes of a stream's end that are looked at."""

TICK = time.get_clock_info("monotonic").resolution
"""Seconds by which a timer may fire early: 16 ms on Windows."""

Outcome = Literal["success", "failure", "neutral"]
"""``neutral``: the call says nothing about the service, such as one that its caller cancelled."""


@dataclass(frozen=True)
class BreakerPolicy:
    """When to open, and how to come back. All times are in seconds.

    The names follow Polly and resilience4j, whose defaults wait for 100 calls: too many for one
    person's machine.

    Raises:
        InvalidRequest: A number is out of range.
    """

    failure_ratio: float = 0.5
    """Open when at least this part of the calls in the window failed, above 0 and up to 1."""
    slow_ratio: float = 1.0
    """Open when at least this part of them was slow."""
    slow_after: float = float("inf")
    """A call that takes longer, from the request to the end of the answer, is slow."""
    minimum_throughput: int = 10
    """Calls in the window below which no ratio counts: one failure of one call is not 100 %."""
    window: float = 30.0
    """How long a call counts."""
    break_duration: float = 5.0
    """How long it stays open before it lets probes through."""
    probes: int = 2
    """Calls let through in half-open. All must succeed to close; one failure opens again."""
    lease: float = 60.0
    """A probe that has not come back by then has lost its place to another one."""

    def __post_init__(self) -> None:
        ratios = 0 < self.failure_ratio <= 1 and 0 < self.slow_ratio <= 1
        counts = self.minimum_throughput >= 1 and self.probes >= 1
        times = (self.slow_after, self.window, self.break_duration, self.lease)
        if not (ratios and counts and all(seconds > 0 for seconds in times)):
            raise InvalidRequest(
                f"No breaker can follow {self}.",
                fix="Ratios lie above 0 and up to 1, counts from 1, times above 0.",
            )


@dataclass(slots=True, eq=False)
class Permit:
    """The right to make one call; bring it back with how the call ended."""

    generation: int
    began: float
    settled: bool = False


class Breaker:
    """The state machine of one circuit breaker.

    Each change of state begins a new generation, and a result of an earlier one is ignored: a call
    sent before the outage says nothing about what came after. ``now`` is always a monotonic time in
    seconds.

    Args:
        policy: When to open and close.
        key: What it watches, for its `StateChange` records.
        hook: Is told each change of state.
    """

    def __init__(self, policy: BreakerPolicy, key: str = "", hook: Hook = ignore) -> None:
        self.policy = policy
        self.key = key
        self.state: State = "closed"
        self._hook = hook
        self._generation = 0
        self._changed = 0.0
        self._calls = deque[tuple[float, bool, bool]]()  # when it ended, failed, slow
        self._failed = self._slow = 0
        self._probes = dict[Permit, float]()  # probes under way, and when their lease is over
        self._good_probes = 0
        self.last_failure = ""
        """What the failure or slow call that was settled last was, in words."""

    def admit(self, now: float) -> Permit | None:
        """Ask to make a call; None means no."""
        if self.state == "open" and now >= self._changed + self.policy.break_duration:
            self._change("half-open", now)
        if self.state == "open":
            return None
        permit = Permit(self._generation, now)
        if self.state == "half-open":
            self._expire_leases(now)
            if self._good_probes + len(self._probes) >= self.policy.probes:
                return None
            self._probes[permit] = now + self.policy.lease
        return permit

    def settle(self, permit: Permit, outcome: Outcome, now: float, why: str = "") -> None:
        """Say how the call with this permit ended. A permit counts once.

        `why` is kept as `last_failure`, for the message of those who are refused.
        """
        if permit.settled or permit.generation != self._generation:
            return
        permit.settled = True
        if outcome == "failure":
            self.last_failure = why
        elif outcome == "success" and self._is_slow(permit, now):
            self.last_failure = "too slow"
        if self.state == "half-open":
            self._settle_probe(permit, outcome, now)
        elif outcome != "neutral":
            self._count(now, failed=outcome == "failure", slow=self._is_slow(permit, now))
            self._open_if_due(now)

    def retry_in(self, now: float) -> float:
        """Return the seconds until a call may be let through: 0 if one may be now.

        In half-open that is when a probe's lease is over; if a probe comes back it is earlier.
        """
        if self.state == "open":
            return max(0.0, self._changed + self.policy.break_duration - now)
        return max(0.0, min(self._probes.values(), default=now) - now)

    def _settle_probe(self, permit: Permit, outcome: Outcome, now: float) -> None:
        if self._probes.pop(permit, None) is None:  # its lease was over
            return
        if outcome == "failure" or (outcome == "success" and self._is_slow(permit, now)):
            self._change("open", now)
        elif outcome == "success":
            self._good_probes += 1
            if self._good_probes == self.policy.probes:
                self._change("closed", now)

    def _is_slow(self, permit: Permit, now: float) -> bool:
        return now - permit.began > self.policy.slow_after

    def _count(self, now: float, *, failed: bool, slow: bool) -> None:
        self._calls.append((now, failed, slow))
        self._failed += failed
        self._slow += slow
        while self._calls[0][0] <= now - self.policy.window:
            _, failed, slow = self._calls.popleft()
            self._failed -= failed
            self._slow -= slow

    def _open_if_due(self, now: float) -> None:
        n = len(self._calls)
        if n >= self.policy.minimum_throughput and (
            self._failed / n >= self.policy.failure_ratio  # 0.28 * 25 is a little more than 7
            or self._slow / n >= self.policy.slow_ratio
        ):
            self._change("open", now)

    def _expire_leases(self, now: float) -> None:
        self._probes = {probe: end for probe, end in self._probes.items() if end > now}

    def _change(self, state: State, now: float) -> None:
        old, self.state = self.state, state
        self._generation += 1
        self._changed = now
        self._calls.clear()
        self._failed = self._slow = self._good_probes = 0
        self._probes.clear()
        self._hook(StateChange(self.key, old, state, now))


class BreakerTransport(Layer):
    """Asks a breaker before each request and settles it once, at the end of the answer.

    There is one breaker for each endpoint and model, so that a model that does not work leaves the
    others alone. Put the retry outside: each attempt asks, and `BreakerOpen` ends the retrying.

    A status from 500 up, a broken connection, a timeout and a missed deadline are failures. 4xx are
    not: 429 is neutral, the others are answers. What its caller cancelled or closed is neutral, and
    so is what did not get as far as the service, such as a call that a `ConcurrencyLimit` inside
    kept waiting until its deadline. A chat's stream that ends without ``[DONE]`` is broken, however
    politely; one that ends with an error event is an answer, like 4xx: Foundry Local reports a
    prompt that is too long in this way.

    Args:
        inner: The next transport.
        policy: When to open and close.
        clock: Where the time comes from, that of ``extensions["deadline"]`` too.
        hook: Is told each `StateChange`.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: BreakerPolicy | None = None,
        *,
        clock: Clock = REAL,
        hook: Hook = ignore,
    ) -> None:
        super().__init__(inner)
        self.policy = policy or BreakerPolicy()
        self.breakers: dict[str, Breaker] = {}
        self._clock = clock
        self._hook = hook

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, or refuse it.

        Raises:
            BreakerOpen: The breaker does not let it through.
        """
        breaker = self._breaker(_key(request))
        if (permit := breaker.admit(self._clock.now())) is None:
            raise self._refusal(breaker)
        try:
            response = await self.inner.handle_async_request(request)
        except BaseException as error:
            self._settle(breaker, permit, request, 0, error)
            raise
        settle = partial(self._settle, breaker, permit, request, response.status_code)
        watch(response, settle, _ChatStream if _streams_chat(response, request) else WatchedBody)
        return response

    def _breaker(self, key: str) -> Breaker:
        if key not in self.breakers:
            self.breakers[key] = Breaker(self.policy, key, self._hook)
        return self.breakers[key]

    def _settle(
        self,
        breaker: Breaker,
        permit: Permit,
        request: httpx.Request,
        status: int,
        error: BaseException | None,
    ) -> None:
        now = self._clock.now()
        sent = not request.extensions.get("queued")
        missed = sent and now + TICK >= request.extensions.get("deadline", float("inf"))
        outcome, why = _judged(status, error, missed_deadline=missed)
        breaker.settle(permit, outcome, now, why)

    def _refusal(self, breaker: Breaker) -> BreakerOpen:
        seconds = breaker.retry_in(self._clock.now())
        return BreakerOpen(
            f"Not sent: the breaker of {breaker.key} is {breaker.state}, as too many calls failed "
            f"(the last one: {breaker.last_failure}).",
            fix=f"See why they failed. A probe may go through within {seconds:.1f} s.",
            retry_in=seconds,
        )


class _ChatStream(WatchedBody):
    """A stream that has said all ends with [DONE] or an error; any other end is a broken one."""

    _last = b""

    async def _next(self) -> bytes:
        try:
            packet = await super()._next()
        except StopAsyncIteration:
            if not self._said_all():
                self._end(httpx.RemoteProtocolError("no [DONE]"))
            raise
        self._last = (self._last + packet)[-LAST_WORDS:]
        if b"[DONE]" in self._last and self._said_all():
            self._end(None)  # the end of the body may be long in coming
        return packet

    def _said_all(self) -> bool:
        said = [event.data for event in Decoder().feed(self._last)]
        return any(data == "[DONE]" or data.startswith('{"error"') for data in said)


def _streams_chat(response: httpx.Response, request: httpx.Request) -> bool:
    chat = request.url.path.endswith("/chat/completions")
    return chat and response.is_success and is_event_stream(response)


def _judged(
    status: int, error: BaseException | None, *, missed_deadline: bool
) -> tuple[Outcome, str]:
    """Say how a call ended, and of a failure what it was."""
    if status >= 500:
        return "failure", f"status {status}"
    if status == 429 or isinstance(error, OWN_ERRORS):
        return "neutral", ""
    if error is None:
        return "success", ""
    if isinstance(error, Exception):
        return "failure", type(error).__name__
    if missed_deadline and isinstance(error, asyncio.CancelledError):
        return "failure", "deadline missed"  # the layer that keeps it cancels
    return "neutral", ""  # the caller left, or Ctrl-C


def _key(request: httpx.Request) -> str:
    """Name the endpoint and the model, such as ``http://127.0.0.1:5273 lab-tiny:1``."""
    url = request.url
    try:
        model = json.loads(request.content)["model"]
    except (httpx.RequestNotRead, ValueError, LookupError, TypeError, RecursionError):
        model = ""
    return f"{url.scheme}://{url.netloc.decode()} {model}".rstrip()
