"""What the resilience layers are made of: a transport that takes the next transport.

`Layer` is httpx's own extension point, one method. A layer that must know how a call ended puts a
`WatchedBody` around the body: at the headers a streamed answer has only begun.
"""

from collections.abc import AsyncIterator, Callable

import httpx

__all__ = ["Layer", "WatchedBody", "is_event_stream"]

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

    async def _next(self) -> bytes:
        assert self._packets is not None, "iterate over a body with `async for`"
        return await anext(self._packets)

    def _end(self, error: BaseException | None) -> None:
        settle, self._settle = self._settle, None
        if settle:
            settle(error)


def is_event_stream(response: httpx.Response) -> bool:
    """Whether the body is a stream of server-sent events that can be read as it is."""
    kind = response.headers.get("content-type", "")
    return kind.startswith("text/event-stream") and "content-encoding" not in response.headers
