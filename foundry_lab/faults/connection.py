"""One client's connection, from the server's side: HTTP/1.1 in and out, and how it can end."""

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx

__all__ = ["Connection"]

MAX_HEAD = 65536
"""Bytes that the head of a request may have; also the most that is read at once."""

NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
"""The value of SO_LINGER that turns a close into a reset."""

NOT_FORWARDED = (b"host", b"expect", b"accept-encoding")
"""Headers that are the proxy's own business; a compressed body would hide its events."""


class Connection(asyncio.StreamReaderProtocol):
    """asyncio's streams, and one thing more: when the client leaves, its task is cancelled.

    Args:
        serve: The task, which reads requests and sends responses. The connection ends with it.
    """

    def __init__(self, serve: Callable[["Connection"], Awaitable[None]]) -> None:
        self.busy = False
        """Whether a request has come whose answer is not complete."""
        self.left = False
        """Whether the client has closed its side, as it does when it gives up."""
        self._serve = serve
        self._reader = asyncio.StreamReader(limit=MAX_HEAD)
        super().__init__(self._reader, self._begin)

    def _begin(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.transport.set_write_buffer_limits(high=0)  # drained: the system has it all
        self._serving = asyncio.ensure_future(self._serve(self))
        self._serving.add_done_callback(lambda _: writer.transport.abort())

    def eof_received(self) -> bool:
        """Hear from asyncio that the client has closed its side."""
        self._leave()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Hear from asyncio that the connection is gone."""
        self._leave()
        super().connection_lost(exc)

    def _leave(self) -> None:
        if not self.left:
            self.left = True
            self._serving.cancel()

    def close(self) -> None:
        """End it in an orderly way (FIN)."""
        self._writer.close()

    def reset(self) -> None:
        """Break it off (RST)."""
        wire = self._writer.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._writer.transport.abort()

    async def request(self, service: httpx.URL) -> httpx.Request:
        """Wait for a request and address it to the service. Who passes it on reads its body.

        Raises:
            ValueError: This is not HTTP/1.1.
            httpx.InvalidURL: What should be a path is none.
        """
        head = await self._reader.readuntil(b"\r\n\r\n")
        line, *fields = head.strip().split(b"\r\n")
        method, target, version = line.split(b" ")
        if version != b"HTTP/1.1":
            raise ValueError(f"{version!r} is not HTTP/1.1")
        headers = [
            (name, value.strip())
            for name, _, value in (field.partition(b":") for field in fields)
            if name.lower() not in NOT_FORWARDED
        ]
        return httpx.Request(
            method.decode("ascii"),
            service.copy_with(raw_path=target),
            headers=[(b"Host", service.netloc), *headers],
            stream=_Body(self._body(httpx.Headers(headers))),
        )

    async def _body(self, headers: httpx.Headers) -> AsyncIterator[bytes]:
        chunked = "chunked" in headers.get("Transfer-Encoding", "").lower()
        left = await self._chunk_size() if chunked else int(headers.get("Content-Length", 0))
        while left > 0:
            packet = await self._reader.readexactly(min(left, MAX_HEAD))
            left -= len(packet)
            yield packet
            if chunked and left == 0:
                await self._reader.readexactly(2)
                left = await self._chunk_size()
        while chunked and await self._reader.readuntil(b"\r\n") != b"\r\n":
            pass  # a trailer

    async def _chunk_size(self) -> int:
        return int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)

    async def send(
        self,
        response: httpx.Response,
        body: AsyncIterator[bytes],
        *,
        head_only: bool,
        before_end: Callable[[], Any],
    ) -> None:
        """Send a response, each packet when it comes; call `before_end` before the last byte."""
        length = response.headers.get("Content-Length")
        if length is None:
            response.headers["Transfer-Encoding"] = "chunked"
        head_only = head_only or response.status_code in (204, 304)
        left = 0 if head_only else int(length or -1)  # below zero: chunks, their number unknown
        if left == 0:
            before_end()
        await self._write(_head(response))
        if head_only:
            return
        async for packet in body:
            left -= len(packet)
            if left == 0:
                before_end()
            if packet:  # an empty chunk would be the end
                await self._write(packet if length else b"%X\r\n%b\r\n" % (len(packet), packet))
        if length is None:
            before_end()
            await self._write(b"0\r\n\r\n")

    async def _write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()


class _Body(httpx.AsyncByteStream):
    """The body of a request, which can be read on where somebody else has stopped."""

    def __init__(self, packets: AsyncIterator[bytes]) -> None:
        self._packets = packets

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._packets


def _head(response: httpx.Response) -> bytes:
    line = f"HTTP/1.1 {response.status_code} {response.reason_phrase}".encode("ascii")
    fields = [b"%b: %b" % pair for pair in response.headers.raw]
    return b"\r\n".join([line, *fields, b"", b""])
