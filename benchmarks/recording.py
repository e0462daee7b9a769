"""What the real service sends, recorded, for what is measured without a network."""

from collections.abc import AsyncIterator, Sequence

import httpx

from foundry_lab.service import Service

__all__ = ["COUNTING", "QUESTION", "Replay", "events", "record", "request_body"]

QUESTION = "What is jitter?"
COUNTING = "Count from 1 to 300."


def request_body(model: str, prompt: str, max_tokens: int) -> dict[str, object]:
    """Return the JSON of a request for a stream, the same for every client."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def record(service: Service, prompt: str, max_tokens: int) -> bytes:
    """Return the body of one streamed answer."""
    answer = httpx.post(
        f"{service.url}/v1/chat/completions",
        json=request_body(service.model_id, prompt, max_tokens),
        timeout=60,
    )
    return answer.raise_for_status().content


def events(stream: bytes) -> list[bytes]:
    """Cut a recording into its events, which is also how the service's packets are cut."""
    return [event + b"\n\n" for event in stream.split(b"\n\n") if event]


class Replay(httpx.AsyncByteStream):
    """A body that comes in these packets, for ``httpx.MockTransport``."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        self._packets = packets

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for packet in self._packets:
            yield packet
