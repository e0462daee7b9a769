"""The bottom of the stack: httpx's own transport, and a remedy for 40 ms that nobody ordered.

The service leaves Nagle's algorithm on: a small packet waits there until the one before it was
acknowledged. Linux delays acknowledgements by 40 ms on a connection it takes for a conversation, so
on a reused connection a first token that is ready sooner comes that much too late (RFC 896,
RFC 1122 section 4.2.3.2).
"""

import contextlib
import socket
from urllib.request import getproxies, proxy_bypass

import httpx

from foundry_lab.layers import Layer
from foundry_lab.settings import LOOPBACK

__all__ = ["QuickAckTransport", "http_transport"]

QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux has it


class QuickAckTransport(Layer):
    """Acknowledges the headers of an answer at once, so that the server sends what it holds back.

    Where the system has no such option it does nothing.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request."""
        response = await self.inner.handle_async_request(request)
        stream = response.extensions.get("network_stream")
        if QUICK_ACK is not None and stream is not None:
            connection = stream.get_extra_info("socket")
            if connection is not None:
                with contextlib.suppress(OSError):  # it is gone already, or it is no TCP
                    connection.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)
        return response


def http_transport(url: httpx.URL) -> httpx.AsyncBaseTransport:
    """Make the transport that carries requests to a service.

    Args:
        url: Where it is. A proxy of the environment leads to other machines, never to this one.
    """
    return QuickAckTransport(
        httpx.AsyncHTTPTransport(
            proxy=_proxy(url),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )
    )


def _proxy(url: httpx.URL) -> str | None:
    if url.host in LOOPBACK or proxy_bypass(url.host):
        return None
    proxies = getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy
