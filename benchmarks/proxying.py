"""The fault proxy without a fault: what it adds to the first token, as a thread or a process."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from measure import Row, in_turns, on_one_loop
from recording import QUESTION
from streaming import first_token

from foundry_lab import FaultProxy, FoundryAPIClient, Service, Settings
from foundry_lab.settings import BUNDLED_MODEL

__all__ = ["rows"]

DIRECT = "direct"


def rows(quick: bool) -> Iterator[Row]:
    """Compare the same client through the proxy and without it."""
    with ExitStack() as running:
        service = running.enter_context(Service(Settings(model=BUNDLED_MODEL)))
        urls = {
            DIRECT: service.url,
            "proxy in a thread of the client's process": running.enter_context(
                FaultProxy(service.url)
            ).url,
            "proxy in a process of its own": running.enter_context(_process(service.url)),
        }
        runner = running.enter_context(asyncio.Runner())
        clients = {name: FoundryAPIClient(url, settings=Settings()) for name, url in urls.items()}
        samples = in_turns(
            2 if quick else 100,
            {
                name: on_one_loop(runner, partial(_first_token, client, service.model_id))
                for name, client in clients.items()
            },
        )
        for client in clients.values():
            runner.run(client.aclose())
    for name in clients:
        if name != DIRECT:
            yield Row.of(f"TTFT, {name}", samples, name, DIRECT, "ms", ("≤", 1.3))


async def _first_token(client: FoundryAPIClient, model: str) -> float:
    return await first_token(client.stream_complete(QUESTION, model=model))


@contextmanager
def _process(url: str) -> Iterator[str]:
    """Run the proxy as its own program does, and give its URL."""
    command = [sys.executable, "-m", "foundry_lab", "faults", "--to", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as program:
        try:
            assert program.stdout is not None
            yield program.stdout.readline().strip()
        finally:
            program.terminate()
