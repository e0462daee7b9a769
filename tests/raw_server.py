"""A server on a real socket that answers as a test says, byte by byte."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

__all__ = ["Line", "chunk", "head", "serving", "whole"]

LONGEST = 60.0
"""Seconds after which a test that waits for what does not come is given up."""


@dataclass
class Line:
    """One connection, on which one request has come."""

    request: bytes
    _writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        """Send what the client should see now."""
        self._writer.write(data)
        await self._writer.drain()


@asynccontextmanager
async def serving(answer: Callable[[Line], Awaitable[None]]) -> AsyncIterator[str]:
    """Serve while the block runs, and give the URL. A connection ends when `answer` returns.

    Raises:
        TimeoutError: The block took longer than any test should.
    """
    tasks = set[asyncio.Task[None]]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                top = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", top)
                body = await reader.readexactly(int(length[1])) if length else b""
                await answer(Line(top + body, writer))
        except asyncio.CancelledError:
            pass  # asyncio would log it
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        async with asyncio.timeout(LONGEST):
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def head(status: int = 200, kind: str = "application/json", length: int | None = None) -> bytes:
    """Give the head of an answer; without a length its body ends with the connection."""
    size = "" if length is None else f"Content-Length: {length}\r\n"
    top = f"HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Type: {kind}\r\n{size}\r\n"
    return top.encode()


def whole(status: int = 200, body: bytes = b"{}") -> bytes:
    """Give an answer from its first byte to its last."""
    return head(status, length=len(body)) + body


def chunk(content: str) -> bytes:
    """Give an event of a chat stream that brings this text."""
    return b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % content.encode()
