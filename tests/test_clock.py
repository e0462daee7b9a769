"""The virtual clock wakes sleepers in order, exactly, and takes no real time."""

import asyncio
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundry_lab.clock import REAL, VirtualClock

pytestmark = pytest.mark.anyio

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Wakes = list[tuple[str, float]]


async def sleep(clock: VirtualClock, seconds: float, wakes: Wakes, name: str = "") -> None:
    await clock.sleep(seconds)
    wakes.append((name, clock.now()))


async def test_a_year_takes_no_time() -> None:
    """The clock stands still, then jumps exactly as far as was asked."""
    clock, began = VirtualClock(), time.monotonic()
    assert clock.now() == 0
    await clock.sleep(365 * 86_400.0)
    await clock.sleep(0.5)
    assert clock.now() == 365 * 86_400 + 0.5
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_no_time_to_wait_is_no_wait(seconds: float) -> None:
    """Zero and less return at the same time, never earlier."""
    clock = VirtualClock()
    clock.advance(5.0)
    await clock.sleep(seconds)
    assert clock.now() == 5


async def test_time_passes_when_it_is_told_to() -> None:
    """advance adds up with sleeps; a sleeper whose time has come long ago does not turn it back."""
    clock, wakes = VirtualClock(), Wakes()
    async with asyncio.TaskGroup() as group:
        group.create_task(sleep(clock, 1.0, wakes))
        await asyncio.sleep(0)
        clock.advance(3.0)
    assert wakes == [("", 3.0)]


@unhurried
@given(st.lists(st.floats(0, 1000), max_size=8))
def test_sleepers_wake_in_order(delays: list[float]) -> None:
    """However many wait at once, each wakes at its own time, ties in the order of their start."""

    async def run() -> Wakes:
        clock, wakes = VirtualClock(), Wakes()
        async with asyncio.TaskGroup() as group:
            for number, delay in enumerate(delays):
                group.create_task(sleep(clock, delay, wakes, str(number)))
        return wakes

    by_time = sorted(range(len(delays)), key=delays.__getitem__)
    assert asyncio.run(run()) == [(str(number), delays[number]) for number in by_time]


async def test_two_that_sleep_again_and_again_take_turns() -> None:
    """Every 2 s and every 3 s: the wakes interleave as they would in real time."""
    clock, wakes = VirtualClock(), Wakes()

    async def tick(every: float) -> None:
        while clock.now() < 12:
            await sleep(clock, every, wakes, f"{every:g}")

    async with asyncio.TaskGroup() as group:
        group.create_task(tick(2.0))
        group.create_task(tick(3.0))
    times = [at for _, at in wakes]
    assert times == [2, 3, 4, 6, 6, 8, 9, 10, 12, 12]
    assert [at for name, at in wakes if name == "3"] == [3, 6, 9, 12]


async def test_who_starts_while_others_wait_is_not_overtaken() -> None:
    """Somebody who needs a few rounds of the loop before sleeping still gets the earlier time."""
    clock, wakes = VirtualClock(), Wakes()

    async def slow_starter() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await sleep(clock, 1.0, wakes, "late to bed")

    async with asyncio.TaskGroup() as group:
        group.create_task(sleep(clock, 2.0, wakes, "early to bed"))
        group.create_task(slow_starter())
    assert wakes == [("late to bed", 1.0), ("early to bed", 2.0)]


async def test_who_works_after_waking_is_not_overtaken() -> None:
    """Between two sleeps somebody may need a few rounds of the loop: no time passes in them."""
    clock, wakes = VirtualClock(), Wakes()

    async def work() -> None:
        for _ in range(4):
            await sleep(clock, 1.0, wakes, "works")
            for _ in range(7):
                await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        group.create_task(sleep(clock, 3.5, wakes, "waits"))
    assert [at for _, at in wakes] == [1, 2, 3, 3.5, 4]


@pytest.mark.parametrize("rounds", [0, 1, 5])
async def test_a_cancelled_sleeper_is_forgotten(rounds: int) -> None:
    """Neither does the clock go to its time, nor does anybody wait for it."""
    clock, wakes = VirtualClock(), Wakes()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        first = group.create_task(sleep(clock, 1.0, wakes, "first"))
        last = group.create_task(sleep(clock, 9.0, wakes, "last"))
        group.create_task(sleep(clock, 2.0, wakes, "second"))
        for _ in range(rounds):
            await asyncio.sleep(0)
        first.cancel()
        last.cancel()
    assert first.cancelled()
    assert last.cancelled()
    assert wakes == [("second", 2.0)]
    await clock.sleep(1.0)
    assert clock.now() == 3


async def test_the_real_clock_is_the_one_of_deadlines() -> None:
    """Its time is the event loop's, which deadlines are told in; it waits, and it can't go back."""
    before = asyncio.get_running_loop().time()
    now = REAL.now()
    await REAL.sleep(0.05)
    assert before <= now <= asyncio.get_running_loop().time() - 0.03
