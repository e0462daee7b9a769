"""Retry: what may be tried again, how long to wait before it, and when to stop.

The policy is plain functions and records. `RetryTransport` is the loop that follows it.
"""

import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from typing import Literal, get_args

import httpx

from foundry_lab.answers import MAX_BODY
from foundry_lab.chunks import ChunkDecoder, text_of
from foundry_lab.clock import REAL, Clock
from foundry_lab.errors import InvalidRequest
from foundry_lab.layers import Layer, drain, is_event_stream
from foundry_lab.records import Attempt, GaveUp, Hook, Wait, ignore

__all__ = [
    "RETRYABLE_ERRORS",
    "RETRYABLE_STATUSES",
    "Jitter",
    "RetryBudget",
    "RetryPolicy",
    "RetryTransport",
    "backoff_delays",
    "retry_after",
]

RETRYABLE_ERRORS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)
"""Not all of ``httpx.TransportError``: an open breaker is one too, and must end the retrying."""

RETRYABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
"""The server may answer otherwise in a moment. 400 or 404 will be the same again; 500 says too
little to repeat work on it."""

Jitter = Literal["none", "full", "equal", "decorrelated"]


def backoff_delays(
    base: float = 0.1,
    cap: float = 5.0,
    jitter: Jitter = "full",
    rng: random.Random | None = None,
) -> Iterator[float]:
    """Yield how many seconds to wait before the first retry, the second, and so on without end.

    With ``expo(n) = min(cap, base · 2ⁿ)`` the wait is ``expo`` (none), ``U(0, expo)`` (full),
    ``expo/2 + U(0, expo/2)`` (equal), or ``min(cap, U(base, 3 · previous))`` (decorrelated).
    Source: Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

    Args:
        base: Seconds of the first wait without jitter.
        cap: Most seconds of one wait.
        jitter: How chance spreads the waits.
        rng: Where the chance comes from; seed it and the waits repeat.
    """
    rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
    expo, previous = min(cap, base), base
    while True:
        if jitter == "full":
            yield rng.uniform(0, expo)
        elif jitter == "equal":
            yield expo / 2 + rng.uniform(0, expo / 2)
        elif jitter == "decorrelated":
            previous = min(cap, rng.uniform(base, 3 * previous))
            yield previous
        else:
            yield expo
        expo = min(cap, 2 * expo)


def retry_after(value: str | None, now: datetime) -> float | None:
    """Return the seconds that a ``Retry-After`` header asks for, None if it can't be read.

    Source: RFC 9110, section 10.2.3: either seconds or an HTTP date.

    Args:
        value: The header's text.
        now: The wall clock's time with its time zone, which a date is compared with.
    """
    value = (value or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - now).total_seconds())


class RetryBudget:
    """Lets retries be only a fraction of the calls, so that an outage is not multiplied.

    Every call puts `ratio` of a token in, every retry takes a whole one out. After n calls there
    were at most ``reserve + ratio · n`` retries. Share one budget among all calls to a service.
    Source: "Handling Overload", Site Reliability Engineering, chapter 21 (retries under 10 %); the
    pot of tokens is that of Finagle's RetryBudget.

    Args:
        ratio: Retries allowed per call.
        reserve: Tokens at the start, and the most that can be saved.
    """

    def __init__(self, ratio: float = 0.1, reserve: float = 10.0) -> None:
        self.ratio = ratio
        self.reserve = reserve
        self.tokens = reserve

    def deposit(self) -> None:
        """Count one call."""
        self.tokens = min(self.reserve, self.tokens + self.ratio)

    def withdraw(self) -> bool:
        """Take one retry out; False if there is none left."""
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass(frozen=True)
class RetryPolicy:
    """How often to try, and how long to wait in between.

    Raises:
        InvalidRequest: A number is out of range, or there is no such jitter.
    """

    attempts: int = 4
    """Attempts in all, the first one included."""
    base: float = 0.1
    """Seconds; see `backoff_delays`."""
    cap: float = 5.0
    """Seconds; see `backoff_delays`."""
    jitter: Jitter = "full"
    longest_wait: float = 60.0
    """Seconds: a ``Retry-After`` that asks for more ends the retrying."""

    def __post_init__(self) -> None:
        in_range = self.attempts >= 1 and 0 <= self.base <= self.cap and self.longest_wait >= 0
        if not (in_range and self.jitter in get_args(Jitter)):
            raise InvalidRequest(
                f"No retrying can follow {self}.",
                fix="attempts ≥ 1, 0 ≤ base ≤ cap, 0 ≤ longest_wait, jitter none, full, equal or "
                "decorrelated.",
            )

    def delays(self, rng: random.Random | None = None) -> Iterator[float]:
        """Yield this policy's `backoff_delays`."""
        return backoff_delays(self.base, self.cap, self.jitter, rng)


class RetryTransport(Layer):
    """Repeats a request until it is answered, or until attempts, time or budget run out.

    A stream is handed over at its first content: before it a retry is invisible, after it a retry
    would repeat text (gRPC proposal A6 calls this "committed"). Any other answer, and a stream sent
    with ``extensions={"commit": "end"}``, is read whole first.

    A request may carry ``extensions={"deadline": t}``, a time of `clock` that no wait goes beyond,
    and ``"call"``, an id for the records. A body that can be read only once is not retried.
    ``response.extensions["attempts"]``, and the same of ``error.request``, counts the attempts.
    ``error.request.extensions["content"]`` has the text of the last attempt that brought any and
    broke before it was handed over.

    Args:
        inner: The next transport.
        policy: How often and how long.
        budget: Shared among all that call the service; one of its own by default.
        clock: Where the time comes from.
        rng: Where the jitter comes from.
        hook: Is told every `Attempt`, `Wait` and `GaveUp`.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        policy: RetryPolicy | None = None,
        *,
        budget: RetryBudget | None = None,
        clock: Clock = REAL,
        rng: random.Random | None = None,
        hook: Hook = ignore,
    ) -> None:
        super().__init__(inner)
        self.policy = policy or RetryPolicy()
        self.budget = budget or RetryBudget()
        self._clock = clock
        self._rng = rng or random.Random()  # noqa: S311 - spreads load, guards nothing
        self._hook = hook

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, again if need be; raise or return what the last attempt brought."""
        self.budget.deposit()
        call = request.extensions.get("call", "")
        delays = self.policy.delays(self._rng)
        for number in count(1):
            request.extensions["attempts"] = number
            began = self._clock.now()
            outcome: httpx.Response | Exception
            try:
                outcome = await self._attempt(request)
            except BaseException as error:
                self._hook(Attempt(number, began, self._clock.now(), type(error).__name__, call))
                if not isinstance(error, RETRYABLE_ERRORS):
                    raise
                outcome = error
            else:
                status = outcome.status_code
                self._hook(Attempt(number, began, self._clock.now(), str(status), call))
                if status not in RETRYABLE_STATUSES:
                    break
            wait = self._next_wait(number, next(delays), request, outcome)
            if wait is None:
                break
            if isinstance(outcome, httpx.Response):
                await outcome.aclose()  # one that was not read to its end holds a connection
            await self._clock.sleep(wait)
        if isinstance(outcome, Exception):
            raise outcome
        outcome.extensions["attempts"] = number
        return outcome

    async def _attempt(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        whole, read = request.extensions.get("commit") == "end", list[bytes]()
        try:
            await commit(response, read, whole=whole)
        except BaseException:
            if text := text_of(read):
                request.extensions["content"] = text
            await response.aclose()
            raise
        return response

    def _next_wait(
        self,
        attempts: int,
        backoff: float,
        request: httpx.Request,
        failed: httpx.Response | Exception,
    ) -> float | None:
        """Decide how long to wait before the next attempt; None if there must not be one."""
        header = failed.headers.get("retry-after") if isinstance(failed, httpx.Response) else None
        floor = retry_after(header, datetime.now(UTC))
        wait = backoff + (floor or 0.0)
        deadline = request.extensions.get("deadline")
        call = request.extensions.get("call", "")
        if attempts >= self.policy.attempts:
            self._hook(GaveUp(attempts, "attempts", call))
        elif not _repeatable(request):
            self._hook(GaveUp(attempts, "body", call))
        elif deadline is not None and self._clock.now() + wait >= deadline:
            self._hook(GaveUp(attempts, "deadline", call))
        elif (floor or 0.0) > self.policy.longest_wait:
            self._hook(GaveUp(attempts, "patience", call))
        elif not self.budget.withdraw():
            self._hook(GaveUp(attempts, "budget", call))
        else:
            self._hook(Wait(attempts, wait, "backoff" if floor is None else "Retry-After", call))
            return wait
        return None


def _repeatable(request: httpx.Request) -> bool:
    try:
        return isinstance(request.content, bytes)
    except httpx.RequestNotRead:  # a generator: what it gave is gone
        return False


async def commit(response: httpx.Response, read: list[bytes], *, whole: bool) -> None:
    """Read the body up to where the caller may see it, and put what was read in front of the rest.

    Args:
        response: An answer of which nothing was read yet.
        read: An empty list for the packets: who waits has them, too, when an error ends this.
        whole: Whether to read an event stream to its end, not only to its first content.

    Raises:
        httpx.RemoteProtocolError: An event stream ended before that.
    """
    body = response.stream
    assert isinstance(body, httpx.AsyncByteStream)
    packets, size = aiter(body), 0
    response.stream = _Rest(read, packets, body)
    events = ChunkDecoder() if response.is_success and is_event_stream(response) else None
    async for packet in packets:
        read.append(packet)
        size += len(packet)
        shown = events is not None and events.shows_content(packet)
        if size > MAX_BODY or (shown and not whole):
            return
        if events and events.over:
            await drain(packets)
            break
    if events and not events.over:
        raise httpx.RemoteProtocolError("the stream ended before its answer did: no [DONE]")
    await body.aclose()


class _Rest(httpx.AsyncByteStream):
    """The packets that were read already, then the rest of the body."""

    def __init__(
        self, read: list[bytes], rest: AsyncIterator[bytes], body: httpx.AsyncByteStream
    ) -> None:
        self._read, self._rest, self._body = read, rest, body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for packet in self._read:
            yield packet
        async for packet in self._rest:
            yield packet

    async def aclose(self) -> None:
        await self._body.aclose()
