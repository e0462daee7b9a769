"""What the layers add to a call, in microseconds: the same transport underneath, without a network.

httpx-retries and circuitbreaker do less: neither looks at the body, so an answer that breaks off is
a success to both, and one breaker is for all models. Neither limits the calls at once.
"""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from functools import partial

import httpx
from circuitbreaker import CircuitBreaker
from httpx_retries import Retry
from httpx_retries import RetryTransport as HttpxRetries
from measure import Row, Samples, in_turns, on_one_loop
from recording import QUESTION, Replay, events, record, request_body

from foundry_lab.breaker import BreakerTransport
from foundry_lab.client import resilient
from foundry_lab.limits import ConcurrencyLimit
from foundry_lab.retry import RetryTransport
from foundry_lab.service import Service
from foundry_lab.settings import BUNDLED_MODEL, Settings

__all__ = ["rows"]

BARE, ALL = "nothing", "all five layers"
OURS, THEIRS = "retry, breaker, limit", "httpx-retries, circuitbreaker"
RETRY, THEIR_RETRY = "retry", "httpx-retries"
BREAKER, THEIR_BREAKER = "breaker", "circuitbreaker"
BOUND = "100 µs"
CALLS = 200
"""Calls that are timed together."""


def rows(quick: bool) -> Iterator[Row]:
    """Compare what is added to an answer in one piece, and to a stream."""
    with Service(Settings(model=BUNDLED_MODEL)) as service:
        body = request_body(service.model_id, QUESTION, 100)
        stream = events(record(service, QUESTION, 100))
    for what, kind, packets in (
        ("JSON", "application/json", [b'{"choices": []}']),
        (f"stream of {len(stream)} events", "text/event-stream", stream),
    ):
        added = _added(json.dumps(body).encode(), kind, packets, 2 if quick else 60)
        what = f"Added to a call, {what}"
        yield Row.of(f"{what}: {OURS}", added, OURS, THEIRS, "µs", ("≤", 1))
        yield Row.of(f"{what}: {OURS}", added, OURS, BOUND, "µs", ("≤", 1))
        yield Row.of(f"{what}: {RETRY}", added, RETRY, THEIR_RETRY, "µs")
        yield Row.of(f"{what}: {BREAKER}", added, BREAKER, THEIR_BREAKER, "µs")
        yield Row.of(f"{what}: {ALL}", added, ALL, BOUND, "µs")


def _added(content: bytes, kind: str, packets: Sequence[bytes], rounds: int) -> Samples:
    """Measure each stack, and subtract what the bare transport took in the same round."""
    wire = httpx.MockTransport(
        lambda _: httpx.Response(200, headers={"content-type": kind}, stream=Replay(packets))
    )
    breaking, retry = _CircuitBreaker(wire), Retry(allowed_methods=["POST"])
    stacks: dict[str, httpx.AsyncBaseTransport] = {
        BARE: wire,
        OURS: RetryTransport(BreakerTransport(ConcurrencyLimit(wire))),
        THEIRS: HttpxRetries(breaking, retry=retry),
        RETRY: RetryTransport(wire),
        THEIR_RETRY: HttpxRetries(wire, retry=retry),
        BREAKER: BreakerTransport(wire),
        THEIR_BREAKER: breaking,
        ALL: resilient(wire, Settings()),
    }
    with asyncio.Runner() as runner:
        samples = in_turns(
            rounds,
            {
                name: on_one_loop(runner, partial(_calls, stack, content))
                for name, stack in stacks.items()
            },
        )
    added = {
        name: [a - b for a, b in zip(values, samples[BARE], strict=True)]
        for name, values in samples.items()
    }
    return added | {BOUND: [100.0] * rounds}


async def _calls(stack: httpx.AsyncBaseTransport, content: bytes) -> float:
    """Return the microseconds of one call: request, answer, its whole body, and the end."""
    began = time.perf_counter()
    for _ in range(CALLS):
        response = await stack.handle_async_request(
            httpx.Request("POST", "http://127.0.0.1:9/v1/chat/completions", content=content)
        )
        assert isinstance(response.stream, httpx.AsyncByteStream)
        async for _ in response.stream:
            pass
        await response.aclose()
    return 1e6 * (time.perf_counter() - began) / CALLS


class _CircuitBreaker(httpx.AsyncBaseTransport):
    """The package circuitbreaker, where our breaker is."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        breaker = CircuitBreaker(expected_exception=httpx.TransportError, name="service")
        self._call = breaker(inner.handle_async_request)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response: httpx.Response = await self._call(request)
        return response
