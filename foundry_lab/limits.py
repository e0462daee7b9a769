"""Limits: one deadline for all, time for a first token and between tokens, calls at once.

httpx's own timeouts bound each wait for bytes, never the whole: an answer that trickles passes
``timeout=1``. These do.
"""

import asyncio

import httpx

from foundry_lab.chunks import ChunkDecoder
from foundry_lab.errors import DeadlineExceeded, InvalidRequest, QueueFull
from foundry_lab.layers import Layer, WatchedBody, is_event_stream, watch

__all__ = ["ConcurrencyLimit", "DeadlineTransport", "TokenTimeouts", "too_late"]


class DeadlineTransport(Layer):
    """Bounds the whole operation by one point in time: attempts, waits, and all of the answer.

    What is inside may read it as ``request.extensions["deadline"]``, in seconds of
    ``time.monotonic``. A request that brings a deadline of its own keeps it; ``seconds`` in its
    extensions says how much time that was.

    Args:
        inner: The next transport.
        seconds: Time for one operation.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, seconds: float) -> None:
        super().__init__(inner)
        self.seconds = seconds

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request and wait for its answer until the deadline.

        Raises:
            DeadlineExceeded: The time is over; while the body is read, too.
        """
        seconds = request.extensions.setdefault("seconds", self.seconds)
        ends = asyncio.get_running_loop().time() + seconds
        deadline = request.extensions.setdefault("deadline", ends)
        try:
            async with asyncio.timeout_at(deadline):
                response = await self.inner.handle_async_request(request)
        except TimeoutError as error:
            raise too_late(seconds) from error
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _UntilDeadline(response.stream, deadline, seconds)
        return response


class _UntilDeadline(WatchedBody):
    def __init__(self, body: httpx.AsyncByteStream, deadline: float, seconds: float) -> None:
        super().__init__(body, lambda _: None)
        self._deadline = deadline
        self._seconds = seconds

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await super()._next()
        except TimeoutError as error:
            raise too_late(self._seconds) from error


def too_late(seconds: float) -> DeadlineExceeded:
    """Make the error that says that `seconds` were not enough."""
    return DeadlineExceeded(
        f"No whole answer within {seconds:g} s.",
        fix="Ask for fewer tokens, or allow more time with timeout=… or FOUNDRY_TIMEOUT.",
    )


class TokenTimeouts(Layer):
    """Bounds the wait for the first token of a stream, and each wait for the next one.

    Comments that keep the connection alive, and bytes that trickle, are no tokens. A request sets
    its own times with ``extensions={"first_token": …, "stall": …}``. For an answer that is not
    streamed, `first_token` bounds the wait for its headers. Both raise ``httpx.ReadTimeout``, as
    httpx does, which a retry and a breaker understand.

    Args:
        inner: The next transport.
        first_token: Seconds from the request to the first content; None for no bound.
        stall: Seconds of silence from then on; None for no bound.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        first_token: float | None = None,
        stall: float | None = None,
    ) -> None:
        super().__init__(inner)
        self.first_token = first_token
        self.stall = stall

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request.

        Raises:
            httpx.ReadTimeout: No token in time; while the body is read, too.
        """
        first_token = request.extensions.get("first_token", self.first_token)
        stall = request.extensions.get("stall", self.stall)
        if first_token is None and stall is None:
            return await self.inner.handle_async_request(request)
        ends = first_token and asyncio.get_running_loop().time() + first_token
        try:
            async with asyncio.timeout_at(ends):
                response = await self.inner.handle_async_request(request)
        except TimeoutError as error:
            raise httpx.ReadTimeout("no first token in time") from error
        if is_event_stream(response):
            assert isinstance(response.stream, httpx.AsyncByteStream)
            response.stream = _TimedTokens(response.stream, ends, stall)
        return response


class _TimedTokens(WatchedBody):
    def __init__(
        self, body: httpx.AsyncByteStream, first_token_at: float | None, stall: float | None
    ) -> None:
        super().__init__(body, lambda _: None)
        self._chunks = ChunkDecoder()
        self._begun = False  # the first content was there
        self._until = first_token_at
        self._stall = self._left = stall

    async def _next(self) -> bytes:
        asked = asyncio.get_running_loop().time()
        if self._begun:
            self._until = None if self._left is None else asked + self._left
        try:
            async with asyncio.timeout_at(self._until):
                packet = await super()._next()
        except TimeoutError as error:
            what = "the stream stalled" if self._begun else "no first token in time"
            raise httpx.ReadTimeout(what) from error
        if (self._stall or not self._begun) and self._chunks.shows_content(packet):
            self._begun, self._left = True, self._stall
        elif self._left is not None:  # only waiting counts: a slow reader is no stall
            self._left -= asyncio.get_running_loop().time() - asked
        return packet


class ConcurrencyLimit(Layer):
    """Lets a few calls through at once; a few more may wait, the rest is refused at once.

    A slot is taken until the end of the answer. Above some number, more calls at once give few more
    tokens a second and make each other wait (Little's law): a bulkhead with a short queue.
    Meanwhile ``request.extensions["queued"]`` is true: nothing was sent yet.

    Args:
        inner: The next transport.
        limit: Calls at once.
        queue: Calls that may wait for a slot, first come, first served.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport, limit: int = 4, queue: int = 100) -> None:
        if limit < 1 or queue < 0:
            raise InvalidRequest(
                f"A limit of {limit} and a queue of {queue} let nothing through.",
                fix="limit is 1 or more, queue 0 or more.",
            )
        super().__init__(inner)
        self.limit, self.queue = limit, queue
        self.running = self.waiting = 0
        self._slots = asyncio.Semaphore(limit)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request when a slot is free.

        Raises:
            QueueFull: All slots are taken, and so is the queue.
        """
        request.extensions["queued"] = True  # a breaker reads it, if the wait is cancelled
        await self._take_slot()
        request.extensions["queued"] = False
        try:
            response = await self.inner.handle_async_request(request)
        except BaseException:
            self._free_slot()
            raise
        watch(response, self._free_slot)
        return response

    def _free_slot(self, _: BaseException | None = None) -> None:
        self.running -= 1
        self._slots.release()

    async def _take_slot(self) -> None:
        if self._slots.locked() and self.waiting >= self.queue:
            raise QueueFull(
                f"Not sent: {self.limit} calls run and {self.waiting} wait already.",
                fix="Send fewer at once, or try again later.",
            )
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
