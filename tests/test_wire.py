"""The wire: acknowledgements at once where the system can, proxies only where they belong."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from foundry_lab import QuickAckTransport, Service, wire
from foundry_lab.layers import Layer
from foundry_lab.wire import http_transport

pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_QUICKACK is Linux's")


def connection(response: httpx.Response) -> socket.socket:
    found: socket.socket = response.extensions["network_stream"].get_extra_info("socket")
    return found


class Lazy(Layer):
    """Makes the kernel put its acknowledgements off, as it comes to do on a reused connection."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        assert wire.QUICK_ACK
        connection(response).setsockopt(socket.IPPROTO_TCP, wire.QUICK_ACK, 0)
        return response


def quick(response: httpx.Response) -> bool:
    """Tell whether the kernel acknowledges at once what comes next."""
    assert wire.QUICK_ACK
    return bool(connection(response).getsockopt(socket.IPPROTO_TCP, wire.QUICK_ACK))


@linux
async def test_the_headers_are_acknowledged_at_once(service: Service) -> None:
    """With the layer the option is set when the headers are in, on new and reused connections."""
    without = Lazy(httpx.AsyncHTTPTransport())
    for transport, expected in ((without, False), (QuickAckTransport(without), True)):
        async with httpx.AsyncClient(transport=transport, base_url=service.url) as http:
            for _ in range(2):
                async with http.stream("GET", "/v1/models") as response:
                    assert quick(response) is expected
                    await response.aread()
        without = Lazy(httpx.AsyncHTTPTransport())


@linux
async def test_the_clients_transport_acknowledges_at_once(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What carries the client's requests has the layer at its bottom."""
    real = httpx.AsyncHTTPTransport
    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda **kw: Lazy(real(**kw)))
    transport = http_transport(httpx.URL(service.url))
    async with (
        httpx.AsyncClient(transport=transport, base_url=service.url) as http,
        http.stream("GET", "/v1/models") as response,
    ):
        assert quick(response)


class NoSocket:
    """A network stream that knows of no socket, or of one that is gone."""

    def __init__(self, known: Any) -> None:
        self.known = known

    def get_extra_info(self, name: str) -> Any:
        return self.known if name == "socket" else None


def closed_socket() -> socket.socket:
    gone = socket.socket()
    gone.close()
    return gone


@pytest.mark.parametrize(
    "extensions",
    [{}, {"network_stream": NoSocket(None)}, {"network_stream": NoSocket(closed_socket())}],
    ids=["no stream", "no socket", "closed"],
)
async def test_without_a_live_socket_it_does_no_harm(extensions: dict[str, Any]) -> None:
    """A stand-in for the network, and a connection that is gone, bring their answers."""
    answer = httpx.Response(200, text="fine", extensions=extensions)
    transport = QuickAckTransport(httpx.MockTransport(lambda _: answer))
    async with httpx.AsyncClient(transport=transport) as http:
        assert (await http.get("http://model")).text == "fine"


async def test_elsewhere_it_does_nothing(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a system without the option an answer arrives as without the layer."""
    monkeypatch.setattr(wire, "QUICK_ACK", None)
    transport = QuickAckTransport(httpx.AsyncHTTPTransport())
    async with httpx.AsyncClient(transport=transport) as http:
        assert (await http.get(f"{service.url}/v1/models")).status_code == 200


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nfine"


async def say_fine(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    writer.close()


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio has no Unix sockets here")
async def test_a_connection_that_is_no_tcp_does_no_harm(tmp_path: Path) -> None:
    """A Unix socket has no such option: the answer arrives without it."""
    assert sys.platform != "win32"
    path = tmp_path / "s"
    async with await asyncio.start_unix_server(say_fine, path):
        transport = QuickAckTransport(httpx.AsyncHTTPTransport(uds=str(path)))
        async with httpx.AsyncClient(transport=transport) as http:
            assert (await http.get("http://model")).text == "fine"


@asynccontextmanager
async def proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """A proxy that answers itself, and keeps the first line of what it was asked."""
    asked = list[bytes]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n"))
        await say_fine(reader, writer)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def set_proxies(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name)
        monkeypatch.delenv(name.lower())
    for name, value in values.items():
        monkeypatch.setenv(name, value)


async def get(url: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=http_transport(httpx.URL(url))) as http:
        return await http.get(url)


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
async def test_another_machine_is_reached_through_the_proxy(
    monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    """The environment's proxy is asked for a gateway elsewhere, however its address is written."""
    async with proxy() as (address, asked):
        set_proxies(monkeypatch, **{name: scheme + address})
        assert (await get("http://gateway.example/v1/models")).text == "fine"
    assert asked == [b"GET http://gateway.example/v1/models HTTP/1.1\r\n"]


async def test_this_machine_is_reached_without_the_proxy(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """127.0.0.1 and localhost are never behind one, even if nobody has said so."""
    async with proxy() as (address, asked):
        set_proxies(monkeypatch, http_proxy=f"http://{address}", all_proxy=f"http://{address}")
        assert "lab-tiny" in (await get(f"{service.url}/v1/models")).text
        by_name = service.url.replace("127.0.0.1", "localhost")
        assert "lab-tiny" in (await get(f"{by_name}/v1/models")).text
    assert asked == []


async def test_an_exception_of_the_environment_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A host named in no_proxy is not asked for through the proxy."""
    async with proxy() as (address, asked):
        set_proxies(monkeypatch, http_proxy=f"http://{address}", no_proxy="gateway.invalid")
        with pytest.raises((httpx.ConnectError, PermissionError)):
            await get("http://gateway.invalid/v1/models")
    assert asked == []
