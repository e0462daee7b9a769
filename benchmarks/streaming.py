"""A stream of the real service over a reused connection: the first token, and the whole answer.

TTFT is from the call to the first text, of the second of two calls in a row: Linux delays its
acknowledgements only where data has gone to and fro within 40 ms. The raw socket is the floor: no
HTTP library, no event loop, nothing parsed, acknowledgements at once.
"""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import httpx
import openai
from measure import Row, Samples, Target, in_turns, on_one_loop, second
from recording import COUNTING, QUESTION, request_body

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.chat import Chunk
from foundry_lab.chunks import ChunkDecoder
from foundry_lab.settings import BUNDLED_MODEL
from foundry_lab.wire import QUICK_ACK, http_transport

__all__ = ["first_token", "rows"]

PATH = "/v1/chat/completions"
OURS, PLAIN, SAME, RAW = "stream_complete", "plain httpx", "httpx by hand", "raw socket"
OPENAI, ASYNC_OPENAI = "OpenAI", "AsyncOpenAI"
WHOLE = "complete"


def rows(quick: bool) -> Iterator[Row]:
    """Compare the time to the first token, then whole answers: a short one and a long one."""
    with Service(Settings(model=BUNDLED_MODEL)) as service, asyncio.Runner() as runner:
        first = _first_tokens(runner, service, 2 if quick else 200)
        # The 40 ms that plain httpx loses are Linux's: elsewhere there is nothing to win.
        target: Target | None = ("≤", 0.4) if QUICK_ACK is not None else None
        yield Row.of("TTFT, reused connection", first, OURS, PLAIN, "ms", target)
        yield Row.of("TTFT, reused connection", first, OURS, RAW, "ms", ("≤", 1.25))
        yield Row.of("TTFT, reused connection", first, OURS, SAME, "ms")
        yield Row.of("TTFT, a connection for each stream", first, OURS, OPENAI, "ms")
        yield Row.of("TTFT, reused connection", first, OURS, ASYNC_OPENAI, "ms")
        yield Row.of(f"TTFT, {SAME}: the floor with httpx", first, SAME, RAW, "ms")
        for prompt, max_tokens in ((QUESTION, 100), (COUNTING, 700)):
            whole = _wholes(runner, service, prompt, max_tokens, 2 if quick else 60)
            what = f"Whole answer to “{prompt}”"
            yield Row.of(what, whole, OURS, SAME, "ms", ("≤", 1.15))
            yield Row.of(f"{what}, complete()", whole, WHOLE, SAME, "ms")


def _first_tokens(runner: asyncio.Runner, service: Service, rounds: int) -> Samples:
    body = request_body(service.model_id, QUESTION, 100)
    client, raw = FoundryAPIClient(service, settings=Settings()), _RawSocket(service, body)
    plain, same = httpx.AsyncClient(base_url=service.url, timeout=30), _same_wire(service)
    theirs: dict[str, Any] = {"base_url": f"{service.url}/v1", "api_key": "none", "max_retries": 0}
    sync_openai, async_openai = openai.OpenAI(**theirs), openai.AsyncOpenAI(**theirs)
    contestants = {
        OURS: on_one_loop(runner, lambda: first_token(_ours(client, QUESTION, 100))),
        PLAIN: on_one_loop(runner, lambda: first_token(_lines(plain, body))),
        SAME: on_one_loop(runner, lambda: first_token(_by_hand(same, body))),
        RAW: raw.first_token,
        OPENAI: lambda: _sync_first_token(sync_openai, body),
        ASYNC_OPENAI: on_one_loop(runner, lambda: first_token(_openai(async_openai, body))),
    }
    try:
        return in_turns(rounds, {name: second(call) for name, call in contestants.items()})
    finally:
        raw.close()
        sync_openai.close()
        runner.run(async_openai.close())
        for http in (client, plain, same):
            runner.run(http.aclose())


def _same_wire(service: Service) -> httpx.AsyncClient:
    url = httpx.URL(service.url)
    return httpx.AsyncClient(base_url=url, timeout=30, transport=http_transport(url))


def _wholes(
    runner: asyncio.Runner, service: Service, prompt: str, max_tokens: int, rounds: int
) -> Samples:
    body = request_body(service.model_id, prompt, max_tokens)
    client, same = FoundryAPIClient(service, settings=Settings()), _same_wire(service)

    async def complete() -> None:
        await client.complete(prompt, max_tokens=max_tokens)

    try:
        return in_turns(
            rounds,
            {
                OURS: on_one_loop(
                    runner, lambda: _timed(lambda: _all(_ours(client, prompt, max_tokens)))
                ),
                SAME: on_one_loop(runner, lambda: _timed(lambda: _all(_by_hand(same, body)))),
                WHOLE: on_one_loop(runner, lambda: _timed(complete)),
            },
        )
    finally:
        runner.run(client.aclose())
        runner.run(same.aclose())


def _ours(client: FoundryAPIClient, prompt: str, max_tokens: int) -> AsyncIterator[Chunk]:
    return client.stream_complete(prompt, max_tokens=max_tokens)


async def _by_hand(client: httpx.AsyncClient, body: dict[str, object]) -> AsyncIterator[Chunk]:
    """Stream with nothing between httpx and the chunks: our wire, our decoder, no layer."""
    chunks = ChunkDecoder()
    async with client.stream("POST", PATH, json=body) as response:
        async for packet in response.aiter_bytes():
            for chunk in chunks.feed(packet):
                yield chunk


async def _lines(client: httpx.AsyncClient, body: dict[str, object]) -> AsyncIterator[Chunk]:
    """Stream as most programs do: httpx as it comes, line by line."""
    async with client.stream("POST", PATH, json=body) as response:
        async for line in response.aiter_lines():
            if line.startswith("data: {") and (choices := json.loads(line[6:])["choices"]):
                yield Chunk(choices[0]["delta"].get("content") or "")


async def _openai(client: openai.AsyncOpenAI, body: dict[str, Any]) -> AsyncIterator[Chunk]:
    async for chunk in await client.chat.completions.create(**body):
        yield Chunk((chunk.choices and chunk.choices[0].delta.content) or "")


def _sync_first_token(client: openai.OpenAI, body: dict[str, Any]) -> float:
    """Return the milliseconds to the first text; then read the rest."""
    began, first = time.perf_counter(), 0.0
    for chunk in client.chat.completions.create(**body):
        if not first and chunk.choices and chunk.choices[0].delta.content:
            first = time.perf_counter() - began
    return 1e3 * first


async def first_token(chunks: AsyncIterator[Chunk]) -> float:
    """Return the milliseconds to the first text; then read the rest, so that the connection lives.

    The generator does nothing before it is asked for its first chunk: that is when the call begins.
    """
    began, first = time.perf_counter(), 0.0
    async for chunk in chunks:
        if chunk.content and not first:
            first = time.perf_counter() - began
    return 1e3 * first


async def _all(chunks: AsyncIterator[Chunk]) -> None:
    async for _ in chunks:
        pass


async def _timed(work: Callable[[], Coroutine[Any, Any, None]]) -> float:
    began = time.perf_counter()
    await work()
    return 1e3 * (time.perf_counter() - began)


class _RawSocket:
    """The same request through a bare socket that acknowledges at once."""

    def __init__(self, service: Service, body: dict[str, object]) -> None:
        url = httpx.URL(service.url)
        self._address = f"POST {url.path}{PATH} HTTP/1.1\r\nHost: {url.netloc.decode()}\r\n"
        self._body = body
        self._socket = socket.create_connection((url.host, url.port or 80))

    def first_token(self) -> float:
        """Return the milliseconds to the first text."""
        began, first, seen = time.perf_counter(), 0.0, b""
        content = json.dumps(self._body).encode()
        head = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        self._socket.sendall((self._address + head).encode() + content)
        self._acknowledge_at_once()
        while not seen.endswith(b"\r\n0\r\n\r\n"):
            seen += self._socket.recv(65536)
            self._acknowledge_at_once()
            # The first event has a role and an empty content; the second the first text.
            if not first and seen.count(b'"content":"') > 1:
                first = time.perf_counter() - began
        return 1e3 * first

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _acknowledge_at_once(self) -> None:
        if QUICK_ACK is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)
