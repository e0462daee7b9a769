"""Decoders alone, without a network: bytes to events, and bytes to chat chunks.

The bytes are a recorded answer, repeated. Each package runs its own code from bytes on. httpx-sse
decodes text, so Python's decoder of UTF-8 comes first, which is what httpx would run for it.
"""

import codecs
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import httpx2
from httpx_sse import EventSource
from measure import Contestant, Row, in_turns
from openai import OpenAI, Stream
from openai._streaming import SSEDecoder
from openai.types.chat import ChatCompletionChunk
from recording import COUNTING, events, record

from foundry_lab.chunks import ChunkDecoder
from foundry_lab.service import Service
from foundry_lab.settings import BUNDLED_MODEL, Settings
from foundry_lab.sse import Decoder

__all__ = ["rows"]

SIZE = 1_000_000
LARGE = 65_536
Packets = Sequence[bytes]


def rows(quick: bool) -> Iterator[Row]:
    """Compare with packets of one event each, and with large ones."""
    with Service(Settings(model=BUNDLED_MODEL)) as service:
        answer = events(record(service, COUNTING, 300))
    *chunks, done = answer
    times = 1 if quick else -(-SIZE // sum(map(len, chunks)))
    small = [*chunks * times, done]
    whole = b"".join(small)
    large = [whole[at : at + LARGE] for at in range(0, len(whole), LARGE)]
    for size, packets in ((f"{len(whole) // len(small)} B", small), ("64 kB", large)):
        yield from _compare(size, packets, len(whole) / 1e6, quick)


def _compare(size: str, packets: Packets, megabytes: float, quick: bool) -> Iterator[Row]:
    decoders = {"sse.Decoder": _sse, "httpx-sse": _httpx_sse, "openai": _openai_sse}
    samples = in_turns(2 if quick else 100, _speeds(decoders, packets, megabytes))
    what = f"Decoder, packets of {size}"
    yield Row.of(what, samples, "sse.Decoder", "httpx-sse", "MB/s", ("≥", 2))
    yield Row.of(what, samples, "sse.Decoder", "openai", "MB/s", ("≥", 4))
    to_chunks = {"ChunkDecoder": _chunks, "openai": _openai_chunks}
    samples = in_turns(2 if quick else 15, _speeds(to_chunks, packets, megabytes))
    what = f"Bytes to chunks, packets of {size}"
    yield Row.of(what, samples, "ChunkDecoder", "openai", "MB/s", ("≥", 3))


def _speeds(
    decoders: Mapping[str, Callable[[Packets], int]], packets: Packets, megabytes: float
) -> dict[str, Contestant]:
    """Make a contestant of each decoder: it returns megabytes per second."""
    assert len({decode(packets) for decode in decoders.values()}) == 1, "not the same events"

    def contestant(decode: Callable[[Packets], int]) -> Contestant:
        def run() -> float:
            began = time.perf_counter()
            decode(packets)
            return megabytes / (time.perf_counter() - began)

        return run

    return {name: contestant(decode) for name, decode in decoders.items()}


def _sse(packets: Packets) -> int:
    decoder, count = Decoder(), 0
    for packet in packets:
        for _ in decoder.feed(packet):
            count += 1
    return count


class _Texts:
    """What httpx-sse uses of an ``httpx.Response``, and nothing else that takes time."""

    def __init__(self, packets: Packets) -> None:
        self.headers = {"content-type": "text/event-stream"}
        self._packets = packets

    def iter_text(self) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for packet in self._packets:
            yield decoder.decode(packet)


def _httpx_sse(packets: Packets) -> int:
    source = EventSource(cast("Any", _Texts(packets)))
    return sum(1 for _ in source.iter_sse())


def _openai_sse(packets: Packets) -> int:
    return sum(1 for _ in SSEDecoder().iter_bytes(iter(packets)))


def _chunks(packets: Packets) -> int:
    decoder, count = ChunkDecoder(), 0
    for packet in packets:
        for _ in decoder.feed(packet):
            count += 1
    return count


class _Body(httpx2.SyncByteStream):
    def __init__(self, packets: Packets) -> None:
        self._packets = packets

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._packets)


_openai = OpenAI(api_key="none", base_url="http://127.0.0.1:9")


def _openai_chunks(packets: Packets) -> int:
    request = httpx2.Request("POST", "http://127.0.0.1:9")
    response = httpx2.Response(200, stream=_Body(packets), request=request)
    stream = Stream(cast_to=ChatCompletionChunk, response=response, client=_openai)
    return sum(1 for _ in stream)
