"""The fault proxy in front of the real service: each fault is what its docstring says."""

import asyncio
import contextlib
import errno
import gc
import itertools
import json
import math
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import openai
import psutil
import pytest
from essay import ESSAY

from foundry_lab import Service
from foundry_lab.errors import FoundryLabError, InvalidRequest, PortInUse, SettingsError
from foundry_lab.faults import (
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
    Mix,
    Pace,
    Pass,
    Refuse,
    Reset,
    Script,
    SplitUtf8,
    Stall,
    Status,
    plan_from,
)
from foundry_lab.faults import proxy as proxy_module
from foundry_lab.sse import Decoder

CHAT = "/v1/chat/completions"
REPEAT = "Repeat: Zürich €"
COUNT = "Count from 1 to 300."

connect = partial(httpx.Client, timeout=60, verify=ssl.create_default_context())
"""A new client, without the 40 ms that it takes to make it a TLS context of its own."""


def get(url: str, **options: Any) -> httpx.Response:
    """Get over a new connection."""
    with connect() as client:
        return client.get(url, **options)


def post(url: str, body: dict[str, Any]) -> httpx.Response:
    """Post over a new connection."""
    with connect() as client:
        return client.post(url, json=body)


def ask(text: str = REPEAT, *, stream: bool = True, max_tokens: int = 60) -> dict[str, Any]:
    """Make the body of a chat request."""
    return {
        "model": "lab-tiny:1",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": stream,
    }


def events_of(body: bytes) -> list[str]:
    return [event.data for event in Decoder().feed(body)]


def text_of(body: bytes) -> str:
    """Join the text of a stream's events."""
    chunks = [json.loads(data) for data in events_of(body) if data != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Wait for what must come, and not much longer."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)


@pytest.fixture
def proxy(service: Service) -> Iterator[FaultProxy]:
    with FaultProxy(service.url) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[httpx.Client]:
    """A client whose connection to the proxy is open already: the harder case."""
    with connect(base_url=proxy.url) as kept:
        kept.get("/models/loaded").raise_for_status()
        yield kept


class Packets:
    """What a client has of a streamed answer, also after an error in its middle."""

    def __init__(self, client: httpx.Client, body: dict[str, Any], **options: Any) -> None:
        self.packets: list[bytes] = []
        self.error: httpx.HTTPError | None = None
        try:
            with client.stream("POST", CHAT, json=body, **options) as self.response:
                for packet in self.response.iter_raw():
                    self.packets.append(packet)
        except httpx.HTTPError as error:
            self.error = error

    @property
    def body(self) -> bytes:
        return b"".join(self.packets)


def exchange(port: int, data: bytes) -> bytes:
    """Send bytes, and receive what comes back until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as wire:
        wire.sendall(data)
        return b"".join(iter(partial(wire.recv, 65536), b""))


def without_ids(text: str) -> str:
    """Leave out what differs each time: ids, times, and the comments of a service that is slow."""
    return re.sub(r'"created":\d+|chatcmpl-\w+|: keep-alive\n\n', "", text)


# What is no fault


@pytest.mark.parametrize("path", ["/models/loaded", "/v1/models", "/v1/models/no-such", "/nothing"])
def test_without_a_fault_the_answer_is_the_services(
    service: Service, client: httpx.Client, path: str
) -> None:
    """Status, headers and body arrive as the service sends them, also those of its errors."""
    direct, proxied = get(service.url + path), client.get(path)
    assert proxied.status_code == direct.status_code
    assert proxied.headers.raw == direct.headers.raw
    assert without_ids(proxied.text) == without_ids(direct.text)


@pytest.mark.parametrize("stream", [True, False])
def test_without_a_fault_a_chat_is_the_services(
    service: Service, client: httpx.Client, stream: bool
) -> None:
    """Text, events and headers are the same, streamed or not; the doubled headers are doubled."""
    body = ask(stream=stream)
    direct, proxied = post(service.url + CHAT, body), client.post(CHAT, json=body)
    assert "Zürich €" in proxied.text or stream
    assert without_ids(proxied.text) == without_ids(direct.text)
    for answer in (direct, proxied):
        if not stream:  # an id may be a digit shorter than another
            assert int(answer.headers.pop("Content-Length")) == len(answer.content)
    assert proxied.headers.raw == direct.headers.raw


def test_events_arrive_one_by_one(client: httpx.Client, proxy: FaultProxy) -> None:
    """The proxy hands a stream on as it comes: the first event is there before the last is made."""
    with client.stream("POST", CHAT, json=ask(COUNT) | ESSAY) as response:
        packets = response.iter_raw()
        next(packets)
        assert proxy.seen[-1].outcome == ""


def test_requests_of_all_shapes_pass(client: httpx.Client, proxy: FaultProxy) -> None:
    """A chunked body, a large one, HEAD and an answer that closes; then the connection's next."""
    body = json.dumps(ask(stream=False)).encode()
    chunked = client.post(CHAT, content=(bytes([byte]) for byte in body))
    assert "Zürich €" in chunked.text
    assert "Invalid JSON" in client.post(CHAT, content=b"x" * 5_000_000).text
    assert proxy.open_connections == 1
    assert client.head("/models/loaded").status_code == 404  # as the service has it
    assert client.get("/models/loaded").json() == ["lab-tiny:1"]
    assert {seen.outcome for seen in proxy.seen} == {"whole"}


def test_requests_in_one_packet_get_their_answers_in_order(proxy: FaultProxy) -> None:
    """Each meets its fault; a HEAD gets no body, a trailer is no request, and the last one ends."""
    path = b"/catalogs/local/models/loaded HTTP/1.1\r\n"
    proxy.plan = Script([Pass(), Status(429), Status(503)])
    answers = exchange(
        proxy.port,
        b"GET " + path + b"\r\n"
        b"HEAD " + path + b"\r\n"
        b"POST " + path + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nTrailer: x\r\n\r\n"
        b"GET " + path + b"Connection: close\r\n\r\n",
    )
    _, *answers_apart = answers.split(b"HTTP/1.1 ")
    assert [answer[:3] for answer in answers_apart] == [b"200", b"429", b"503", b"200"]
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers_apart]
    assert bodies[0] == bodies[3] == b'["lab-tiny:1"]'
    assert bodies[1] == b""


def test_an_answer_that_closes_does(proxy: FaultProxy) -> None:
    """The service closes the connection after a path that it does not know; so does the proxy."""
    assert b"Connection: close" in exchange(proxy.port, b"GET /nothing HTTP/1.1\r\n\r\n")


@pytest.mark.parametrize(
    "junk",
    [
        b"hello\r\n\r\n",
        b"GET /status HTTP/1.0\r\n\r\n",
        b"GET http://elsewhere/ HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x00\xff\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 70_000,
        b"POST /status HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /status HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\n",
    ],
)
def test_what_is_no_http_is_reset(proxy: FaultProxy, junk: bytes) -> None:
    """The proxy neither hangs on it nor dies of it."""
    with pytest.raises(ConnectionResetError):
        exchange(proxy.port, junk)
    assert get(f"{proxy.url}/models/loaded").status_code == 200


def test_it_listens_on_loopback_only(proxy: FaultProxy) -> None:
    """Nothing of it can be reached from another machine, and its URL has the service's path."""
    listening = [
        connection.laddr.ip
        for connection in psutil.Process().net_connections()
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == proxy.port
    ]
    assert listening == ["127.0.0.1"]
    assert proxy.url == f"http://127.0.0.1:{proxy.port}/catalogs/local"


def test_small_packets_leave_at_once(client: httpx.Client, proxy: FaultProxy) -> None:
    """No Nagle: a token waits for no acknowledgement, neither of the proxy nor to it."""
    assert client.get("/models/loaded").status_code == 200
    things = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Transport)]
    wires = [wire for thing in things if (wire := thing.get_extra_info("socket")).fileno() > 0]
    assert proxy.port in [wire.getsockname()[1] for wire in wires]
    assert all(wire.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for wire in wires)


@pytest.mark.anyio
async def test_a_synchronous_call_on_a_running_loop_does_not_deadlock(proxy: FaultProxy) -> None:
    """A notebook's cell runs on the kernel's event loop; the proxy doesn't."""
    assert get(f"{proxy.url}/models/loaded").status_code == 200


def test_twenty_clients_at_once_get_their_answers(proxy: FaultProxy) -> None:
    """Connections don't disturb each other: a fault meets its request only."""
    proxy.plan = Script([Stall()] + [Pass(), Status(503)] * 10)
    url = f"{proxy.url}/models/loaded"
    with ThreadPoolExecutor(21) as pool:
        stalled = pool.submit(get, url, timeout=3)
        until(lambda: proxy.counts["Stall"] == 1)
        answers = pool.map(get, [url] * 20)
        assert sorted(answer.status_code for answer in answers) == [200] * 10 + [503] * 10
        assert isinstance(stalled.exception(), httpx.ReadTimeout)


# Faults


def test_refuse_is_a_refused_connection(client: httpx.Client, proxy: FaultProxy) -> None:
    """Also for the client whose connection was open; and then the service is back."""
    proxy.plan = Always(Refuse())
    for _ in range(2):
        with pytest.raises(httpx.ConnectError):
            client.get("/models/loaded")
    proxy.plan = ()
    assert client.get("/models/loaded").status_code == 200


def test_refuse_keeps_the_port(proxy: FaultProxy) -> None:
    """Nobody else gets it meanwhile."""
    proxy.plan = Always(Refuse())
    with socket.socket() as other, pytest.raises(OSError, match=f"{errno.EADDRINUSE}"):
        other.bind(("127.0.0.1", proxy.port))


def test_refuse_lets_the_busy_finish(client: httpx.Client, proxy: FaultProxy) -> None:
    """An answer that has begun comes whole; then its connection is closed."""
    proxy.plan = Script([Pace(20), Refuse()])
    answer = Packets(client, ask())
    assert "[DONE]" in events_of(answer.body)
    assert answer.response.headers["Connection"] == "close"  # so that the client expects it
    with pytest.raises(httpx.ConnectError):
        client.get("/models/loaded")


def test_reset_is_a_read_error(client: httpx.Client, proxy: FaultProxy) -> None:
    """The connection is reset after the request, before any header."""
    proxy.plan = Always(Reset())
    answer = Packets(client, ask())
    assert isinstance(answer.error, httpx.ReadError)
    assert (proxy.seen[-1].status, proxy.seen[-1].outcome) == (None, "cut")


def test_reset_after_accept_needs_no_request(proxy: FaultProxy) -> None:
    """A connection is reset though nothing was sent; the next one is met by the next fault."""
    proxy.plan = Script([Reset(after="accept")])
    with pytest.raises(ConnectionResetError):  # to connect, or then to read
        exchange(proxy.port, b"")
    assert (proxy.seen[-1].method, proxy.seen[-1].path) == ("", "")
    assert str(proxy.seen[-1]).startswith("a connection: Reset, no answer, cut, ")
    assert get(f"{proxy.url}/models/loaded").status_code == 200


def test_reset_after_accept_in_httpx(proxy: FaultProxy) -> None:
    """Where the client is at that moment decides which of three errors it sees."""
    proxy.plan = Always(Reset(after="accept"))
    with pytest.raises((httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError)):
        post(proxy.url + CHAT, ask())


def test_reset_after_accept_meets_an_open_connection_at_its_request(
    client: httpx.Client, proxy: FaultProxy
) -> None:
    """There is nothing to accept on a connection that was kept."""
    proxy.plan = Always(Reset(after="accept"))
    with pytest.raises(httpx.ReadError):
        client.get("/models/loaded")
    assert proxy.seen[-1].method == "GET"


@pytest.mark.parametrize(
    ("how", "error"), [("reset", httpx.ReadError), ("close", httpx.RemoteProtocolError)]
)
@pytest.mark.parametrize("events", [0, 3])
def test_cut_body_breaks_a_stream_off(
    client: httpx.Client, proxy: FaultProxy, events: int, how: Any, error: type[httpx.HTTPError]
) -> None:
    """The status and so many events arrive, then an error."""
    proxy.plan = Always(CutBody(events, how=how))
    answer = Packets(client, ask())
    assert answer.response.status_code == 200
    assert len(events_of(answer.body)) == events
    assert type(answer.error) is error
    assert (proxy.seen[-1].status, proxy.seen[-1].outcome) == (200, "cut")


@pytest.mark.parametrize(
    ("how", "error"), [("reset", httpx.ReadError), ("close", httpx.RemoteProtocolError)]
)
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("count", [0, 300])
def test_cut_body_counts_bytes(
    client: httpx.Client,
    proxy: FaultProxy,
    stream: bool,
    count: int,
    how: Any,
    error: type[httpx.HTTPError],
) -> None:
    """So many bytes of the body arrive, streamed or not."""
    proxy.plan = Always(CutBody(3, after_bytes=count, how=how))
    answer = Packets(client, ask(stream=stream))
    assert len(answer.body) == count
    assert type(answer.error) is error


@pytest.mark.parametrize("bound", [{"after_events": 3}, {"after_bytes": 300}])
def test_cut_body_can_look_finished(
    client: httpx.Client, proxy: FaultProxy, bound: dict[str, int]
) -> None:
    """The body ends as HTTP wants it and the connection lives on, but no [DONE] came."""
    proxy.plan = Always(CutBody(**bound, how="end"))
    for stream in (True, False):
        answer = Packets(client, ask(stream=stream))
        assert answer.error is None
        assert b"[DONE]" not in answer.body
        assert proxy.seen[-1].outcome == "whole"
    assert proxy.open_connections == 1


@pytest.mark.anyio
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
async def test_comments_are_no_events(line_end: str) -> None:
    """A service that thinks sends ``: keep-alive``, in packets of any size: only events count."""
    stream = ": hm\n\ndata: 1\n\n: hm\n\n: hm\n\nid: x\ndata: 2\n\n: hm\n\ndata: 3\n\ndata: 4"
    body = stream.replace("\n", line_end).encode()

    async def packets() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 5):
            yield body[start : start + 5]

    async def under(fault: Fault) -> bytes:
        headers = {"Content-Type": "text/event-stream"}
        response = httpx.Response(200, headers=headers, content=packets())
        return b"".join([packet async for packet in fault.body(response)])

    assert events_of(await under(CutBody(2, how="end"))) == ["1", "2"]
    assert await under(Pace(1e9)) == body


def test_cut_body_of_a_shorter_stream_cuts_its_end(client: httpx.Client, proxy: FaultProxy) -> None:
    """All events are there, [DONE] too, but the end of the body isn't."""
    proxy.plan = Always(CutBody(1000, how="close"))
    answer = Packets(client, ask())
    assert events_of(answer.body)[-1] == "[DONE]"
    assert isinstance(answer.error, httpx.RemoteProtocolError)


@pytest.mark.parametrize("fault", [Stall(), Delay(60)])
def test_silence_before_the_headers_is_a_read_timeout(
    client: httpx.Client, proxy: FaultProxy, fault: Fault
) -> None:
    """Nothing arrives, and nothing ends it but the client's own patience; the proxy notices."""
    proxy.plan = Always(fault)
    with pytest.raises(httpx.ReadTimeout):
        client.post(CHAT, json=ask(), timeout=0.2)
    until(lambda: proxy.seen[-1].outcome == "client left")
    assert proxy.seen[-1].status is None


@pytest.mark.parametrize("fault", [Stall(), Status(503)])
def test_a_large_request_is_read_though_it_goes_nowhere(
    client: httpx.Client, proxy: FaultProxy, fault: Fault
) -> None:
    """A client must get rid of it all before it looks for an answer."""
    proxy.plan = Always(fault)
    with contextlib.suppress(httpx.ReadTimeout):
        client.post(CHAT, content=b"x" * 9_000_000, timeout=httpx.Timeout(30, read=0.2))
    until(lambda: proxy.seen[-1].outcome in ("client left", "whole"))


@pytest.mark.parametrize(("stream", "events"), [(True, 3), (True, 0), (False, 3)])
def test_stall_in_the_body_is_a_read_timeout(
    client: httpx.Client, proxy: FaultProxy, stream: bool, events: int
) -> None:
    """The headers and so many events arrive, then silence; an answer that is no stream has none."""
    proxy.plan = Always(Stall(after_events=events))
    answer = Packets(client, ask(stream=stream), timeout=httpx.Timeout(30, read=1))
    assert isinstance(answer.error, httpx.ReadTimeout)
    assert len(events_of(answer.body)) == (events if stream else 0)
    until(lambda: proxy.seen[-1].outcome == "client left")


def test_delay_holds_the_request_back(client: httpx.Client, proxy: FaultProxy) -> None:
    """The answer is whole and comes no earlier than that."""
    proxy.plan = Always(Delay(0.3))
    began = time.monotonic()
    assert "Zürich €" in client.post(CHAT, json=ask(stream=False)).text
    assert time.monotonic() - began >= 0.3


def test_drip_passes_every_read_timeout(client: httpx.Client, proxy: FaultProxy) -> None:
    """The body takes longer than the timeout, which counts anew with each packet."""
    proxy.plan = Always(Drip(bytes_per_packet=5, seconds=0.05))
    began = time.monotonic()
    answer = client.post(CHAT, json=ask(stream=False), timeout=2)
    assert "Zürich €" in answer.text
    assert time.monotonic() - began >= len(answer.content) // 5 * 0.05 > 2


def test_drip_is_bytes_on_the_wire(client: httpx.Client, proxy: FaultProxy) -> None:
    """Each packet has the size that was asked for; together they are the answer."""
    proxy.plan = Always(Drip(bytes_per_packet=100, seconds=0))
    answer = Packets(client, ask())
    assert max(map(len, answer.packets)) == 100
    assert "Zürich €" in text_of(answer.body)


def test_pace_is_a_rate_of_events(client: httpx.Client, proxy: FaultProxy) -> None:
    """n events take (n - 1) / rate seconds at least, and all arrive."""
    proxy.plan = Always(Pace(tokens_per_second=20))
    began = time.monotonic()
    answer = Packets(client, ask())
    events = events_of(answer.body)
    assert time.monotonic() - began >= (len(events) - 1) / 20
    assert (text_of(answer.body), events[-1]) == ("Zürich €", "[DONE]")


@pytest.mark.parametrize("code", [401, 404, 429, 500, 502, 503, 504])
def test_status_is_an_error_in_foundrys_words(
    client: httpx.Client, proxy: FaultProxy, code: int
) -> None:
    """It has the envelope of the service's own errors, and the connection stays open."""
    proxy.plan = Always(Status(code))
    answer = client.post(CHAT, json=ask())
    with pytest.raises(httpx.HTTPStatusError):
        answer.raise_for_status()
    assert answer.status_code == code
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("server_error" if code >= 500 else "invalid_request_error")
    assert "Retry-After" not in answer.headers
    assert proxy.open_connections == 1


DATE = "Sun, 06 Nov 1994 08:49:37 GMT"


@pytest.mark.parametrize("retry_after", [2, 0.5, DATE])
def test_status_says_when_to_come_back(
    client: httpx.Client, proxy: FaultProxy, retry_after: float | str
) -> None:
    """Retry-After is what was given, seconds or a date; the message too."""
    proxy.plan = Always(Status(429, retry_after=retry_after, message="Slowly!"))
    answer = client.get("/models/loaded")
    assert answer.headers["Retry-After"] == str(retry_after)
    assert answer.json()["error"]["message"] == "Slowly!"


def test_status_takes_no_time_of_the_service(own_service: Service) -> None:
    """The service does not see the request: it need not even run."""
    with FaultProxy(own_service.url, Always(Status(503))) as proxy:
        own_service.kill()
        assert post(proxy.url + CHAT, ask()).status_code == 503


@pytest.mark.parametrize("code", [200, 502])
def test_html_page_is_no_json(client: httpx.Client, proxy: FaultProxy, code: int) -> None:
    """The status may be 200: only the content type and the body tell."""
    proxy.plan = Always(HtmlPage(code))
    answer = client.get("/models/loaded")
    assert answer.status_code == code
    assert answer.headers["Content-Type"].startswith("text/html")
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_broken_json_is_a_200_that_can_not_be_read(client: httpx.Client, proxy: FaultProxy) -> None:
    """The body of a whole answer breaks off, whatever number of events is spared."""
    proxy.plan = Always(BrokenJson(after_events=3))
    answer = client.post(CHAT, json=ask(stream=False))
    assert answer.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        answer.json()


def test_broken_json_in_a_stream(client: httpx.Client, proxy: FaultProxy) -> None:
    """The events before are whole, the others are no JSON, [DONE] comes."""
    proxy.plan = Always(BrokenJson(after_events=2))
    *events, done = events_of(Packets(client, ask()).body)
    assert done == "[DONE]"
    for event in events[:2]:
        json.loads(event)
    for event in events[2:]:
        with pytest.raises(json.JSONDecodeError):
            json.loads(event)


def test_broken_sse_loses_no_text_but_its_end(client: httpx.Client, proxy: FaultProxy) -> None:
    """A decoder by the standard reads all the text and sees no [DONE]; a hasty one breaks."""
    proxy.plan = Always(BrokenSse())
    body = Packets(client, ask()).body
    assert text_of(body) == "Zürich €"
    assert "[DONE]" not in events_of(body)
    assert body.endswith(b"data: [DONE]")
    with pytest.raises(UnicodeDecodeError):
        body.decode()
    assert client.get("/models/loaded").json() == ["lab-tiny:1"]


def test_error_event_ends_a_stream_after_its_200(client: httpx.Client, proxy: FaultProxy) -> None:
    """So many events, then an error in the service's words, then the end without [DONE]."""
    proxy.plan = Always(ErrorEvent(after_events=3))
    answer = Packets(client, ask())
    assert (answer.response.status_code, answer.error) == (200, None)
    *events, error = events_of(answer.body)
    assert len(events) == 3
    assert json.loads(error)["error"]["type"] == "server_error"
    assert client.get("/models/loaded").json() == ["lab-tiny:1"]


def test_split_utf8_cuts_in_the_worst_places(
    service: Service, client: httpx.Client, proxy: FaultProxy
) -> None:
    """The bytes are the same; no packet holds a whole ü or €, two line ends, or a whole line."""
    proxy.plan = Always(SplitUtf8())
    answer = Packets(client, ask())
    direct = post(service.url + CHAT, ask())
    assert without_ids(answer.body.decode()) == without_ids(direct.text)
    for packet in answer.packets:
        assert len(packet) == 1 or re.fullmatch(rb"[^\x80-\xff\r\n]{1,16}", packet)
    with pytest.raises(UnicodeDecodeError):
        [packet.decode() for packet in answer.packets]


def test_openai_meets_the_faults_too(proxy: FaultProxy) -> None:
    """The proxy is on the wire, so a library with its own retries can be watched at them."""
    proxy.plan = Script([Status(503), Reset()])
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=2) as client:
        answer = client.chat.completions.create(**ask(stream=False))
    assert answer.choices[0].message.content == "Zürich €"
    assert [seen.fault for seen in proxy.seen] == ["Status", "Reset", "Pass"]


# Plans


def test_a_script_is_followed_once(client: httpx.Client, proxy: FaultProxy) -> None:
    """One fault per request in order, then none."""
    proxy.plan = Script([Status(503), Status(429), Pass()])
    statuses = [client.get("/models/loaded").status_code for _ in range(5)]
    assert statuses == [503, 429, 200, 200, 200]


def test_any_iterable_is_a_plan(client: httpx.Client, proxy: FaultProxy) -> None:
    """A list, or what itertools makes of one."""
    proxy.plan = itertools.cycle([Status(503), Pass()])
    statuses = [client.get("/models/loaded").status_code for _ in range(4)]
    assert statuses == [503, 200, 503, 200]


def test_a_seed_repeats(client: httpx.Client, proxy: FaultProxy) -> None:
    """The same seed draws the same faults, another seed others; the shares are kept."""

    def draw(seed: int) -> list[int]:
        proxy.plan = Mix({Status(503): 0.2, Status(429): 0.1}, seed)
        return [client.get("/models/loaded").status_code for _ in range(100)]

    first = draw(1)
    assert draw(1) == first
    assert draw(2) != first
    assert first.count(503) > first.count(429) > 0
    assert first.count(200) > 50


def test_shares_of_one_let_nothing_pass() -> None:
    """Also where floating point makes a little more than one of their sum."""
    shares = [0.2, 0.4, 0.3, 0.1]
    mix = Mix({Status(500 + number): share for number, share in enumerate(shares)})
    assert all(isinstance(fault, Status) for fault in itertools.islice(mix, 1000))


def test_a_plan_set_holds_from_the_next_request_on(client: httpx.Client, proxy: FaultProxy) -> None:
    """From any thread, also while an answer is under way, which keeps its own fault."""
    with client.stream("POST", CHAT, json=ask(COUNT)) as response:
        packets = response.iter_raw()
        next(packets)
        setting = threading.Thread(target=setattr, args=(proxy, "plan", Always(Status(503))))
        setting.start()
        setting.join()
        assert get(f"{proxy.url}/models/loaded").status_code == 503
        assert b"[DONE]" in b"".join(packets)
    assert client.get("/models/loaded").status_code == 503
    assert proxy.plan == Always(Status(503))


def test_plans_set_by_many_threads_leave_one(client: httpx.Client, proxy: FaultProxy) -> None:
    """Refusing and answering in turn, from many threads at once, ends as the last one says."""
    plans = [Always(Refuse()), Always(Status(503))] * 20
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda plan: setattr(proxy, "plan", plan), plans))
    proxy.plan = ()
    assert client.get("/models/loaded").status_code == 200


def test_only_spares_other_paths(service: Service) -> None:
    """Chat fails, the rest stays well and uses up no fault."""
    with FaultProxy(service.url, Script([Status(503)]), only=CHAT) as proxy:
        assert get(f"{proxy.url}/models/loaded").status_code == 200
        assert post(proxy.url + CHAT, ask()).status_code == 503
        assert post(proxy.url + CHAT, ask()).status_code == 200
        assert [seen.fault for seen in proxy.seen] == ["Pass", "Status", "Pass"]


def test_only_can_not_know_at_accept(service: Service) -> None:
    """With `only` a reset waits for the request, which alone has a path."""
    with FaultProxy(service.url, Always(Reset(after="accept")), only=CHAT) as proxy:
        assert get(f"{proxy.url}/models/loaded").status_code == 200
        with pytest.raises(httpx.ReadError):
            post(proxy.url + CHAT, ask())


@pytest.mark.parametrize(
    "make",
    [
        lambda: Delay(-1),
        lambda: Delay(math.inf),
        lambda: Delay("soon"),  # type: ignore[arg-type]
        lambda: Pace(0),
        lambda: Drip(0),
        lambda: Drip(seconds=math.nan),
        lambda: Stall(-1),
        lambda: CutBody(1.5),  # type: ignore[arg-type]
        lambda: CutBody(after_bytes=-1),
        lambda: CutBody(how="gently"),  # type: ignore[arg-type]
        lambda: Reset("lunch"),  # type: ignore[arg-type]
        lambda: Status(99),
        lambda: Status(429, retry_after="a\nb: c"),
        lambda: HtmlPage(600),
        lambda: Mix({Status(503): 0.6, Reset(): 0.6}),
        lambda: Mix({Status(503): -0.1}),
        lambda: Mix({Refuse(): 0.1}),
        lambda: Script([503]),  # type: ignore[list-item]
        lambda: Always(Status),  # type: ignore[arg-type]
        lambda: FaultProxy("http://127.0.0.1:9", Status(503)),  # type: ignore[arg-type]
    ],
)
def test_what_can_not_be_is_refused(make: Callable[[], object]) -> None:
    """A plan that can't be followed is an error where it is made, and says what to do."""
    with pytest.raises(InvalidRequest, match="→"):
        make()


def test_a_url_that_is_none_is_refused() -> None:
    """It fails before anything listens."""
    with pytest.raises(SettingsError):
        FaultProxy("localhost:5273")


# What it saw


def test_it_has_seen_every_request(client: httpx.Client, proxy: FaultProxy) -> None:
    """Each record is complete when the client has its answer, however that ends."""
    before = time.monotonic()
    proxy.plan = Script([Status(503), CutBody(1), Reset()])
    client.get("/models/loaded")
    Packets(client, ask())
    Packets(client, ask())
    client.get("/models/loaded?x=1")
    seen = proxy.seen[1:]
    assert [(record.method, record.path) for record in seen] == [
        ("GET", "/catalogs/local/models/loaded"),
        ("POST", "/catalogs/local/v1/chat/completions"),
        ("POST", "/catalogs/local/v1/chat/completions"),
        ("GET", "/catalogs/local/models/loaded?x=1"),
    ]
    assert [record.fault for record in seen] == ["Status", "CutBody", "Reset", "Pass"]
    assert [record.status for record in seen] == [503, 200, None, 200]
    assert [record.outcome for record in seen] == ["whole", "cut", "cut", "whole"]
    times = [time for record in seen for time in (record.began, record.ended)]
    assert times == sorted(times)
    assert before <= times[0]
    assert times[-1] <= time.monotonic()
    assert proxy.counts == {"Pass": 2, "Status": 1, "CutBody": 1, "Reset": 1}


@pytest.mark.parametrize("plan", [(), Always(BrokenSse())], ids=["of known length", "in chunks"])
def test_a_record_is_complete_when_the_answer_is(
    client: httpx.Client, proxy: FaultProxy, plan: Any
) -> None:
    """Looked at right after the answer, a hundred times: never too early."""
    proxy.plan = plan
    for _ in range(100):
        assert ("Content-Length" in client.get("/models/loaded").headers) == (plan == ())
        assert proxy.seen[-1].outcome == "whole"


def test_the_records_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last ones stay; the counts go on."""
    monkeypatch.setattr(proxy_module, "RECORDS", 3)
    with FaultProxy(service.url) as proxy, connect(base_url=proxy.url) as client:
        for number in range(5):
            client.get(f"/models/loaded?{number}")
        assert [seen.path[-1] for seen in proxy.seen] == ["2", "3", "4"]
        assert proxy.counts["Pass"] == 5


def test_open_connections_are_counted(proxy: FaultProxy) -> None:
    """Those of clients, as long as they are open."""
    assert proxy.open_connections == 0
    with connect(base_url=proxy.url) as one, connect(base_url=proxy.url) as two:
        one.get("/models/loaded")
        two.get("/models/loaded")
        assert proxy.open_connections == 2
    until(lambda: proxy.open_connections == 0)


# Ends


def test_a_client_that_leaves_frees_the_service(own_service: Service) -> None:
    """Long before the answer would have been whole, its model can be unloaded."""
    body = ask(COUNT) | ESSAY
    unload = f"{own_service.url}/models/unload/{own_service.alias}"
    began = time.monotonic()
    assert "[DONE]" in post(own_service.url + CHAT, body).text
    whole = time.monotonic() - began
    with FaultProxy(own_service.url) as proxy, connect(base_url=proxy.url) as client:
        with client.stream("POST", CHAT, json=body) as response:
            packets, come = response.iter_raw(), b""
            while not text_of(come):  # it takes the model with its first token
                come += next(packets)
            assert get(unload).status_code == 500  # a session is using it
        until(lambda: get(unload).status_code == 200, whole / 2)
        assert proxy.seen[-1].outcome == "client left"
        assert get(unload.replace("unload", "load")).json() == {"status": "loaded"}
        assert client.post(CHAT, json=ask()).status_code == 200


def test_a_service_that_is_down_is_a_502(own_service: Service) -> None:
    """As a reverse proxy shows it; when the service is back, so are its answers."""
    with FaultProxy(own_service.url) as proxy, connect(base_url=proxy.url) as client:
        client.get("/models/loaded").raise_for_status()
        own_service.kill()
        answer = client.get("/models/loaded")
        assert answer.status_code == 502
        assert "No answer from the service" in answer.json()["error"]["message"]
        own_service.restart()
        assert client.get("/models/loaded").json() == ["lab-tiny:1"]


def test_a_service_that_dies_in_mid_body_is_a_reset(own_service: Service) -> None:
    """The client learns of it though it has its 200."""
    body = ask(COUNT) | ESSAY
    with (
        FaultProxy(own_service.url, Always(Pace(50))) as proxy,
        connect(base_url=proxy.url) as client,
        client.stream("POST", CHAT, json=body) as answer,
    ):
        packets = answer.iter_raw()
        next(packets)
        own_service.kill()
        with pytest.raises(httpx.ReadError):
            list(packets)
    assert (proxy.seen[-1].status, proxy.seen[-1].outcome) == (200, "service broke")


def connections_of(process: psutil.Process, *ports: int) -> list[Any]:
    return [
        connection
        for connection in process.net_connections()
        if {*ports} & {end.port for end in (connection.laddr, connection.raddr) if end}
    ]


def unfinished_tasks() -> list[asyncio.Task[Any]]:
    found = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task)]
    return [task for task in found if not task.done()]


@pytest.mark.parametrize("plan", [(), Always(Stall()), Always(Stall(1)), Always(Refuse())])
def test_close_leaves_nothing(service: Service, plan: Any) -> None:
    """No thread, task or socket: not with idle, busy, stalled or refused clients."""
    threads, tasks = set(threading.enumerate()), len(unfinished_tasks())
    proxy = FaultProxy(service.url).start()
    assert len(set(threading.enumerate()) - threads) == 1
    with connect(base_url=proxy.url) as client, ThreadPoolExecutor(3) as pool:
        client.get("/models/loaded")
        proxy.plan = plan
        body = ask(COUNT) | ESSAY
        answers = [pool.submit(Packets, client, body) for _ in range(3)]
        until(lambda: len(proxy.seen) == 4 or all(answer.done() for answer in answers))
        proxy.close()
        errors = {type(answer.result().error) for answer in answers}
    proxy.close()
    assert errors <= {httpx.RemoteProtocolError, httpx.ReadError, httpx.ConnectError, type(None)}
    assert set(threading.enumerate()) <= threads
    assert len(unfinished_tasks()) == tasks
    assert connections_of(psutil.Process(), proxy.port, service.port) == []
    assert all(seen.outcome for seen in proxy.seen)


def test_a_plan_that_raises_leaves_nothing(service: Service) -> None:
    """An error of one's own plan comes out of `start`, and no thread stays."""
    threads = set(threading.enumerate())
    with pytest.raises(ZeroDivisionError):
        FaultProxy(service.url, (Status(1 // 0) for _ in "a")).start()
    assert set(threading.enumerate()) <= threads


def test_on_end_is_told_that_it_cannot_wait_for_itself(service: Service) -> None:
    """A new plan is refused in the proxy's own thread; there it would wait for ever."""
    said = list[str]()

    def change_the_plan(_: object) -> None:
        with pytest.raises(InvalidRequest) as caught:
            noisy.plan = ()
        said.append(str(caught.value))

    with FaultProxy(service.url, on_end=change_the_plan) as noisy:
        httpx.get(f"{noisy.url}/models/loaded")
    assert len(said) == 1


def test_it_starts_again_on_its_port(service: Service) -> None:
    """Closed and started, it is where its clients look for it, with its plan from the beginning."""
    proxy = FaultProxy(service.url, Script([Status(503)]))
    for _ in range(2):
        with proxy, connect(base_url=proxy.url) as client:
            url = proxy.url
            assert proxy.start() is proxy
            assert client.get("/models/loaded").status_code == 503
            assert client.get("/models/loaded").status_code == 200
    assert proxy.url == url


def test_a_port_in_use_is_named(service: Service) -> None:
    """A taken port is an error at the start, and nothing is left of it."""
    threads = set(threading.enumerate())
    with pytest.raises(PortInUse, match=str(service.port)):
        FaultProxy(service.url, port=service.port).start()
    assert set(threading.enumerate()) <= threads


def test_a_program_that_forgets_to_close_it_ends_all_the_same(service: Service) -> None:
    """Its thread holds nobody up, and nothing is said about what it left."""
    program = (
        "import sys, httpx; from foundry_lab.faults import FaultProxy\n"
        "proxy = FaultProxy(sys.argv[1]).start()\n"
        "print(httpx.get(proxy.url + '/models/loaded').json())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, service.url], capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr) == ("['lab-tiny:1']\n", "")


# The command line


@pytest.mark.parametrize(
    ("texts", "plan"),
    [
        (["Status"], [Status()] * 3),
        (["Status:code=429,retry_after=2", "Pass"], [Status(429, retry_after=2), Pass()] * 2),
        (["CutBody:after_events=3,how=close"], [CutBody(3, how="close")]),
        (["Stall:after_events=null"], [Stall()]),
        (["Status:message=Come back later!"], [Status(message="Come back later!")]),
        ([f"Status:code=503,retry_after={DATE}"], [Status(503, retry_after=DATE)]),
        (["Delay:seconds=0.5@1"], [Delay(0.5)] * 3),
    ],
)
def test_a_plan_is_read_from_text(texts: list[str], plan: list[Fault]) -> None:
    """Faults take turns; values are numbers or words; a share makes a mix."""
    assert list(itertools.islice(plan_from(texts), len(plan))) == plan


def test_shares_make_a_mix() -> None:
    """What the command line says is what Mix takes."""
    assert plan_from(["Status:code=503@0.1", "Reset@0.2"], 7) == Mix(
        {Status(503): 0.1, Reset(): 0.2}, 7
    )


@pytest.mark.parametrize(
    ("texts", "complaint"),
    [
        (["Statsu"], "Did you mean Status"),
        (["Status:cod=429"], "Did you mean code"),
        (["Reset:after"], "can't have after=''"),
        (["Pass:x=1"], "Write just Pass"),
        (["Status:code=many"], "code='many'"),
        (["Status@0.1", "Reset"], "some have a share"),
        (["Status@lots"], "can't be mixed"),
    ],
)
def test_a_text_that_is_no_plan_is_refused(texts: list[str], complaint: str) -> None:
    """The complaint names the part that is wrong and what comes near."""
    with pytest.raises(FoundryLabError, match=re.escape(complaint)):
        plan_from(texts)


@contextlib.contextmanager
def command(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command; give it and the URL that it says in its first line."""
    with subprocess.Popen(
        [sys.executable, "-m", "foundry_lab", "faults", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def press_ctrl_c(process: subprocess.Popen[str]) -> tuple[list[str], str]:
    """Return the lines that it says until its end, and its complaints."""
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stderr is not None
    said = process.stdout.read().splitlines(), process.stderr.read()
    process.wait(timeout=20)
    return said


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal of this kind")
def test_the_command_runs_until_ctrl_c(service: Service) -> None:
    """It says its URL, then a line for each request, and Ctrl-C ends it without a traceback."""
    arguments = ["--to", service.url, "--only", "/models", "--fault", "Status:code=429"]
    with command(*arguments) as (process, url):
        assert get(f"{url}/models/loaded").status_code == 429
        assert get(f"{url}/v1/models/no-such").status_code == 429
        assert post(url + CHAT, ask()).status_code == 200
        status = get(url.replace("/catalogs/local", "/status")).json()
        (hint, *lines), complaint = press_ctrl_c(process)
    assert (process.returncode, complaint) == (0, "")
    assert status["pid"] == service.pid
    assert hint == "Ctrl-C ends it."
    assert lines[0].startswith("GET /catalogs/local/models/loaded: Status, 429, whole, ")
    assert len(lines) == 4
    assert lines[2].startswith("POST /catalogs/local/v1/chat/completions: Pass, 200, whole, ")
    with pytest.raises(httpx.ConnectError):
        get(f"{url}/models/loaded")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal of this kind")
def test_the_command_brings_its_own_service() -> None:
    """Without --to it starts one, and ends it with itself."""
    with command() as (process, url):
        pid = get(url.replace("/catalogs/local", "/status")).json()["pid"]
        assert psutil.pid_exists(pid)
        _, complaint = press_ctrl_c(process)
    assert (process.returncode, complaint) == (0, "")
    until(lambda: not psutil.pid_exists(pid))


def test_the_command_refuses_what_is_no_fault() -> None:
    """One clear message, before anything is started, and a failing exit code."""
    with command("--fault", "Statsu") as (process, _):
        _, complaint = process.communicate(timeout=60)
    assert process.returncode == 1
    assert complaint.startswith("There is no fault 'Statsu'.\n→ Did you mean Status")
