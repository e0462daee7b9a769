"""What works on this machine, and what to do about what doesn't."""

import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx

from foundry_lab.errors import FoundryLabError
from foundry_lab.health import memory_of
from foundry_lab.service import Service
from foundry_lab.settings import Settings

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    what: str
    ok: bool
    detail: str
    fix: str = ""
    """What to do when it is not ok."""

    def __str__(self) -> str:
        line = f"{'ok ' if self.ok else 'NOT'}  {self.what:<10} {self.detail}"
        return line if self.ok else f"{line}\n     → {self.fix}"


def examine() -> Iterator[Finding]:
    """Examine this machine step by step, ending at the first step that all later ones need."""
    yield _python()
    yield _packages()
    try:
        settings = Settings.from_environment()
        yield Finding("settings", True, _described(settings))
        started = time.perf_counter()
        with Service(settings) as service:
            took = time.perf_counter() - started
            yield Finding(
                "service", True, f"{service.model_id} ready in {took:.2f} s, {service.url}"
            )
            yield from _service(service)
    except FoundryLabError as error:
        yield Finding("service", False, error.what, error.fix)
    except httpx.HTTPError as error:
        why = f"no answer to a short question: {error!r}"
        yield Finding("answer", False, why, "Allow it more time with FOUNDRY_TIMEOUT.")


def _python() -> Finding:
    return Finding(
        "Python",
        (3, 11) <= sys.version_info < (3, 15),
        f"{platform.python_version()} in {Path(sys.prefix).name}, "
        f"on {platform.system()} {platform.machine()}",
        "Use Python 3.11 to 3.14: `python start.py` says how.",
    )


def _packages() -> Finding:
    try:
        found = [f"{name} {version(name)}" for name in ("foundry-local-sdk", "httpx", "jupyterlab")]
        return Finding("packages", True, ", ".join(found))
    except PackageNotFoundError as error:
        return Finding("packages", False, str(error), "Run `python start.py` once, with a network.")


def _described(settings: Settings) -> str:
    key = "with a key" if settings.api_key else "no key"
    where = settings.endpoint or settings.model_dir or settings.model or "the default model"
    return f"{where}, timeout {settings.timeout:g} s, {key}"


def _service(service: Service) -> Iterator[Finding]:
    started = time.perf_counter()
    answer = httpx.post(
        f"{service.url}/v1/chat/completions",
        json={
            "model": service.model_id,
            "messages": [{"role": "user", "content": "What is jitter?"}],
            "max_tokens": 8,
            "temperature": 0,
        },
        headers=service.settings.headers,
        timeout=service.settings.timeout,
    )
    took = (time.perf_counter() - started) * 1000
    yield Finding(
        "answer",
        answer.status_code == 200,
        f"status {answer.status_code} in {took:.0f} ms",
        f"The service said: {answer.text[:200]}",
    )
    if service.pid is not None:
        yield Finding("memory", True, f"{memory_of(service.pid)} MB in the service's process")
