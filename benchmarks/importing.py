"""What an import costs, in an interpreter of its own, compiled before and from warm files."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial

from measure import Row, in_turns

__all__ = ["rows"]

HTTPX, PACKAGE = "import httpx", "import foundry_lab"
CLIENT, OPENAI = "from foundry_lab import FoundryAPIClient", "import openai"


def rows(quick: bool) -> Iterator[Row]:
    """Compare with httpx, which the package stands on, and with the openai package."""
    statements = (HTTPX, PACKAGE, CLIENT, OPENAI)
    with tempfile.TemporaryDirectory() as compiled:
        samples = in_turns(
            2 if quick else 30, {name: partial(_import, name, compiled) for name in statements}
        )
    yield Row.of(PACKAGE, samples, PACKAGE, HTTPX, "ms", ("≤", 1.5))
    yield Row.of(CLIENT, samples, CLIENT, HTTPX, "ms")
    yield Row.of(CLIENT, samples, CLIENT, OPENAI, "ms")


def _import(statement: str, compiled: str) -> float:
    """Return the milliseconds of one import. The folder is where Python keeps what it compiled."""
    program = (
        "from time import perf_counter\n"
        f"began = perf_counter()\n{statement}\nprint(1e3 * (perf_counter() - began))"
    )
    environment = os.environ | {"PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, check=True)
    return float(run.stdout)
