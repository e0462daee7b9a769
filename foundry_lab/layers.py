"""What the resilience layers are made of: a transport that takes the next transport.

`Layer` is httpx's own extension point, one method. A layer that must know how a call ended puts a
`WatchedBody` around the body: at the headers a streamed answer has only begun.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import httpx

__all__ = ["Layer", "WatchedBody", "drain", "is_event_stream", "watch"]

LINGER = 0.25
"""Seconds that the end of a body may take to come after all that it has to say."""

Settle = Callable[[BaseException | None], None]


class Layer(httpx.AsyncBaseTransport):
    """A transport that does something of its own and leaves the rest to the next one.

    Args:
        inner: The next transport: another layer, or ``httpx.AsyncHTTPTransport()``.
    """

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self.inner = inner

    async def aclose(self) -> None:
        """Close the next transport."""
        await self.inner.aclose()


class WatchedBody(httpx.AsyncByteStream):
    """A response's body that tells exactly once how it ended.

    Args:
        body: The body to read from.
        settle: Called with None at the end of the body, with the error that broke it (a
            ``CancelledError`` too), or with a ``GeneratorExit`` when it was closed before its end.
    """

    def __init__(self, body: httpx.AsyncByteStream, settle: Settle) -> None:
        self._body = body
        self._settle: Settle | None = settle
        self._packets: AsyncIterator[bytes] | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._packets = self._packets or aiter(self._body)
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._next()
        except StopAsyncIteration:
            self._end(None)
            raise
        except BaseException as error:
            self._end(error)
            raise

    async def aclose(self) -> None:
        """Close the body."""
        try:
            await self._body.aclose()
        finally:
            self._end(GeneratorExit())

    def _next(self) -> Awaitable[bytes]:
        assert self._packets is not None, "iterate over a body with `async for`"
        return anext(self._packets)

    def _end(self, error: BaseException | None) -> None:
        settle, self._settle = self._settle, None
        if settle:
            settle(error)


def watch(response: httpx.Response, settle: Settle, kind: type[WatchedBody] = WatchedBody) -> None:
    """Put a `WatchedBody`, or a `kind` of it, around a response's body.

    A response that was made with its content, as for ``httpx.MockTransport``, has ended already:
    httpx reads no body of it.
    """
    assert isinstance(response.stream, httpx.AsyncByteStream)
    if response.is_closed:
        settle(None)
    else:
        response.stream = kind(response.stream, settle)


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the body is a stream of server-sent events that can be read as it is."""
    kind = response.headers.get("content-type", "").lower()
    return kind.startswith("text/event-stream") and "content-encoding" not in response.headers


async def drain(packets: AsyncIterator[bytes]) -> None:
    """Read to the end of a body that has said all, so that its connection can be used again.

    That is not worth an error or a wait: if the end does not come soon, the connection is closed.
    """
    with contextlib.suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(LINGER):
            async for _ in packets:
                pass
