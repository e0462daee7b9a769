"""A proxy in front of the real service that makes faults happen on the wire.

Whatever speaks HTTP/1.1 meets them: httpx, openai, curl, a browser. The proxy has a thread and an
event loop of its own: on the notebook's loop it could not answer a cell that waits for it.
"""

import asyncio
import contextlib
import math
import os
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import httpx

from foundry_lab.errors import InvalidRequest, PortInUse
from foundry_lab.faults.connection import Connection
from foundry_lab.faults.kinds import (
    Cut,
    Fault,
    Pass,
    Refuse,
    Reset,
    error_response,
    read_whole,
)
from foundry_lab.settings import checked_url
from foundry_lab.wire import http_transport

__all__ = ["FaultProxy", "Seen"]

RECORDS = 10_000
"""Requests that are remembered; the counts go on."""

SETTLE = 0.05
"""Seconds before a reset in mid-body: it may destroy what the client has not read yet."""


@dataclass
class Seen:
    """One request and what became of it."""

    method: str
    """Empty for a connection that was reset before it had a request; so is `path`."""
    path: str
    fault: str
    """The name of the fault it met; ``Pass`` is none."""
    began: float
    """When it came, in seconds of `time.monotonic`."""
    status: int | None = None
    """The status that was sent; None: no answer was."""
    outcome: str = ""
    """``whole``, ``cut``, ``client left``, ``service broke`` or ``proxy closed``; before, empty."""
    ended: float = math.nan
    """When that was."""

    def __str__(self) -> str:
        request = f"{self.method} {self.path}".strip() or "a connection"
        answer = self.status or "no answer"
        seconds = self.ended - self.began
        return f"{request}: {self.fault}, {answer}, {self.outcome}, {seconds:.3f} s"


class FaultProxy:
    """A proxy on 127.0.0.1: it answers as the service behind it does, but for a plan's faults.

    Args:
        service: The service's base URL, such as `Service.url`.
        plan: Which request meets which fault: `Script`, `Mix`, `Always`, or any iterable of faults.
            It begins anew whenever it is set.
        only: Leave requests alone whose path does not contain this; they use up no fault. (`Refuse`
            is for all: who can't connect can't say a path.)
        port: Where to listen; 0 takes a free port.
        on_end: Called with each record that is complete, in the proxy's thread: be quick there.

    Use it as a context manager, or call `start` and `close`.

    Raises:
        SettingsError: The URL can't be used.
        InvalidRequest: The plan is none.
    """

    def __init__(
        self,
        service: str,
        plan: Iterable[Fault] = (),
        *,
        only: str = "",
        port: int = 0,
        on_end: Callable[[Seen], None] | None = None,
    ) -> None:
        self.port = port
        self._service_url = httpx.URL(checked_url(service))
        self._only = only
        self._on_end = on_end
        self._seen: deque[Seen] = deque(maxlen=RECORDS)
        self._counts: Counter[str] = Counter()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self.plan = plan

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<FaultProxy at {self.url}, for {self._service_url}>"

    @property
    def url(self) -> str:
        """The base URL for clients: the service's, but for host and port."""
        return f"http://127.0.0.1:{self.port}{self._service_url.path.rstrip('/')}"

    @property
    def plan(self) -> Iterable[Fault]:
        """Which request meets which fault. Set, it holds from the next request on."""
        return self._plan

    @plan.setter
    def plan(self, plan: Iterable[Fault]) -> None:
        if not isinstance(plan, Iterable):
            raise InvalidRequest(
                f"{plan!r} is not a plan.",
                fix=f"Say when: Always({plan!r}), Script([{plan!r}]) or Mix({{{plan!r}: 0.1}}).",
            )
        self._plan = plan
        if self._thread is not None:
            self._on_loop(self._begin_plan())

    @property
    def seen(self) -> list[Seen]:
        """The last 10,000 requests, in the order they came."""
        return list(self._seen)

    @property
    def counts(self) -> Counter[str]:
        """How many requests met each fault, by its name."""
        return self._counts.copy()

    @property
    def open_connections(self) -> int:
        """How many connections clients have open."""
        return len(self._connections)

    def start(self) -> Self:
        """Start; after a `close`, on the same port and with the plan from its beginning.

        Raises:
            PortInUse: Something else has the port.
        """
        if self._thread is None:
            self._socket = _bind(self.port)
            self.port = self._socket.getsockname()[1]
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
            try:
                self._on_loop(self._open())
            except BaseException:  # a plan of one's own may raise
                self.close()
                raise
        return self

    def close(self) -> None:
        """Break off what is going on, and leave no thread, task or socket; twice is fine."""
        if self._thread is not None:
            self._on_loop(self._shut())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._thread = None

    def _on_loop(self, work: Coroutine[Any, Any, None]) -> None:
        if threading.current_thread() is self._thread:
            work.close()
            raise InvalidRequest(
                "on_end runs in the proxy's own thread, which cannot wait for itself.",
                fix="Set the plan, or close the proxy, from where the proxy was started.",
            )
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _open(self) -> None:
        self._service = http_transport(self._service_url)
        await self._begin_plan()

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket is not None:
            self._socket.close()
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await self._service.aclose()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    async def _begin_plan(self) -> None:
        self._faults = iter(self._plan)
        await self._look_ahead()

    async def _look_ahead(self) -> None:
        """Know the next fault before there is a request for it: a `Refuse` acts now."""
        self._next = next(self._faults, Pass())
        if isinstance(self._next, Refuse):
            self._refuse()
        elif self._server is None:
            listening = self._socket or _bind(self.port)
            self._server = await self._loop.create_server(
                lambda: Connection(self._serve), sock=listening, start_serving=False
            )
            await self._server.start_serving()

    def _refuse(self) -> None:
        """Keep the port but don't listen: that is what refuses connections."""
        if self._server is not None:
            self._server.close()
            self._server = self._socket = None
            with contextlib.suppress(PortInUse):
                self._socket = _bind(self.port)
        for connection in self._connections:
            if not connection.busy:
                connection.close()

    async def _take(self, path: str) -> Fault:
        fault = self._next
        if self._only not in path:
            return Pass()
        if not isinstance(fault, Refuse):
            await self._look_ahead()
        return fault

    async def _serve(self, client: Connection) -> None:
        """Answer a client's requests, one after the other, until one side has enough."""
        self._connections.add(client)
        try:
            if self._next == Reset(after="accept") and not self._only:
                _, seen = await self._begin(client, "", "")
                self._end(client, seen, "cut")
                return client.reset()
            while not isinstance(self._next, Refuse):
                request = await client.request(self._service_url)
                if not await self._exchange(client, request):
                    break
        except (ConnectionError, EOFError):
            pass  # the client left, and the news came by another way
        except (ValueError, httpx.InvalidURL, asyncio.LimitOverrunError):
            client.reset()  # no HTTP
        finally:
            self._connections.discard(client)

    async def _exchange(self, client: Connection, request: httpx.Request) -> bool:
        """Answer one request; return whether the connection is good for another."""
        path = request.url.raw_path.decode("ascii")
        fault, seen = await self._begin(client, request.method, path)
        try:
            return await self._relay(client, request, fault, seen)
        except Cut as cut:
            if seen.status is not None:
                await asyncio.sleep(SETTLE)
            self._end(client, seen, cut.why)
            if cut.how == "reset":
                client.reset()
            return False
        finally:
            self._end(client, seen, "client left" if client.left else "proxy closed")

    async def _relay(
        self, client: Connection, request: httpx.Request, fault: Fault, seen: Seen
    ) -> bool:
        response = await self._answer(request, fault)
        try:
            await read_whole(request)  # the service may have answered before it had it all
            seen.status = response.status_code
            if isinstance(self._next, Refuse):
                response.headers["Connection"] = "close"
            await client.send(
                response,
                fault.body(response),
                head_only=request.method == "HEAD",
                before_end=partial(self._end, client, seen, "whole"),
            )
        except httpx.TransportError as error:
            raise Cut("reset", "service broke") from error
        finally:
            await response.aclose()
        ends = (message.headers.get("Connection", "") for message in (request, response))
        return not any("close" in end.lower() for end in ends)

    async def _answer(self, request: httpx.Request, fault: Fault) -> httpx.Response:
        try:
            response = await fault.answer(request)
            response = response or await self._service.handle_async_request(request)
        except httpx.TransportError as error:
            response = error_response(502, f"No answer from the service: {error!r}")
        if fault.rewrites:
            response.headers.pop("Content-Length", None)
        return response

    async def _begin(self, client: Connection, method: str, path: str) -> tuple[Fault, Seen]:
        client.busy = True  # from now on a `Refuse` spares it
        fault = await self._take(path)
        seen = Seen(method, path, type(fault).__name__, time.monotonic())
        self._counts[seen.fault] += 1
        self._seen.append(seen)
        return fault, seen

    def _end(self, client: Connection, seen: Seen, outcome: str) -> None:
        """Complete a record, before the client can know: who looks afterwards finds it complete."""
        if client.busy:
            client.busy = False
            seen.ended, seen.outcome = time.monotonic(), outcome
            if self._on_end is not None:
                self._on_end(seen)


def _bind(port: int) -> socket.socket:
    bound = socket.socket(proto=socket.IPPROTO_TCP)  # named, or asyncio sets no TCP_NODELAY
    if os.name == "posix":  # elsewhere this option would let others in
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(("127.0.0.1", port))
    except OSError as error:
        bound.close()
        raise PortInUse(
            f"Nothing can listen on 127.0.0.1:{port}: {error}.",
            fix="Stop the program that uses the port, or choose port 0 for any free one.",
        ) from error
    return bound
