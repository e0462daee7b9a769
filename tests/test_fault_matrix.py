"""Every fault by every way to call, on the real service over real sockets: what a caller gets.

The tables are meant to be read. With 0.3 s for the first token and for each next one, 1.5 s for the
whole, and two retries, each cell says what comes of a fault that happens once / of one that always
does; a single entry is for both. ``ok 2`` is the whole answer at the second attempt,
``TokenTimeout 3`` an error after three, and ``…`` text that came before the error and is in its
``.content``: of an answer that was streamed, and of one that nobody has seen.
"""

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import psutil
import pytest

from foundry_lab import FoundryAPIClient, Service, Settings, errors
from foundry_lab.breaker import BreakerTransport
from foundry_lab.chunks import ChunkDecoder
from foundry_lab.client import resilient
from foundry_lab.errors import CallError
from foundry_lab.faults import (
    KINDS,
    Always,
    BrokenJson,
    BrokenSse,
    CutBody,
    Delay,
    Drip,
    ErrorEvent,
    Fault,
    FaultProxy,
    HtmlPage,
    Pace,
    Pass,
    Refuse,
    Reset,
    Script,
    SplitUtf8,
    Stall,
    Status,
)
from foundry_lab.layers import Layer
from foundry_lab.limits import ConcurrencyLimit
from foundry_lab.records import Attempt, Record
from foundry_lab.wire import http_transport

Table = dict[Fault, str]

# A health check has no retry: it tells what it found. Its fault meets `/status`, or all requests.

CLIENT: Table = {
    #                         complete               | stream_complete        | health_check
    Pass():                  "ok 1                   | ok 1                   | ok",
    Refuse():                "-/ServiceUnreachable 3 | -/ServiceUnreachable 3 | -/down",
    Reset("accept"):         "ok 2/CallError 3       | ok 2/CallError 3       | down",
    Reset("request"):        "ok 2/ConnectionLost 3  | ok 2/ConnectionLost 3  | down",
    Delay(0.05):             "ok 1                   | ok 1                   | ok",
    Delay(60):               "ok 2/TokenTimeout 3    | ok 2/TokenTimeout 3    | down",
    Status(401):             "StatusError 1          | StatusError 1          | down",
    Status(429):             "ok 2/StatusError 3     | ok 2/StatusError 3     | down",
    Status(429, 60):         "StatusError 1          | StatusError 1          | down",
    Status(500):             "StatusError 1          | StatusError 1          | down",
    Status(503):             "ok 2/StatusError 3     | ok 2/StatusError 3     | down",
    Status(503, 1):          "ok 2/-                 | ok 2/-                 | down",
    HtmlPage(502):           "ok 2/StatusError 3     | ok 2/StatusError 3     | down",
    HtmlPage(200):           "InvalidResponse 1      | InvalidResponse 1      | down",
    Stall():                 "ok 2/TokenTimeout 3    | ok 2/TokenTimeout 3    | down",
    Stall(0):                "ok 2/TokenTimeout 3    | ok 2/TokenTimeout 3    | down",
    Stall(1):                "ok 2/TokenTimeout 3    | ok 2/TokenTimeout 3    | down",
    Stall(6):                "ok 2/TokenTimeout 3…   | StreamInterrupted 1…   | down",
    Stall(99):               "ok 1                   | ok 1                   | down",
    Drip(1, 0.1):            "ok 2/TokenTimeout 3    | ok 2/TokenTimeout 3    | down",
    Drip(100, 0.002):        "ok 1                   | ok 1                   | ok",
    Pace(0.05):              "ok 2/TokenTimeout 3    | ok 2/TokenTimeout 3    | ok/degraded",
    Pace(6):                 "DeadlineExceeded 1…    | DeadlineExceeded 1…    | ok",
    CutBody(0, how="reset"): "ok 2/ConnectionLost 3  | ok 2/ConnectionLost 3  | down",
    CutBody(0, how="close"): "ok 2/ConnectionLost 3  | ok 2/ConnectionLost 3  | down",
    CutBody(0, how="end"):   "ok 2/ConnectionLost 3  | ok 2/ConnectionLost 3  | down",
    CutBody(after_bytes=50): "ok 2/ConnectionLost 3  | ok 2/ConnectionLost 3  | down",
    CutBody(6, how="reset"): "ok 2/ConnectionLost 3… | StreamInterrupted 1…   | down",
    CutBody(6, how="close"): "ok 2/ConnectionLost 3… | StreamInterrupted 1…   | down",
    CutBody(6, how="end"):   "ok 2/ConnectionLost 3… | StreamInterrupted 1…   | down",
    CutBody(99):             "ok 1                   | ok 1                   | down",
    BrokenJson(0):           "InvalidResponse 1      | InvalidResponse 1      | down",
    BrokenJson(6):           "StreamInterrupted 1…   | StreamInterrupted 1…   | down",
    BrokenSse():             "ok 2/ConnectionLost 3… | StreamInterrupted 1…   | ok/degraded",
    ErrorEvent(0):           "StatusError 1          | StatusError 1          | ok/degraded",
    ErrorEvent(6):           "StreamInterrupted 1…   | StreamInterrupted 1…   | ok",
    SplitUtf8():             "ok 1                   | ok 1                   | ok",
}  # fmt: skip

# A plain httpx client over the same layers, and its errors. It takes any body that HTTP calls
# whole: ``short`` is a stream without [DONE]. What it does not stream has no tokens to wait for.

HTTPX: Table = {
    #                         stream                       | post
    Pass():                  "ok 1                         | ok 1",
    Refuse():                "-/ConnectError 3             | -/ConnectError 3",
    Reset("accept"):         "ok 2/TransportError 3        | ok 2/TransportError 3",
    Reset("request"):        "ok 2/ReadError 3             | ok 2/ReadError 3",
    Delay(0.05):             "ok 1                         | ok 1",
    Delay(60):               "ok 2/ReadTimeout 3           | ok 2/ReadTimeout 3",
    Status(401):             "HTTPStatusError 1            | HTTPStatusError 1",
    Status(429):             "ok 2/HTTPStatusError 3       | ok 2/HTTPStatusError 3",
    Status(429, 60):         "HTTPStatusError 1            | HTTPStatusError 1",
    Status(500):             "HTTPStatusError 1            | HTTPStatusError 1",
    Status(503):             "ok 2/HTTPStatusError 3       | ok 2/HTTPStatusError 3",
    Status(503, 1):          "ok 2/-                       | ok 2/-",
    HtmlPage(502):           "ok 2/HTTPStatusError 3       | ok 2/HTTPStatusError 3",
    HtmlPage(200):           "short 1                      | JSONDecodeError 1",
    Stall():                 "ok 2/ReadTimeout 3           | ok 2/ReadTimeout 3",
    Stall(0):                "ok 2/ReadTimeout 3           | DeadlineExceeded 1",
    Stall(1):                "ok 2/ReadTimeout 3           | DeadlineExceeded 1",
    Stall(6):                "ReadTimeout 1…               | DeadlineExceeded 1",
    Stall(99):               "ReadTimeout 1…               | DeadlineExceeded 1",
    Drip(1, 0.1):            "ok 2/ReadTimeout 3           | DeadlineExceeded 1",
    Drip(100, 0.002):        "ok 1                         | ok 1",
    Pace(0.05):              "ok 2/ReadTimeout 3           | ok 1",
    Pace(6):                 "DeadlineExceeded 1…          | ok 1",
    CutBody(0, how="reset"): "ok 2/ReadError 3             | ok 2/ReadError 3",
    CutBody(0, how="close"): "ok 2/RemoteProtocolError 3   | ok 2/RemoteProtocolError 3",
    CutBody(0, how="end"):   "ok 2/RemoteProtocolError 3   | JSONDecodeError 1",
    CutBody(after_bytes=50): "ok 2/ReadError 3             | ok 2/ReadError 3",
    CutBody(6, how="reset"): "ReadError 1…                 | ok 2/ReadError 3",
    CutBody(6, how="close"): "RemoteProtocolError 1…       | ok 2/RemoteProtocolError 3",
    CutBody(6, how="end"):   "short 1                      | JSONDecodeError 1",
    CutBody(99):             "ReadError 1…                 | ok 2/ReadError 3",
    BrokenJson(0):           "InvalidResponse 1            | JSONDecodeError 1",
    BrokenJson(6):           "InvalidResponse 1…           | JSONDecodeError 1",
    BrokenSse():             "short 1                      | ok 1",
    ErrorEvent(0):           "StatusError 1                | ok 1",
    ErrorEvent(6):           "StatusError 1…               | ok 1",
    SplitUtf8():             "ok 1                         | ok 1",
}  # fmt: skip

SILENT = (Stall, Delay, Drip, Pace)
"""Faults whose outcome is a question of time."""
PATIENCE = 0.3
"""Seconds for the first token and each next one of a silent fault; more on a busy machine."""
ALL_THE_TIME = 10.0
"""Seconds for other faults."""
DEADLINES = 5
"""How many times the patience a whole call may take."""
GRACE = 0.5
"""Seconds by which a call may outlast its deadline."""
AT_ONCE = 8
"""Calls under way at the same time, each through a proxy of its own."""
PROMPT, TOKENS, MANY_TOKENS = "Count from 1 to 300.", 32, 200

Way = Literal["complete", "stream_complete", "health_check", "httpx_stream", "httpx_post"]
Plan = Literal["once", "always"]
Key = tuple[Fault, Way, Plan]


def cells(table: Table, *ways: Way) -> Iterator[tuple[Key, str]]:
    """Take a table apart: what is tried, and what should come of it."""
    for fault, row in table.items():
        for way, cell in zip(ways, row.split("|"), strict=True):
            once, _, always = cell.strip().partition("/")
            if once != "-":
                yield (fault, way, "once"), once
            if always != "-":
                yield (fault, way, "always"), always or once


EXPECTED: dict[Key, str] = {
    **dict(cells(CLIENT, "complete", "stream_complete", "health_check")),
    **dict(cells(HTTPX, "httpx_stream", "httpx_post")),
}


@dataclass
class Ended:
    """How one call ended."""

    attempts: int
    text: str = ""
    """What the caller has got of the answer before the call ended."""
    outcome: str = "ok"
    error: Exception | None = None


@dataclass
class Tried:
    """What came of a cell."""

    ended: Ended
    again: Ended
    """The same call afterwards, without the fault."""
    late: float
    """Seconds after its deadline at which the call ended; less than 0 if it was in time."""
    left: list[str]
    """What should be gone, but is not."""


class Calls:
    """The ways to call, all over one wire."""

    def __init__(self, url: str, wire: httpx.AsyncBaseTransport, patience: float) -> None:
        self.url = url
        self.patience, self.tokens = patience, TOKENS
        settings = Settings(model="lab-tiny", retries=2)
        self.records: list[Record] = []
        self.client = FoundryAPIClient(
            url, settings=settings, transport=wire, hook=self.records.append
        )
        self.layers = resilient(wire, settings, self.records.append)
        self.http = httpx.AsyncClient(transport=self.layers, timeout=httpx.Timeout(None))
        self.text = ""

    async def aclose(self) -> None:
        """Close the connections."""
        await self.client.aclose()
        await self.http.aclose()

    @property
    def deadline(self) -> float:
        """Seconds for a whole call."""
        return self.patience * DEADLINES

    def _times(self, total: str) -> dict[str, Any]:
        return {"first_token": self.patience, "stall": self.patience, total: self.deadline}

    async def warm_up(self, way: Way) -> None:
        """Open a connection; the client looks up the model's name, too."""
        if way in ("complete", "stream_complete"):
            await self.client.complete(PROMPT, max_tokens=1)
        else:
            await self.http.get(f"{self.url}/models/loaded")

    async def call(self, way: Way) -> Ended:
        """Make one call."""
        self.records.clear()
        self.text = ""
        made: Coroutine[Any, Any, str] = getattr(self, way)()
        try:
            outcome = await made
        except (CallError, httpx.HTTPError, json.JSONDecodeError) as error:
            return Ended(self._attempts(), self.text, type(error).__name__, error)
        return Ended(self._attempts(), self.text, outcome)

    def _attempts(self) -> int:
        return max((kept.number for kept in self.records if isinstance(kept, Attempt)), default=0)

    async def complete(self) -> str:
        """Wait for the whole answer."""
        times = self._times("timeout")
        self.text = (await self.client.complete(PROMPT, max_tokens=self.tokens, **times)).content
        return "ok"

    async def stream_complete(self) -> str:
        """Take the answer piece by piece."""
        times = self._times("timeout")
        async for piece in self.client.stream_complete(PROMPT, max_tokens=self.tokens, **times):
            self.text += piece.content
        return "ok"

    async def health_check(self) -> str:
        """Ask how the service is."""
        return (await self.client.health_check(timeout=self.deadline)).status

    async def httpx_stream(self) -> str:
        """Stream with a plain client."""
        chunks = ChunkDecoder()
        async with self.http.stream(**self._request(stream=True)) as response:
            response.raise_for_status()
            async for packet in response.aiter_bytes():
                for chunk in chunks.feed(packet):
                    self.text += chunk.content
        return "ok" if chunks.over else "short"

    async def httpx_post(self) -> str:
        """Post with a plain client."""
        response = await self.http.request(**self._request(stream=False))
        answer = response.raise_for_status().json()
        self.text = answer["choices"][0]["message"]["content"]
        return "ok"

    def _request(self, *, stream: bool) -> dict[str, Any]:
        body = {
            "model": "lab-tiny:1",
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": stream,
        }
        url = f"{self.url}/v1/chat/completions"
        return {"method": "POST", "url": url, "json": body, "extensions": self._times("seconds")}

    def taken(self) -> Iterator[str]:
        """Say which slots were not given back, and which breakers have something to do."""
        for top in self.layers, self.client._http._transport:  # noqa: SLF001
            layer = top
            while isinstance(layer, Layer):
                if isinstance(layer, ConcurrencyLimit) and (layer.running or layer.waiting):
                    yield f"{layer.running} slots, {layer.waiting} places in the queue"
                if isinstance(layer, BreakerTransport):
                    states = {key: breaker.state for key, breaker in layer.breakers.items()}
                    if set(states.values()) - {"closed"}:
                        yield f"breakers: {states}"
                layer = layer.inner


class Bench:
    """One proxy and one wire, on which cells are tried one after the other."""

    def __init__(self, service: Service) -> None:
        self.proxy = FaultProxy(service.url)
        self.wire: httpx.AsyncBaseTransport

    def __enter__(self) -> "Bench":
        self.proxy.start()
        self.wire = http_transport(httpx.URL(self.proxy.url))
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()

    async def try_(self, key: Key, patience: float = ALL_THE_TIME) -> Tried:
        """Make a call that meets the fault, and then one that does not."""
        fault, way, plan = key
        async with contextlib.aclosing(Calls(self.proxy.url, self.wire, patience)) as calls:
            await calls.warm_up(way)
            calls.tokens = MANY_TOKENS if isinstance(fault, Pace) else TOKENS
            self.proxy.plan = Always(fault) if plan == "always" else Script([fault])
            began = time.monotonic()
            ended = await calls.call(way)
            late = time.monotonic() - began - calls.deadline
            self.proxy.plan = ()
            calls.patience, calls.tokens = ALL_THE_TIME, TOKENS
            again, taken = await calls.call(way), list(calls.taken())
        tried = Tried(ended, again, late, taken)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while self.proxy.open_connections:  # noqa: ASYNC110 - in another thread
                    await asyncio.sleep(0.002)
        if self.proxy.open_connections:
            tried.left.append(f"{self.proxy.open_connections} connections")
        return tried


class Pulse:
    """Short calls, straight to the service: how quick it is for others, from when each was due."""

    def __init__(self, service: Service) -> None:
        self._client = FoundryAPIClient(service)
        self._beats: list[tuple[float, float]] = []
        self._began = time.monotonic()

    async def beat(self) -> None:
        """Go on until cancelled."""
        async with self._client:
            while True:
                self._began = time.monotonic() + PATIENCE / 6  # when the next is due: a machine
                await asyncio.sleep(PATIENCE / 6)  # that stands still stands still in a sleep, too
                await self._client.complete(PROMPT, max_tokens=1)
                self._beats.append((time.monotonic(), time.monotonic() - self._began))

    def slowest(self, since: float) -> float:
        """Say how many seconds the slowest call took that ended since then, or goes on."""
        return max(
            [took for ended, took in self._beats if ended > since],
            default=time.monotonic() - self._began,
        )


@dataclass
class Matrix:
    """All that was tried, and what was left of it."""

    tried: dict[Key, Tried]
    left: list[str]


async def fill(service: Service) -> Matrix:
    """Try all cells, `AT_ONCE` at a time: half of them silent, half of them busy."""
    tried: dict[Key, Tried] = {}
    keys = deque(sorted(EXPECTED, key=lambda key: isinstance(key[0], SILENT)))
    pulse = Pulse(service)
    beating = asyncio.create_task(pulse.beat())

    async def work(bench: Bench, take: Callable[[], Key]) -> None:
        while keys:
            key = take()
            timed = isinstance(key[0], SILENT)
            tried[key] = await (try_timed(bench, pulse, key) if timed else bench.try_(key))

    with contextlib.ExitStack() as stack:
        benches = [stack.enter_context(Bench(service)) for _ in range(AT_ONCE)]
        async with asyncio.TaskGroup() as group:
            for number, bench in enumerate(benches):
                group.create_task(work(bench, keys.pop if number % 2 else keys.popleft))
    beating.cancel()
    await asyncio.wait([beating])
    left = [repr(task) for task in asyncio.all_tasks() - {asyncio.current_task()}]
    return Matrix(tried, left)


async def try_timed(bench: Bench, pulse: Pulse, key: Key) -> Tried:
    """Try a cell; where it fails while the service is slow for others too, with more patience."""
    patience = PATIENCE
    while True:
        began = time.monotonic()
        tried = await bench.try_(key, patience)
        right = fits(tried.ended, EXPECTED[key]) and tried.late < GRACE
        if right or patience > ALL_THE_TIME or pulse.slowest(began) < patience / 6:
            return tried
        patience *= 2


def connections(process: psutil.Process) -> set[tuple[Any, ...]]:
    """Find the open connections of a process."""
    return {
        (connection.laddr, connection.raddr)
        for connection in process.net_connections("tcp")
        if connection.status not in (psutil.CONN_LISTEN, psutil.CONN_TIME_WAIT)
    }


@pytest.fixture(scope="module")
def matrix() -> Iterator[Matrix]:
    """Fill the matrix once, on a service of its own; the tests look at it."""
    with Service() as service:
        own, its = psutil.Process(), psutil.Process(service.pid)
        before = connections(own), threading.active_count()
        filled = asyncio.run(fill(service))
        filled.left += [f"connection {one}" for one in connections(own) - before[0]]
        filled.left += [f"the service's connection {one}" for one in connections(its)]
        if threading.active_count() > before[1]:
            filled.left.append(f"threads {threading.enumerate()}")
        root = service.url.partition("/catalogs")[0]
        unload = httpx.get(f"{service.url}/models/unload/lab-tiny", timeout=10)
        if not unload.is_success:
            filled.left.append(f"a generation at {root}: {unload.text}")
        yield filled


def fits(ended: Ended, expected: str) -> bool:
    """Compare; the class of an error may be named by its base."""
    name, _, attempts = expected.rstrip("…").partition(" ")
    if attempts and int(attempts) != ended.attempts:
        return False
    if ended.error is None:
        return ended.outcome == name
    content = ended.error.content if isinstance(ended.error, CallError) else ""
    if bool(ended.text or content) != expected.endswith("…"):
        return False
    if name in ("CallError", "TransportError"):
        return isinstance(ended.error, getattr(errors, name, None) or getattr(httpx, name))
    return ended.outcome == name


@pytest.mark.parametrize("key", EXPECTED, ids=lambda key: f"{key[1]}-{key[0]}-{key[2]}")
def test_a_fault_has_one_outcome(key: Key, matrix: Matrix) -> None:
    """A call ends as its table says, in time, and leaves nothing; the next one is well."""
    tried, expected = matrix.tried[key], EXPECTED[key]
    assert fits(tried.ended, expected), f"{tried.ended}, expected was {expected}"
    assert tried.late < GRACE
    assert tried.left == []
    assert (tried.again.outcome, tried.again.error) == ("ok", None)


def test_a_text_is_the_whole_or_its_beginning(matrix: Matrix) -> None:
    """What is called ok is what comes without a fault; what is called partial begins like it."""
    whole = matrix.tried[Pass(), "complete", "always"].ended.text
    assert len(whole) > 20
    for (_, way, _), tried in matrix.tried.items():
        text = tried.ended.text or getattr(tried.ended.error, "content", "")
        assert way == "health_check" or tried.again.text == whole
        assert text.startswith(whole) or whole.startswith(text)
        assert way == "health_check" or tried.ended.outcome != "ok" or text.startswith(whole)


def test_an_error_says_what_came_before_it(matrix: Matrix) -> None:
    """The client's errors hold the text that came, and the number of attempts."""
    for (_, way, _), tried in matrix.tried.items():
        if isinstance(tried.ended.error, CallError) and not way.startswith("httpx"):
            assert tried.ended.error.attempts == tried.ended.attempts
            assert tried.ended.error.content.startswith(tried.ended.text)


def test_nothing_is_left(matrix: Matrix) -> None:
    """Afterwards there is no task, thread, connection or generation, here or in the service."""
    assert matrix.left == []


def test_no_fault_is_forgotten() -> None:
    """Every kind of fault is in both tables, and both have the same."""
    assert {type(fault) for fault in CLIENT} == set(KINDS.values())
    assert list(CLIENT) == list(HTTPX)
