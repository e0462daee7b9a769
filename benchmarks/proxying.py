"""The fault proxy without a fault: what it adds to the first token, as a thread or a process.

The floor is `relay`: a process that hands on bytes and knows nothing of HTTP.
"""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import httpx
from measure import Row, in_turns, on_one_loop, second
from recording import QUESTION
from streaming import first_token

from foundry_lab import FaultProxy, FoundryAPIClient, Service, Settings
from foundry_lab.settings import BUNDLED_MODEL

__all__ = ["rows"]

DIRECT, THREAD, PROCESS = "direct", "proxy in a thread", "proxy in a process of its own"
RELAY = "only bytes handed on, by a process"


def rows(quick: bool) -> Iterator[Row]:
    """Compare the same client through the proxy and without it."""
    with ExitStack() as running:
        service = running.enter_context(Service(Settings(model=BUNDLED_MODEL)))
        url = httpx.URL(service.url)
        proxy = ["-m", "foundry_lab", "faults", "--to", service.url]
        relay = [str(Path(__file__).with_name("relay.py")), url.host, str(url.port)]
        urls = {
            DIRECT: service.url,
            THREAD: running.enter_context(FaultProxy(service.url)).url,
            PROCESS: running.enter_context(_program(proxy)),
            RELAY: running.enter_context(_program(relay)) + url.path,
        }
        runner = running.enter_context(asyncio.Runner())
        clients = {name: FoundryAPIClient(url, settings=Settings()) for name, url in urls.items()}
        samples = in_turns(
            2 if quick else 200,
            {
                name: second(on_one_loop(runner, partial(_first_token, client, service.model_id)))
                for name, client in clients.items()
            },
        )
        for client in clients.values():
            runner.run(client.aclose())
    for name in (THREAD, PROCESS):
        yield Row.of(f"TTFT, {name}", samples, name, DIRECT, "ms", ("≤", 1.3))
    yield Row.of(f"TTFT, {RELAY}: the floor", samples, RELAY, DIRECT, "ms")


async def _first_token(client: FoundryAPIClient, model: str) -> float:
    return await first_token(client.stream_complete(QUESTION, model=model))


@contextmanager
def _program(arguments: Sequence[str]) -> Iterator[str]:
    """Run a Python program that prints its URL."""
    command = [sys.executable, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as program:
        try:
            assert program.stdout is not None
            yield program.stdout.readline().strip()
        finally:
            program.terminate()
