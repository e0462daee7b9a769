"""Health: what is not well is said, and the one who asks never becomes the problem."""

import asyncio

import httpx
import pytest

from foundry_lab import FaultProxy, FoundryAPIClient, Service
from foundry_lab.faults import Always, Stall
from foundry_lab.health import Health, HealthMonitor, memory_of

pytestmark = pytest.mark.anyio

OK, DOWN = Health("ok", ""), Health("down", "Nobody answers.")


async def test_a_well_service_shows_all_its_facts(client: FoundryAPIClient) -> None:
    """Models, memory, the time to a first token and the version of the runtime."""
    health = await client.health_check()
    assert (health.status, health.reason, health.loaded_models) == ("ok", "", ["lab-tiny:1"])
    assert health.memory_usage is not None
    assert health.ttft is not None
    assert 0 < health.ttft < 5
    assert health.version is not None
    assert health.version[0].isdigit()


async def test_a_service_of_somebody_else_has_no_version(service: Service) -> None:
    """What we did not start we do not claim to know."""
    async with FoundryAPIClient(service.url) as client:
        assert (await client.health_check()).version is None


async def test_running_is_not_enough() -> None:
    """A service that lists its model and cannot chat is degraded, with the reason."""

    def half_well(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(503, text="overloaded")
        return httpx.Response(200, json={"pid": 1} if "status" in request.url.path else ["m:1"])

    async with FoundryAPIClient("http://gateway", transport=httpx.MockTransport(half_well)) as gate:
        health = await gate.health_check()
    assert health.status == "degraded"
    assert "503" in health.reason
    assert health.ttft is None


async def test_a_silent_service_is_down_in_time(service: Service) -> None:
    """A check has a deadline of its own."""
    with FaultProxy(service.url, Always(Stall(None))) as proxy:
        async with FoundryAPIClient(proxy.url) as client:
            async with asyncio.timeout(2):
                health = await client.health_check(timeout=0.2)
    assert health.status == "down"
    assert "0.2 s" in health.reason


async def test_a_monitor_tells_of_changes_only() -> None:
    """ok, ok, down, down, ok are three changes and five observations."""
    found = iter([OK, OK, DOWN, DOWN, OK])
    changes = list[object]()
    five = asyncio.Event()

    async def check() -> Health:
        try:
            return next(found)
        except StopIteration:
            five.set()
            return OK

    monitor = HealthMonitor(
        check,
        interval=1e-9,
        on_change=lambda old, new: changes.append((old and old.status, new.status)),
    )
    async with monitor:
        await asyncio.wait_for(five.wait(), 5)
    assert changes == [(None, "ok"), ("ok", "down"), ("down", "ok")]
    assert [seen.health.status for seen in monitor.history][:5] == [
        "ok",
        "ok",
        "down",
        "down",
        "ok",
    ]


async def test_a_monitor_has_one_check_under_way_and_a_bounded_memory() -> None:
    """A slow check is not overtaken by the next, and old observations go."""
    running = most = done = 0
    enough = asyncio.Event()

    async def check() -> Health:
        nonlocal running, most, done
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        done += 1
        if done == 30:
            enough.set()
        return OK

    monitor = HealthMonitor(check, interval=1e-9, history=10)
    async with monitor:
        await asyncio.wait_for(enough.wait(), 5)
    assert most == 1
    assert len(monitor.history) == 10


async def test_a_monitor_leaves_nothing_behind() -> None:
    """When it is left in the middle of a check, the check is cancelled."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def check() -> Health:
        began.set()
        try:
            await asyncio.Future()
        finally:
            ended.set()
        return OK

    async with HealthMonitor(check):
        await began.wait()
    assert ended.is_set()


async def test_a_change_is_told_once() -> None:
    """Two checks at once, one of them asked for by hand, find the same change: one alarm."""
    told, may_end = list[str](), asyncio.Event()

    async def check() -> Health:
        await may_end.wait()
        return OK

    monitor = HealthMonitor(check, on_change=lambda _, new: told.append(new.status))
    checks = asyncio.gather(monitor.observe(), monitor.observe())
    await asyncio.sleep(0)
    may_end.set()
    await checks
    assert told == ["ok"]


async def test_a_monitor_sees_a_real_service_die_and_come_back(own_service: Service) -> None:
    """Killed it is down, restarted it is ok."""
    async with FoundryAPIClient(own_service) as client:
        monitor = HealthMonitor(client.health_check)
        assert (await monitor.observe()).status == "ok"
        own_service.kill()
        assert (await monitor.observe()).status == "down"
        own_service.restart()
        assert (await monitor.observe()).status == "ok"


def test_memory_of_a_process_that_is_gone_is_not_known() -> None:
    """No error, and no number."""
    assert memory_of(2**22 + 1) is None
