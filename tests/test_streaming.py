"""Streams from the real service; what it never does comes from a small server made by hand."""

import asyncio
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import httpx
import openai
import psutil
import pytest
from essay import ESSAY
from raw_server import Line, chunk, head, serving, whole

from foundry_lab import FoundryAPIClient, Service, Settings, resilient
from foundry_lab.cache import Cache
from foundry_lab.chat import Chunk
from foundry_lab.errors import (
    CallError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    InvalidResponse,
    ModelBusy,
    StatusError,
    StreamInterrupted,
    TokenTimeout,
)
from foundry_lab.faults import Always, CutBody, Fault, FaultProxy, Stall
from foundry_lab.layers import Layer
from foundry_lab.records import Attempt, Call, FirstToken, Hook, Record, ignore
from foundry_lab.retry import RetryTransport
from foundry_lab.wire import http_transport

pytestmark = pytest.mark.anyio

LONG = "Count from 1 to 900."


async def text_of(stream: AsyncIterator[Chunk], seen: list[str] | None = None) -> str:
    """Read a stream to its end; `seen` has its pieces even if it breaks."""
    seen = [] if seen is None else seen
    async for piece in stream:
        seen.append(piece.content)
    return "".join(seen)


# --- The real service ----------------------------------------------------------------------------


async def test_a_stream_brings_what_complete_brings(client: FoundryAPIClient) -> None:
    """The pieces make the same text; the last two say why it ended and what it cost."""
    whole = await client.complete("What is jitter?", max_tokens=40)
    chunks = [chunk async for chunk in client.stream_complete("What is jitter?", max_tokens=40)]
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert sum(bool(chunk.content) for chunk in chunks) > 3
    assert (chunks[-2].finish_reason, chunks[-1].usage) == (whole.finish_reason, whole.usage)


async def test_a_mistake_is_refused_at_the_call(client: FoundryAPIClient) -> None:
    """Not first in the loop: nothing has to be iterated to learn of it."""
    with pytest.raises(InvalidRequest, match="max_tokens"):
        client.stream_complete("Hello", max_tokens=0)
    with pytest.raises(InvalidRequest, match="stall"):
        client.stream_complete("Hello", stall=-1.0)


@pytest.fixture(scope="module")
def spare() -> Iterator[Service]:
    """A service whose model may be unloaded."""
    with Service() as running:
        yield running


async def leave_the_loop(client: FoundryAPIClient) -> None:
    async for piece in client.stream_complete(LONG, **ESSAY):
        if piece.content:
            break


async def fail_in_the_loop(client: FoundryAPIClient) -> None:
    async for piece in client.stream_complete(LONG, **ESSAY):
        if piece.content:
            raise ZeroDivisionError


async def close_the_stream(client: FoundryAPIClient) -> None:
    stream = client.stream_complete(LONG, **ESSAY)
    while not (await anext(stream)).content:
        pass
    await stream.aclose()


async def cancel_the_task(client: FoundryAPIClient) -> None:
    begun = asyncio.Event()

    async def consume() -> None:
        async for piece in client.stream_complete(LONG, **ESSAY):
            if piece.content:
                begun.set()

    task = asyncio.create_task(consume())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_complete(client: FoundryAPIClient) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await client.complete(LONG, **ESSAY)


async def miss_the_deadline(client: FoundryAPIClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await text_of(client.stream_complete(LONG, **ESSAY, timeout=0.2))


async def busy(client: FoundryAPIClient) -> bool:
    """Whether the model generates; if it does not, it is unloaded and loaded again."""
    try:
        await client.unload("lab-tiny")
    except ModelBusy:
        return True
    await client.load("lab-tiny")
    return False


@pytest.mark.parametrize(
    "leave",
    [
        leave_the_loop,
        fail_in_the_loop,
        close_the_stream,
        cancel_the_task,
        cancel_complete,
        miss_the_deadline,
    ],
)
async def test_who_leaves_frees_the_model(
    spare: Service, leave: Callable[[FoundryAPIClient], Awaitable[None]]
) -> None:
    """However a stream is left, the service stops generating: soon it can unload the model."""
    async with FoundryAPIClient(spare) as client:
        await client.load("lab-tiny")
        await client.complete("What is jitter?", max_tokens=1)
        with suppress(ZeroDivisionError):
            await leave(client)
        async with asyncio.timeout(0.5):
            while await busy(client):
                pass


class Watch(Layer):
    """Tells which local ports the chats used: a port is a connection."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        super().__init__(inner)
        self.ports = list[int]()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        if request.method == "POST":
            wire = response.extensions["network_stream"].get_extra_info("socket")
            self.ports.append(wire.getsockname()[1])
        return response


async def test_a_whole_stream_gives_its_connection_back(service: Service) -> None:
    """One connection carries one stream after the other, and complete's streams too."""
    watch = Watch(http_transport(httpx.URL(service.url)))
    async with FoundryAPIClient(service, transport=watch) as client:
        for _ in range(2):
            await text_of(client.stream_complete("What is jitter?", max_tokens=5))
            await client.complete("What is jitter?", max_tokens=5)
    assert len(watch.ports) == 4
    assert len(set(watch.ports)) == 1


async def test_a_stream_that_was_left_gives_its_connection_up(service: Service) -> None:
    """What still comes on it must not reach the next call."""
    watch = Watch(http_transport(httpx.URL(service.url)))
    async with FoundryAPIClient(service, transport=watch) as client:
        await leave_the_loop(client)
        assert (await client.complete("What is jitter?", max_tokens=5)).usage.completion_tokens == 5
    assert len(set(watch.ports)) == 2


async def test_twenty_streams_at_once_all_finish(client: FoundryAPIClient) -> None:
    """More than the limit lets through wait for their turn, and each gets its own whole text."""
    alone = [await text_of(client.stream_complete(f"Count from 1 to {n}.")) for n in (5, 9)]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(text_of(client.stream_complete(f"Count from 1 to {n}.")))
            for n in (5, 9) * 10
        ]
    assert [task.result() for task in tasks] == alone * 10


def open_connections(port: int | None) -> list[Any]:
    return [
        each
        for each in psutil.Process().net_connections("tcp")
        if each.raddr and each.raddr.port == port
    ]


async def test_nothing_is_left_behind(service: Service) -> None:
    """After aclose there is no task and no connection, whatever became of the streams."""
    before, port = asyncio.all_tasks(), httpx.URL(service.url).port
    others = len(open_connections(port))
    async with FoundryAPIClient(service) as client:
        await text_of(client.stream_complete("What is jitter?", max_tokens=5))
        assert len(open_connections(port)) == others + 1
        await leave_the_loop(client)
        await cancel_the_task(client)
        with pytest.raises(DeadlineExceeded):
            await client.complete(LONG, **ESSAY, timeout=0.1)
        never_begun = client.stream_complete("Hello")
    await never_begun.aclose()
    gc.collect()
    for _ in range(10):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert len(open_connections(port)) == others


async def test_the_first_token_is_told_once(service: Service) -> None:
    """A stream tells it before the caller has the second piece; complete shows no tokens."""
    told = list[Record]()
    async with FoundryAPIClient(service, hook=told.append) as client:
        began = time.monotonic()
        async for piece in client.stream_complete("What is jitter?", max_tokens=5):
            first = [record for record in told if isinstance(record, FirstToken)]
            assert len(first) == (1 if piece.content or first else 0)
        assert 0 < first[0].seconds < time.monotonic() - began
        told.clear()
        await client.complete("What is jitter?", max_tokens=5)
        assert not any(isinstance(record, FirstToken) for record in told)
        assert any(isinstance(record, Attempt) for record in told)


@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize(
    ("fault", "times", "error", "attempts"),
    [
        (Stall(after_events=6), {"timeout": 1.5}, DeadlineExceeded, 1),
        (Stall(after_events=6), {"stall": 0.3}, TokenTimeout, 2),
        (CutBody(after_events=6), {}, ConnectionLost, 2),
    ],
    ids=["deadline", "stall", "cut"],
)
async def test_complete_keeps_the_text_of_what_broke_off(
    service: Service,
    fault: Fault,
    times: dict[str, Any],
    error: type[CallError],
    attempts: int,
    cached: bool,
) -> None:
    """Its caller has seen nothing, but the error has what the last attempt brought."""
    with FaultProxy(service.url, only="/v1/chat/completions") as proxy:
        cache = Cache() if cached else None
        async with FoundryAPIClient(proxy.url, settings=Settings(retries=1), cache=cache) as client:
            whole = await client.complete("Count from 1 to 20.", max_tokens=30)
            proxy.plan = Always(fault)
            with pytest.raises(error) as caught:
                await client.complete("Count from 1 to 20.", max_tokens=31, **times)
        if cache:
            cache.close()
    assert whole.content.startswith(caught.value.content)
    assert 0 < len(caught.value.content) < len(whole.content)
    assert caught.value.attempts == attempts


async def test_a_slow_reader_is_no_stall(client: FoundryAPIClient) -> None:
    """Only the service's silence counts, not the time that the caller takes for a piece."""
    stream = client.stream_complete("Count from 1 to 20.", max_tokens=20, stall=0.7)
    read = list[Chunk]()
    async for piece in stream:
        if len(read) in (2, 3):
            await asyncio.sleep(0.8)
        read.append(piece)
    assert read[-1].usage is not None


# --- A server that stalls, trickles and breaks ---------------------------------------------------

DONE = b"data: [DONE]\n\n"
END = (
    b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
    b'data: {"choices": [], "usage": '
    b'{"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}\n\n'
)
ERROR = b'data: {"error": {"message": "out of memory"}}\n\n'
STREAM = head(kind="text/event-stream", length=100_000)
"""A stream that is cut off when the connection ends."""
OPEN = head(kind="text/event-stream")
"""A stream whose body ends, as far as HTTP goes, with the connection."""
Chat = Callable[[Line], Awaitable[None]]


@asynccontextmanager
async def asking(
    *chats: Chat, retries: int = 0, hook: Hook = ignore
) -> AsyncIterator[FoundryAPIClient]:
    """Have a client of a server that answers one chat after the other like this."""
    left = list(chats)

    async def answer(line: Line) -> None:
        if line.request.startswith(b"GET /v1/models "):
            await line.send(whole(body=b'{"data": [{"id": "lab-tiny:1"}]}'))
        elif line.request.startswith(b"GET"):
            await line.send(whole(body=b'["lab-tiny:1"]'))
        else:
            await left.pop(0)(line)

    settings = Settings(retries=retries)
    async with (
        serving(answer) as url,
        FoundryAPIClient(url, settings=settings, hook=hook) as client,
    ):
        yield client


def sending(*packets: bytes, forever: bytes | None = None, silent: bool = False) -> Chat:
    """Send these, then the last one again and again, or nothing, or end the connection."""

    async def chat(line: Line) -> None:
        for packet in packets:
            await line.send(packet)
        while forever:
            await line.send(forever)
            await asyncio.sleep(0.01)
        if silent:
            await asyncio.Future()

    return chat


TEXT = STREAM, chunk(""), chunk("one"), chunk(" two")
KEEP_ALIVE = b": keep-alive\n\n"


@pytest.mark.parametrize(
    "chat",
    [
        sending(silent=True),
        sending(STREAM, silent=True),
        sending(STREAM, forever=KEEP_ALIVE),
        sending(STREAM, forever=b":\n"),
        sending(STREAM, chunk(""), forever=chunk("")),
        sending(STREAM, b"data: ", forever=b" "),
    ],
    ids=["no headers", "silence", "keep-alive", "comments", "empty chunks", "trickle"],
)
async def test_a_first_token_that_does_not_come_is_not_waited_for(chat: Chat) -> None:
    """Bytes are no progress: what keeps a connection alive does not keep a caller waiting."""
    async with asking(chat) as client:
        await client.models()
        began = time.monotonic()
        with pytest.raises(TokenTimeout, match="no first token in time") as caught:
            await text_of(client.stream_complete("Hello", model="lab-tiny", first_token=0.2))
        assert 0.15 < time.monotonic() - began < 0.7
        assert caught.value.content == ""


@pytest.mark.parametrize(
    "chat",
    [
        sending(*TEXT, silent=True),
        sending(*TEXT, forever=KEEP_ALIVE),
        sending(*TEXT, b"data: ", forever=b" "),
        sending(*TEXT, forever=b"x"),
    ],
    ids=["silence", "keep-alive", "half an event", "trickle"],
)
async def test_a_stall_ends_the_stream(chat: Chat) -> None:
    """The text before it is in the error; comments and half events are no progress either."""
    async with asking(chat) as client:
        await client.models()
        began = time.monotonic()
        with pytest.raises(StreamInterrupted, match="the stream stalled") as caught:
            await text_of(client.stream_complete("Hello", model="lab-tiny", stall=0.2))
        assert 0.15 < time.monotonic() - began < 0.7
        assert caught.value.content == "one two"


async def test_tokens_in_small_packets_are_no_stall() -> None:
    """A slow line that cuts each event in three still brings a token now and then."""

    async def in_pieces(line: Line) -> None:
        for packet in (*TEXT, *[chunk("x")] * 12, END, DONE):
            for piece in (packet[:3], packet[3:9], packet[9:]):
                await line.send(piece)
                await asyncio.sleep(0.02)

    async with asking(in_pieces) as client:
        text = await text_of(client.stream_complete("Hello", model="lab-tiny", stall=0.4))
    assert text == "one two" + "x" * 12


@pytest.mark.parametrize(
    ("chat", "error", "cause"),
    [
        (sending(*TEXT), StreamInterrupted, httpx.RemoteProtocolError),
        (sending(OPEN, *TEXT[1:]), StreamInterrupted, httpx.RemoteProtocolError),
        (sending(*TEXT, b"data: {\n\n", silent=True), StreamInterrupted, InvalidResponse),
        (sending(*TEXT, ERROR, silent=True), StreamInterrupted, StatusError),
        (sending(OPEN, *TEXT[1:], b"x" * 1_000_001), StreamInterrupted, InvalidResponse),
        (sending(*TEXT[:2], b"".join(TEXT[2:]) + ERROR), StreamInterrupted, StatusError),
        (sending(*TEXT, silent=True), DeadlineExceeded, TimeoutError),
    ],
    ids=["cut", "no [DONE]", "broken JSON", "error", "too long", "one packet", "deadline"],
)
async def test_no_text_is_lost(chat: Chat, error: type[CallError], cause: type[Exception]) -> None:
    """Whatever ends a stream after its first content, the text so far is in the error."""
    async with asking(chat, retries=3) as client:
        pieces = list[str]()
        stream = client.stream_complete("Hello", model="lab-tiny", timeout=0.5)
        with pytest.raises(error) as caught:
            await text_of(stream, pieces)
    assert "".join(pieces) == caught.value.content == "one two"
    assert caught.value.attempts == 1
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (sending(STREAM, chunk("")), ConnectionLost),
        (sending(OPEN, chunk("")), ConnectionLost),
        (sending(STREAM, forever=KEEP_ALIVE), TokenTimeout),
        (sending(STREAM, ERROR), StatusError),
        (sending(*TEXT, ERROR), StreamInterrupted),
        (sending(STREAM, b"data: {\n\n"), InvalidResponse),
        (sending(whole(body=b"<html>")), InvalidResponse),
        (sending(whole(503)), StatusError),
        (sending(whole(400)), StatusError),
    ],
    ids=[
        "cut",
        "no [DONE]",
        "no token",
        "error event",
        "after content",
        "broken JSON",
        "web page",
        "503",
        "400",
    ],
)
async def test_every_error_tells_how_often_it_was_tried(last: Chat, error: type[CallError]) -> None:
    """Two attempts that break off unseen, and the third one that ends it, make three."""
    unseen = sending(STREAM, chunk(""))
    async with asking(unseen, unseen, last, retries=2) as client:
        with pytest.raises(error) as caught:
            await text_of(client.stream_complete("Hello", model="lab-tiny", first_token=0.3))
    assert caught.value.attempts == 3


async def test_complete_asks_again_for_an_answer_that_broke_off() -> None:
    """Its caller sees nothing before the end, so nothing is repeated that was seen."""
    async with asking(sending(*TEXT), sending(*TEXT, END, DONE), retries=1) as client:
        assert (await client.complete("Hello", model="lab-tiny")).content == "one two"


async def test_complete_does_not_ask_again_after_an_error_event() -> None:
    """A service that says what is wrong would say it again; the text before it is kept."""
    async with asking(sending(*TEXT, ERROR), sending(*TEXT, END, DONE), retries=1) as client:
        with pytest.raises(StreamInterrupted, match="out of memory") as caught:
            await client.complete("Hello", model="lab-tiny")
    assert (caught.value.content, caught.value.attempts) == ("one two", 1)


@pytest.mark.parametrize(
    ("last", "error"),
    [
        (sending(STREAM, chunk(""), silent=True), DeadlineExceeded),
        (sending(STREAM, chunk("")), ConnectionLost),
        (sending(whole(400)), StatusError),
        (sending(STREAM, ERROR), StatusError),
    ],
    ids=["deadline", "cut", "400", "error event"],
)
async def test_complete_keeps_the_text_of_an_earlier_attempt(
    last: Chat, error: type[CallError]
) -> None:
    """Where the last one brought none, that of the one before is better than nothing."""
    async with asking(sending(*TEXT), last, retries=1) as client:
        with pytest.raises(error) as caught:
            await client.complete("Hello", model="lab-tiny", timeout=1)
    assert (caught.value.content, caught.value.attempts) == ("one two", 2)


@pytest.mark.parametrize("text", [TEXT, TEXT[:1]], ids=["text", "no text"])
async def test_an_answer_without_its_usage_is_a_failed_call(text: tuple[bytes, ...]) -> None:
    """It came to its end, at the second attempt; the error and the records tell so."""
    told = list[Record]()
    unseen = sending(STREAM, chunk(""))
    async with asking(unseen, sending(*text, DONE), retries=1, hook=told.append) as client:
        with pytest.raises(InvalidResponse, match="without a finish_reason") as caught:
            await client.complete("Hello", model="lab-tiny")
    assert (caught.value.content, caught.value.attempts) == ("one two" * (text is TEXT), 2)
    assert [one.outcome for one in told if isinstance(one, Call)] == ["InvalidResponse"]


@pytest.mark.parametrize(
    "chat",
    [
        sending(*TEXT, END, DONE, silent=True),
        sending(*TEXT, END, DONE, forever=KEEP_ALIVE),
        sending(*TEXT, END, DONE),
        sending(*TEXT[:2], chunk("one") + chunk(" two") + END + DONE, silent=True),
    ],
    ids=["silence", "keep-alive", "cut", "one packet"],
)
async def test_nobody_waits_after_done(chat: Chat) -> None:
    """[DONE] is the end: a body that goes on, stays open or breaks changes nothing."""
    async with asking(chat, chat) as client:
        await client.models()
        began = time.monotonic()
        assert await text_of(client.stream_complete("Hello", model="lab-tiny")) == "one two"
        assert (await client.complete("Hello", model="lab-tiny")).content == "one two"
        assert time.monotonic() - began < 1.5


# --- The layers under other clients --------------------------------------------------------------


async def test_under_openai(service: Service) -> None:
    """Its own client, with our layers below, gives the same text, streamed and not."""
    told = list[Record]()
    transport = resilient(http_transport(httpx.URL(service.url)), Settings(), told.append)
    http = httpx.AsyncClient(transport=transport)
    async with openai.AsyncOpenAI(
        http_client=cast("Any", http),  # typed for httpx2, and takes httpx as well
        base_url=f"{service.url}/v1",
        api_key="none",
        max_retries=0,
    ) as client:
        question: dict[str, Any] = {
            "model": service.model_id,
            "messages": [{"role": "user", "content": "What is jitter?"}],
            "max_tokens": 40,
            "temperature": 0,
        }
        answer = await client.chat.completions.create(**question)
        stream = await client.chat.completions.create(**question, stream=True)
        pieces = [piece.choices[0].delta.content or "" async for piece in stream]
    assert answer.choices[0].message.content == "".join(pieces)
    assert len(pieces) > 3
    assert [record.outcome for record in told if isinstance(record, Attempt)] == ["200", "200"]


async def test_under_openai_an_early_break_is_retried(service: Service) -> None:
    """It never learns of a stream that broke before its first content."""

    async def break_once(line: Line) -> None:
        broken.append(line)
        if len(broken) == 1:
            await line.send(STREAM + chunk(""))
        else:
            await line.send(STREAM + b"".join(TEXT[1:]) + END + DONE)

    broken = list[Line]()
    async with serving(break_once) as url:
        http = httpx.AsyncClient(transport=RetryTransport(httpx.AsyncHTTPTransport()))
        async with openai.AsyncOpenAI(
            http_client=cast("Any", http), base_url=url, api_key="none", max_retries=0
        ) as client:
            stream = await client.chat.completions.create(
                model=service.model_id, messages=[{"role": "user", "content": "Hi"}], stream=True
            )
            pieces = [
                piece.choices[0].delta.content or "" async for piece in stream if piece.choices
            ]
    assert "".join(pieces) == "one two"
    assert len(broken) == 2


async def test_under_a_plain_httpx_client_the_bytes_are_the_same(service: Service) -> None:
    """The layers take nothing away and add nothing, not even for a client of one's own."""
    body = {
        "model": service.model_id,
        "messages": [{"role": "user", "content": "What is jitter?"}],
        "temperature": 0,
        "max_tokens": 10,
        "stream": True,
    }

    async def events(transport: httpx.AsyncBaseTransport) -> list[Any]:
        async with httpx.AsyncClient(transport=transport) as http:
            answer = await http.post(f"{service.url}/v1/chat/completions", json=body)
        lines = [line for line in answer.text.split("\n") if line.startswith("data: {")]
        return [json.loads(line[6:])["choices"] for line in lines]

    wire = httpx.AsyncHTTPTransport
    assert await events(resilient(wire(), Settings())) == await events(wire())
