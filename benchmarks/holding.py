"""Does a batch hold on to what it has done? Its memory over 100,000 prompts.

The answers are a recorded stream of the real service, replayed without a network: what is measured
is this package, from the prompt through all layers to the result.

The breaker remembers the calls of its window, 30 s, so the memory grows until that is full, by more
the faster the calls come. Ours is the most memory that the process has from then on, theirs what it
had then. Fifty bytes kept for each prompt would show.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping

import httpx
import psutil
from measure import Row
from recording import QUESTION, Replay, events, record

from foundry_lab import BreakerPolicy, FoundryAPIClient, Service, Settings
from foundry_lab.settings import BUNDLED_MODEL

__all__ = ["rows"]

MOST, EARLY = "most from 30 s on", "after 30 s"
WINDOW = BreakerPolicy().window


def rows(quick: bool) -> Iterator[Row]:
    """Compare in megabytes; one batch is a round."""
    prompts, rounds = (200, 2) if quick else (100_000, 2)
    with Service(Settings(model=BUNDLED_MODEL)) as service:
        model, packets = service.model_id, events(record(service, QUESTION, 8))
    stub = _stub(model, packets)
    both = [asyncio.run(_batch(stub, model, prompts)) for _ in range(rounds)]
    samples = {EARLY: [early for early, _ in both], MOST: [most for _, most in both]}
    what = f"Memory of a batch of {prompts:,} prompts: {MOST}"
    yield Row.of(what, samples, MOST, EARLY, "MB", ("≤", 1.05))


def _stub(model: str, packets: list[bytes]) -> httpx.MockTransport:
    """Answer as the service does to the three requests that a client makes."""
    lists: Mapping[str, object] = {
        "/v1/models": {"object": "list", "data": [{"id": model, "object": "model"}]},
        "/models/loaded": [model],
    }

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=lists[request.url.path])
        kind = {"content-type": "text/event-stream"}
        return httpx.Response(200, headers=kind, stream=Replay(packets))

    return httpx.MockTransport(answer)


async def _batch(stub: httpx.MockTransport, model: str, prompts: int) -> tuple[float, float]:
    """Ask so many prompts; return the memory after the window, and the most from then on, in MB.

    A batch that is shorter than the window, as a quick one is, is looked at from its beginning.
    """
    step, memory, began = prompts // 100, list[tuple[float, float]](), time.monotonic()
    each = {"model": model, "max_tokens": 8}
    asked = (each | {"prompt": f"{QUESTION} {number}"} for number in range(prompts))
    settings, address = Settings(model=BUNDLED_MODEL), "http://127.0.0.1:9"
    async with FoundryAPIClient(address, settings=settings, transport=stub) as client:
        done = 0
        async for result in client.batch(asked, progress=False):
            assert result.completion, result.error
            done += 1
            if done % step == 0:
                resident = psutil.Process().memory_info().rss / 1e6
                memory.append((time.monotonic() - began, resident))
    assert done == prompts
    late = [megabytes for seconds, megabytes in memory if seconds > WINDOW]
    late = late or [megabytes for _, megabytes in memory]
    return late[0], max(late)
