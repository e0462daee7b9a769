"""Load: make many calls, by users who wait for each answer or by a plan that waits for nobody.

A **closed loop** is a number of users, each of whom waits for an answer before asking again. While
the server stalls they ask nothing, so the stall leaves one slow sample for each user. An **open
loop** follows a plan, as many independent users would: what is due is sent, and its latency counts
from when it was due, so it shows what the stall did to everyone who came meanwhile. The closed
loop's blind spot is called *coordinated omission* (Gil Tene, "How NOT to Measure Latency", 2015;
README of wrk2).
"""

import asyncio
import random
from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterator
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import accumulate, count, islice, takewhile
from time import perf_counter
from typing import Literal, get_args

from foundry_lab.errors import InvalidRequest, nearest_names
from foundry_lab.samples import Sample, Samples

__all__ = ["Arrivals", "Call", "closed_loop", "count_attempts", "open_loop", "schedule"]

Call = Callable[[], Awaitable[object] | AsyncIterable[object]]
"""What is measured: a function that returns an answer to await, or a stream of chunks. Each chunk
that is not empty, or whose ``.content`` is not, is a piece of text and gets its time noted. The
tokens are the ``.usage.completion_tokens`` of an answer, or of the last chunk that has them."""

Arrivals = Literal["poisson", "fixed"]
EARLY = 1e-6
"""Seconds that a request may be sent before it is due."""


async def closed_loop(
    call: Call, *, users: int = 4, requests: int = 200, now: Callable[[], float] = perf_counter
) -> Samples:
    """Let users ask again and again, each as soon as the answer before is there.

    Cancel it, or press Ctrl-C, and it returns what was recorded so far; what was under way has the
    outcome ``CancelledError``.

    Args:
        call: Makes one request; see `Call`. What it raises is recorded, not raised.
        users: How many ask at the same time.
        requests: How many requests all of them make together.
        now: Tells the time in seconds, on a clock that never goes back.

    Raises:
        InvalidRequest: A number is not above zero.
    """
    _check_positive(users=users, requests=requests)
    run = _Run(call, now)
    left = iter(range(requests))  # one pile, from which every user takes

    async def user() -> None:
        for _ in left:
            await run.perform(run.due(run.time()))

    async def all_users() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(users):
                tasks.create_task(user())

    return await run.recorded(all_users())


async def open_loop(
    call: Call,
    *,
    rate: float = 20.0,
    seconds: float | None = None,
    requests: int | None = None,
    arrivals: Arrivals = "poisson",
    seed: int = 1,
    in_flight_limit: int | None = None,
    now: Callable[[], float] = perf_counter,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Samples:
    """Send each request when the plan says so, whether or not the earlier ones are answered.

    Cancel it, or press Ctrl-C, and it returns what was recorded so far; what was under way has the
    outcome ``CancelledError``.

    Args:
        call: Makes one request; see `Call`. What it raises is recorded, not raised.
        rate: Requests per second.
        seconds: How long the plan goes on; or else `requests`.
        requests: How many requests it has.
        arrivals: ``poisson``: at random, as independent users come. ``fixed``: evenly spaced.
        seed: Start of the random draws: same seed, same plan.
        in_flight_limit: Most requests under way at a time, none by default. What is due above it
            waits, and the wait is part of its latency.
        now: Tells the time in seconds, on a clock that never goes back.
        sleep: Waits that many seconds of it.

    Raises:
        InvalidRequest: A number is not above zero, or the plan has no end, or two.
    """
    plan = schedule(rate, seconds=seconds, requests=requests, arrivals=arrivals, seed=seed)
    _check_positive(in_flight_limit=in_flight_limit)
    run = _Run(call, now)
    places = asyncio.Semaphore(in_flight_limit) if in_flight_limit else nullcontext()

    async def send(request: "_Request") -> None:
        async with places:
            await run.perform(request)

    async def follow_plan() -> None:
        async with asyncio.TaskGroup() as tasks:
            for intended in plan:
                await sleep(0)  # those already sent may begin
                while (early := intended - run.time()) > EARLY:  # timers may wake early
                    await sleep(early)
                tasks.create_task(send(run.due(intended)))

    return await run.recorded(follow_plan())


def schedule(
    rate: float,
    *,
    seconds: float | None = None,
    requests: int | None = None,
    arrivals: Arrivals = "poisson",
    seed: int = 1,
) -> list[float]:
    """Return when the requests of an open loop are due, in seconds since it began.

    The gaps of Poisson arrivals are drawn from the exponential distribution, mean 1/rate.

    Raises:
        InvalidRequest: A number is not above zero; not exactly one of `seconds` and `requests`
            was given; or there are no such arrivals.
    """
    _check_positive(rate=rate, seconds=seconds, requests=requests)
    times = _arrivals(rate, arrivals, seed)
    if seconds is not None and requests is None:
        return list(takewhile(lambda time: time < seconds, times))
    if requests is not None and seconds is None:
        return list(islice(times, requests))
    raise InvalidRequest(
        "A plan has exactly one end.", fix="Pass either seconds=10 or requests=200."
    )


def count_attempts(record: object) -> None:
    """Count the attempts of the request that is running: a hook for the layer that retries.

    To look a model up first is a request of its own; the most attempts of one of them count.

    Without it every request counts as one attempt.

    Args:
        record: Counted if it has a ``number``, as the `Attempt` record has and the others have not.
    """
    request = _running.get()
    if request is not None and hasattr(record, "number"):
        request.attempts = max(request.attempts, record.number)


@dataclass(slots=True)
class _Request:
    """A request while it is under way. Until more is known, it is one that was cancelled."""

    intended: float
    started: float | None = None
    ended: float | None = None
    chunk_times: list[float] = field(default_factory=list)
    tokens: int | None = None
    attempts: int = 0
    outcome: str = asyncio.CancelledError.__name__

    def sample(self, now: float) -> Sample:
        ended = now if self.ended is None else self.ended
        started = ended if self.started is None else self.started
        times, attempts = tuple(self.chunk_times), max(1, self.attempts)
        return Sample(self.intended, started, ended, times, self.tokens, attempts, self.outcome)


_running: ContextVar[_Request | None] = ContextVar("running", default=None)
"""The request that the current task makes. Tasks that it starts inherit it."""


class _Run:
    """One run: its clock, its call, and every request from the moment it is due."""

    def __init__(self, call: Call, now: Callable[[], float]) -> None:
        self._call = call
        self._now = now
        self._began = now()
        self._requests: list[_Request] = []

    def time(self) -> float:
        return self._now() - self._began

    def due(self, intended: float) -> _Request:
        request = _Request(intended)
        self._requests.append(request)
        return request

    async def perform(self, request: _Request) -> None:
        """Make the call; whatever becomes of it is on the record."""
        _running.set(request)
        request.started = self.time()
        try:
            await self._receive(request)
            request.outcome = "ok"
        except Exception as error:  # noqa: BLE001 - every failure is a result here
            request.outcome = type(error).__name__
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) and task.cancelling():
                raise  # the run was cancelled, not only this call
        finally:
            request.ended = self.time()

    async def _receive(self, request: _Request) -> None:
        reply = self._call()
        if not isinstance(reply, AsyncIterable):
            request.tokens = _tokens(await reply)
            return
        async for chunk in reply:
            if getattr(chunk, "content", chunk):
                request.chunk_times.append(self.time())
            if (tokens := _tokens(chunk)) is not None:
                request.tokens = tokens

    async def recorded(self, work: Coroutine[None, None, None]) -> Samples:
        """Do the work; if that is cancelled, what was recorded is the result all the same."""
        try:
            await work
        except asyncio.CancelledError:
            if task := asyncio.current_task():
                task.uncancel()  # the wish was granted: the run is over
        now = self.time()
        return Samples(tuple(request.sample(now) for request in self._requests))


def _tokens(reply: object) -> int | None:
    return getattr(getattr(reply, "usage", None), "completion_tokens", None)


def _arrivals(rate: float, kind: Arrivals, seed: int) -> Iterator[float]:
    if kind == "fixed":
        return (number / rate for number in count())
    if kind == "poisson":
        draws = random.Random(seed)  # noqa: S311 - spreads load, guards nothing
        return accumulate(draws.expovariate(rate) for _ in count())
    raise InvalidRequest(f"No arrivals {kind!r}.", fix=nearest_names(kind, get_args(Arrivals)))


def _check_positive(**numbers: float | None) -> None:
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise InvalidRequest(f"{name} is {number!r}.", fix="Pass a number above zero.")
