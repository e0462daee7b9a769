"""A batch as it comes, against the best number of workers that a sweep finds for this machine.

A worker is the least that asks many prompts: a loop that takes the next one. So the ratio shows
what `FoundryAPIClient.batch` loses by its own work, and what by its default concurrency. The best
one is chosen after the fact, from the same rounds, which is no favour to ours.
"""

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from statistics import median
from typing import TypedDict, Unpack

from measure import Row, in_turns, on_one_loop
from recording import QUESTION

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.settings import BUNDLED_MODEL

__all__ = ["rows"]

BATCH = "batch"
WORKERS = (1, 2, 4, 8)
MAX_TOKENS = 30


class _Options(TypedDict, total=False):
    concurrency: int


def rows(quick: bool) -> Iterator[Row]:
    """Compare in prompts answered per second."""
    prompts = [QUESTION] * (4 if quick else 40)
    with Service(Settings(model=BUNDLED_MODEL)) as service, asyncio.Runner() as runner:
        client = FoundryAPIClient(service, settings=Settings())
        contestants = {BATCH: on_one_loop(runner, partial(_batch, client, prompts))}
        for number in WORKERS:
            work = partial(_workers, client, prompts, number)
            contestants[_name(number)] = on_one_loop(runner, work)
            same = partial(_batch, client, prompts, concurrency=number)
            contestants[_batch_of(number)] = on_one_loop(runner, same)
        samples = in_turns(2 if quick else 20, contestants)
        runner.run(client.aclose())
    number = max(WORKERS, key=lambda number: median(samples[_name(number)]))
    best = _name(number)
    what = f"Batch of {len(prompts)} prompts"
    unit = "prompts/s"
    best_of = f"{best}, the best of {', '.join(map(str, WORKERS))}"
    swept = {**samples, best_of: samples[best]}
    yield Row.of(
        f"{what}, {number} at a time", swept, _batch_of(number), best_of, unit, ("≥", 0.95)
    )
    yield Row.of(f"{what}, 4 at a time, the default", swept, BATCH, best_of, unit, ("≥", 0.95))
    yield Row.of(f"{what}, 4 at a time, the default", samples, BATCH, _name(1), unit)


def _name(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _batch_of(number: int) -> str:
    return f"{BATCH}, {number} at a time"


async def _batch(
    client: FoundryAPIClient, prompts: list[str], **options: Unpack[_Options]
) -> float:
    """Return the prompts answered per second, with what the package does by itself or is told."""
    began, asked = (
        time.perf_counter(),
        [{"prompt": each, "max_tokens": MAX_TOKENS} for each in prompts],
    )
    async for result in client.batch(asked, progress=False, **options):
        assert result.completion, result.error
    return len(prompts) / (time.perf_counter() - began)


async def _workers(client: FoundryAPIClient, prompts: list[str], number: int) -> float:
    """Return the prompts answered per second by so many loops."""
    began, left = time.perf_counter(), iter(prompts)

    async def work() -> None:
        for prompt in left:
            await client.complete(prompt, max_tokens=MAX_TOKENS)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(number):
            tasks.create_task(work())
    return len(prompts) / (time.perf_counter() - began)
