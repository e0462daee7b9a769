"""A soak: many calls through a proxy that spoils every fifth, and then a look at what is left.

    python benchmarks/soak.py                   # 10,000 calls, some minutes
    python benchmarks/soak.py --requests 300    # what the tests run

It ends with 0 when every call is accounted for, retries stayed within their budget, and no
connection, task, thread or file is left and no memory was lost.
"""

import argparse
import asyncio
import gc
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from foundry_lab import FaultProxy, FoundryAPIClient, Service, Settings, table
from foundry_lab.faults import CutBody, Delay, ErrorEvent, HtmlPage, Mix, Reset, Stall, Status
from foundry_lab.metrics import Metrics

MIX = {
    Status(503): 0.04,
    Status(429, retry_after=0): 0.02,
    Status(500): 0.02,
    Reset(): 0.03,
    CutBody(after_events=3): 0.03,
    ErrorEvent(after_events=2): 0.02,
    HtmlPage(200): 0.01,
    Stall(after_events=2): 0.01,
    Delay(0.02): 0.02,
}
WARM_UP = 100
ALLOWED_GROWTH = 15.0
"""Megabytes: what allocators keep, whatever is left to them."""


@dataclass(frozen=True)
class Left:
    """What a process holds at one moment."""

    tasks: int
    threads: int
    files: int
    connections: int
    megabytes: float

    @classmethod
    def now(cls) -> "Left":
        """Look."""
        gc.collect()
        process = psutil.Process()
        files = process.num_handles() if sys.platform == "win32" else process.num_fds()
        return cls(
            tasks=len(asyncio.all_tasks()),
            threads=threading.active_count(),
            files=files,
            connections=len(process.net_connections("tcp")),
            megabytes=process.memory_info().rss / 1e6,
        )


@dataclass(frozen=True)
class Soak:
    """What came of one soak."""

    requests: int
    outcomes: Counter[str]
    metrics: Metrics
    retries: int
    budget: float
    seen: Counter[str]
    before: Left
    after: Left

    def faults(self) -> Iterator[str]:
        """Say in a sentence each what is not as it must be."""
        if self.outcomes.total() != self.requests or self.metrics.calls != self.outcomes:
            yield f"calls lost: {self.outcomes.total()} of {self.requests}, {self.metrics.calls}"
        if self.retries > self.budget:
            yield f"{self.retries} retries, more than the budget of {self.budget:.0f}"
        for what in ("tasks", "threads", "files", "connections"):
            more = getattr(self.after, what) - getattr(self.before, what)
            if more > 0:
                yield f"{more} {what} left"
        if (more := self.after.megabytes - self.before.megabytes) > ALLOWED_GROWTH:
            yield f"{more:.1f} MB more memory"


async def soak(requests: int, concurrency: int = 8, seed: int = 1) -> Soak:
    """Run `requests` calls of the whole client through the proxy.

    Args:
        requests: Calls in all.
        concurrency: Calls at once.
        seed: Of the mix of faults.
    """
    settings = Settings(timeout=10.0)
    with Service(Settings(model="lab-tiny")) as service:
        before = await _warm_up(service, settings, concurrency)
        metrics = Metrics()
        with FaultProxy(service.url, Mix(MIX, seed=seed)) as proxy:
            async with FoundryAPIClient(proxy.url, settings=settings, hook=metrics) as client:
                outcomes = await _ask(client, requests, concurrency)
            seen = Counter(proxy.counts)
        after = await _settled(before)
    # One budget for all: its reserve, and a tenth of what was asked, the two look-ups included.
    budget = 10 + 0.1 * (requests + 2 * concurrency)
    return Soak(requests, outcomes, metrics, metrics.retries.total(), budget, seen, before, after)


async def _warm_up(service: Service, settings: Settings, concurrency: int) -> Left:
    """Let caches and pools of all parts fill, close everything, and look."""
    with FaultProxy(service.url, Mix(MIX, seed=0)) as proxy:
        async with FoundryAPIClient(proxy.url, settings=settings, hook=Metrics()) as client:
            await _ask(client, WARM_UP, concurrency)
    await asyncio.sleep(0.2)
    return Left.now()


async def _settled(before: Left) -> Left:
    """Look until nothing is left, for two seconds at most: sockets close in their own time."""
    for _ in range(20):
        after = Left.now()
        if (after.files, after.connections) <= (before.files, before.connections):
            break
        await asyncio.sleep(0.1)
    return after


async def _ask(client: FoundryAPIClient, requests: int, concurrency: int) -> Counter[str]:
    outcomes = Counter[str]()
    source = ({"prompt": f"What is jitter? {i}", "max_tokens": 8} for i in range(requests))
    results = client.batch(
        (prompt | {"first_token": 0.5, "stall": 0.5} for prompt in source),
        concurrency=concurrency,
        progress=sys.stderr.isatty(),
    )
    async for result in results:
        outcomes["ok" if result.completion else type(result.error).__name__] += 1
    return outcomes


def report(result: Soak) -> int:
    """Print what came of it; return 0 if all is as it must be."""
    table(("outcome", "calls"), result.outcomes.most_common())
    table(("met", "requests"), result.seen.most_common())
    print(f"retries: {result.retries} (budget {result.budget:.0f})")
    print(f"before: {result.before}\nafter:  {result.after}")
    wrong = list(result.faults())
    print("\n".join(wrong) or f"{result.requests:,} calls, every one accounted for, nothing left")
    return 1 if wrong else 0


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    return report(asyncio.run(soak(options.requests, seed=options.seed)))


if __name__ == "__main__":
    sys.exit(main())
