"""What the load generators themselves cost for each request: the call they make does nothing.

The floor is as many users that make the same call as often, and record nothing.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from measure import Row, in_turns, on_one_loop

from foundry_lab.latency import Call, closed_loop, open_loop
from foundry_lab.samples import Samples

__all__ = ["rows"]

BARE, CLOSED, OPEN = "nothing recorded", "closed loop", "open loop"
STREAMED, BARE_STREAM = "closed loop, streams", "nothing recorded of the streams"
BOUND = "50 µs"
USERS = 4
PIECES = 26
"""Pieces of text in a stream, about as many as a sentence has."""
AT_ONCE = 1e9
"""Requests per second of a plan that is due at once: no waiting is measured."""

Work = Callable[[int], Awaitable[object]]


def rows(quick: bool) -> list[Row]:
    """Compare the microseconds for each request with their bound, and with the call alone."""
    requests, rounds = (20, 2) if quick else (2000, 60)
    work: dict[str, Work] = {
        BARE: partial(_bare, _once),
        CLOSED: partial(_closed, _once),
        OPEN: _open,
        BARE_STREAM: partial(_bare, _read),
        STREAMED: partial(_closed, _stream),
    }
    with asyncio.Runner() as runner:
        samples = in_turns(
            rounds,
            {name: on_one_loop(runner, partial(_cost, do, requests)) for name, do in work.items()},
        )
    samples = {**samples, BOUND: [50.0] * rounds}
    what = "Load generator, for each request"
    return [
        Row.of(f"{what}: {CLOSED}", samples, CLOSED, BOUND, "µs", ("≤", 1)),
        Row.of(f"{what}: {OPEN}", samples, OPEN, BOUND, "µs", ("≤", 1)),
        Row.of(f"{what}: {CLOSED}", samples, CLOSED, BARE, "µs"),
        Row.of(f"{what}: {STREAMED} of {PIECES} pieces", samples, STREAMED, BARE_STREAM, "µs"),
    ]


async def _cost(work: Work, requests: int) -> float:
    began = time.perf_counter()
    await work(requests)
    return 1e6 * (time.perf_counter() - began) / requests


async def _bare(call: Callable[[], Awaitable[None]], requests: int) -> None:
    left = iter(range(requests))

    async def user() -> None:
        for _ in left:
            await call()

    async with asyncio.TaskGroup() as tasks:
        for _ in range(USERS):
            tasks.create_task(user())


async def _closed(call: Call, requests: int) -> None:
    _check(await closed_loop(call, users=USERS, requests=requests), requests)


async def _open(requests: int) -> None:
    _check(await open_loop(_once, rate=AT_ONCE, requests=requests), requests)


def _check(samples: Samples, requests: int) -> None:
    assert len(samples.successes) == requests, "not every request was recorded"


async def _once() -> None:
    """Answer at once, but let others run meanwhile, as every answer of a network does."""
    await asyncio.sleep(0)


async def _stream() -> AsyncIterator[str]:
    for _ in range(PIECES):
        await asyncio.sleep(0)
        yield "text"


async def _read() -> None:
    async for _ in _stream():
        pass
