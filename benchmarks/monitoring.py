"""What a health monitor costs: milliseconds for a check, and its share of a CPU by default.

The share counts the CPU time of this process and of the service, divided by the monitor's default
interval. Each request opens a connection, as they do in use: httpx closes what is idle for 5 s.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import psutil
from measure import Row, in_turns, on_one_loop

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.health import HealthMonitor
from foundry_lab.settings import BUNDLED_MODEL

__all__ = ["rows"]

CHECK, CHAT = "health check", "complete(), one token"
HERE, BOTH, BOUND = "this process", "this process and the service", "1 %"


def rows(quick: bool) -> Iterator[Row]:
    """Compare a check with the chat of one token that is in it, and the shares with 1 %."""
    rounds, checks = (2, 3) if quick else (20, 50)
    with Service(Settings(model=BUNDLED_MODEL)) as service, asyncio.Runner() as runner:
        client = FoundryAPIClient(service, settings=Settings())
        took = in_turns(
            2 if quick else 100,
            {
                CHECK: on_one_loop(runner, partial(_check, client)),
                CHAT: on_one_loop(runner, partial(_chat, client)),
            },
        )
        new = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_keepalive_connections=0))
        fresh = FoundryAPIClient(service, settings=Settings(), transport=new)
        shares = in_turns(
            rounds,
            {
                HERE: on_one_loop(runner, partial(_share, fresh, checks, _cpu_here)),
                BOTH: on_one_loop(runner, partial(_share, fresh, checks, _cpu_of(service))),
            },
        )
        for each in (client, fresh):
            runner.run(each.aclose())
    yield Row.of("Health check", took, CHECK, CHAT, "ms")
    for name in (HERE, BOTH):
        what = f"Health monitor every {_interval():g} s, share of a CPU: {name}"
        yield Row.of(what, {**shares, BOUND: [1.0] * rounds}, name, BOUND, "%", ("≤", 1))


def _interval() -> float:
    default: float = inspect.signature(HealthMonitor).parameters["interval"].default
    return default


async def _check(client: FoundryAPIClient) -> float:
    began = time.perf_counter()
    found = await HealthMonitor(client.health_check).observe()
    assert found.status == "ok", found.reason
    return 1e3 * (time.perf_counter() - began)


async def _chat(client: FoundryAPIClient) -> float:
    began = time.perf_counter()
    await client.complete("Hello", max_tokens=1)
    return 1e3 * (time.perf_counter() - began)


async def _share(client: FoundryAPIClient, checks: int, cpu: Callable[[], float]) -> float:
    """Return percent of a CPU. Many checks at once: a system counts CPU time in steps of 10 ms."""
    monitor, before = HealthMonitor(client.health_check), cpu()
    for _ in range(checks):
        found = await monitor.observe()
        assert found.status == "ok", found.reason
    return 100 * (cpu() - before) / checks / _interval()


def _cpu_here() -> float:
    return time.process_time()


def _cpu_of(service: Service) -> Callable[[], float]:
    """Return what tells the seconds of CPU time of this process and that one."""
    process = psutil.Process(service.pid)

    def both() -> float:
        times = process.cpu_times()
        return float(_cpu_here() + times.user + times.system)

    return both
