"""What works on this machine, and what to do about what doesn't."""

import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx
import psutil

from foundry_lab.checks.sheets import mine
from foundry_lab.chunks import ChunkDecoder
from foundry_lab.errors import FoundryLabError, SettingsError
from foundry_lab.health import memory_of
from foundry_lab.machine import Finding, packages, python
from foundry_lab.service import DOWNLOADED_MODELS, Service
from foundry_lab.settings import BUNDLED_MODEL, BUNDLED_MODEL_DIR, LOOPBACK, Settings
from foundry_lab.wire import QUICK_ACK

__all__ = ["Finding", "examine"]

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

NAMES = {
    f"FOUNDRY_{name}"
    for name in (
        *("MODEL", "MODEL_DIR", "TIMEOUT", "RETRIES", "LOG_LEVEL", "ENDPOINT", "API_KEY"),
        "EXERCISES",
    )
}
"""The variables that the workbook reads."""

CHECKSUM = re.compile(r"^([0-9a-f]{64})  (\S+)$", re.MULTILINE)
"""SHA-256 and name of a file, a line of lab-tiny's card."""
LONG_ANSWER = 512
"""Tokens of the longest answer that the client asks for unless told otherwise."""
LOOK = 0.5
"""Seconds of a stream that its speed is read off."""
DOWNLOAD_GB = 5.0
"""Gigabytes that a model of the catalog may need: mistral-7b for a CPU has 4.07 (issue 187 of
microsoft/Foundry-Local)."""
LITTLE_GB = 0.5
"""Gigabytes of disk or memory below which anything may fail."""


def examine() -> Iterator[Finding]:
    """Examine this machine step by step, ending at the first step that all later ones need."""
    yield python()
    yield packages()
    yield _bundled_model()
    yield _proxy()  # before a service starts: that keeps proxies away from this program
    yield from map(_folder, (NOTEBOOKS, mine()))
    try:
        settings = Settings.from_environment()
        yield _settings(settings)
        yield _disk(settings)
        started = time.perf_counter()
        with Service(settings) as service:
            took = time.perf_counter() - started
            ready = f"{service.model_id} ready in {took:.2f} s, {service.url}"
            yield Finding("service", "ok", ready)
            yield from _service(service)
    except SettingsError as error:
        yield Finding("settings", "fail", error.what, error.fix)
    except FoundryLabError as error:
        yield Finding("service", "fail", error.what, error.fix)
    except httpx.HTTPError as error:
        why = f"no answer to a short question: {error!r}"
        yield Finding("answer", "fail", why, "Allow it more time with FOUNDRY_TIMEOUT.")
    except OSError as error:
        fix = (
            f"Make room in the folder for temporary files, {tempfile.gettempdir()}, or set TMPDIR."
        )
        yield Finding("service", "fail", f"The system refused to start it: {error}", fix)


def _bundled_model() -> Finding:
    """Compare its files with its card; one other line end, and it answers nonsense."""
    card = (BUNDLED_MODEL_DIR / "README.md").read_text(encoding="utf-8")
    spoilt = [
        name
        for digest, name in CHECKSUM.findall(card)
        if not (file := BUNDLED_MODEL_DIR / name).is_file()
        or hashlib.sha256(file.read_bytes()).hexdigest() != digest
    ]
    if not spoilt:
        return Finding(BUNDLED_MODEL, "ok", "its files are those that its card names")
    what = f"Damaged or missing in {BUNDLED_MODEL_DIR}: {', '.join(spoilt)}"
    fix = "Run `git restore foundry_lab/model`, or unpack the workbook again."
    return Finding(BUNDLED_MODEL, "fail", what, fix)


def _proxy() -> Finding:
    proxies = getproxies()
    if not (proxies.get("http") or proxies.get("all")):
        return Finding("proxy", "ok", "none for http")
    if proxy_bypass("127.0.0.1"):
        return Finding("proxy", "ok", "one for http, but not for 127.0.0.1")
    what = "The proxy for http is also one for 127.0.0.1: curl, say, won't reach the service."
    fix = f"Set NO_PROXY={','.join(LOOPBACK)} (this package does so for its own programs)."
    return Finding("proxy", "warn", what, fix)


def _folder(folder: Path) -> Finding:
    """Try to write where a learner's work is kept, or where that folder would be made."""
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    name = "exercises" if folder == mine() else folder.name
    try:
        with tempfile.TemporaryFile(dir=there):
            return Finding(name, "ok", "can be saved")
    except OSError as error:
        what = f"Nothing can be saved in {there}: {error.strerror}."
        return Finding(name, "warn", what, "Copy the workbook to a folder of your own.")


def _settings(settings: Settings) -> Finding:
    given = {name: bool(value) for name, value in os.environ.items() if name in NAMES and value}
    for name in sorted(os.environ):
        near = get_close_matches(name, NAMES, n=1, cutoff=0.85)
        if near and name not in NAMES:
            fix = f"Set {near[0]}, if that is what you mean."
            return Finding("settings", "warn", f"{name} is set, and nobody reads it.", fix)
    for wins in ("FOUNDRY_ENDPOINT", "FOUNDRY_MODEL_DIR"):
        loses = "FOUNDRY_MODEL_DIR" if wins == "FOUNDRY_ENDPOINT" else "FOUNDRY_MODEL"
        if wins in given and loses in given:
            what = f"{loses} is not used, as {wins} is set."
            return Finding("settings", "warn", what, "Unset the one that you don't mean.")
    key = "with a key" if settings.api_key else "no key"
    where = settings.endpoint or settings.model_dir or settings.model or "the default model"
    return Finding("settings", "ok", f"{where}, timeout {settings.timeout:g} s, {key}")


def _disk(settings: Settings) -> Finding:
    there = next(path for path in DOWNLOADED_MODELS.parents if path.is_dir())
    free = shutil.disk_usage(there).free / 1e9
    own = settings.endpoint or settings.model_dir or settings.model in (None, BUNDLED_MODEL)
    detail = f"{free:.1f} GB free for downloaded models"
    if free >= (LITTLE_GB if own else DOWNLOAD_GB):
        return Finding("disk", "ok", detail)
    fix = (
        f"Free {LITTLE_GB if own else DOWNLOAD_GB:g} GB in {there}, or use FOUNDRY_MODEL=lab-tiny."
    )
    return Finding("disk", "warn", detail, fix)


def _service(service: Service) -> Iterator[Finding]:
    began = time.perf_counter()
    chat = f"{service.url}/v1/chat/completions"
    given: Any = {"headers": service.settings.headers, "timeout": service.settings.timeout}
    answer = httpx.post(chat, json=_body(service, "What is jitter?", 8), **given)
    took = (time.perf_counter() - began) * 1000
    good = answer.status_code == 200
    yield Finding(
        "answer",
        "ok" if good else "fail",
        f"status {answer.status_code} in {took:.0f} ms",
        f"The service said: {service.settings.without_key(answer.text)[:200]}",
    )
    if good:
        body = _body(service, "Count from 1 to 300.", 300) | {"stream": True}
        with httpx.stream("POST", chat, json=body, **given) as stream:
            yield _speed(_rate(stream), service.settings.timeout)
    no = "" if QUICK_ACK else "no "
    meaning = "the first token need not wait" if QUICK_ACK else "the first token may wait"
    yield Finding("quick ACK", "ok", f"{no}TCP_QUICKACK here: {meaning} (lesson 03, section 7)")
    yield _memory(service.pid)


def _body(service: Service, prompt: str, max_tokens: int) -> dict[str, Any]:
    asked = [{"role": "user", "content": prompt}]
    return {
        "model": service.model_id,
        "messages": asked,
        "max_tokens": max_tokens,
        "temperature": 0,
    }


def _rate(stream: httpx.Response) -> float | None:
    """Return the pieces of text per second, from the first one on; None for too few to tell."""
    decoder, times = ChunkDecoder(), list[float]()
    for packet in stream.iter_raw():
        now = time.perf_counter()
        times += [now for chunk in decoder.feed(packet) if chunk.content]
        if decoder.over or (times and now - times[0] > LOOK):
            break
    span = times[-1] - times[0] if times else 0.0
    return (len(times) - 1) / span if span else None


def _speed(rate: float | None, timeout: float) -> Finding:
    if rate is None:
        return Finding("speed", "ok", "the answer was too short to tell")
    needs = LONG_ANSWER / rate
    if needs <= timeout:
        return Finding(
            "speed", "ok", f"about {rate:,.0f} pieces of text, mostly tokens, per second"
        )
    what = f"about {rate:.1f} pieces of text per second: {LONG_ANSWER} tokens take {needs:.0f} s"
    fix = (
        f"Close other programs, ask for less with max_tokens, set FOUNDRY_TIMEOUT={2 * needs:.0f}, "
        "or use FOUNDRY_MODEL=lab-tiny."
    )
    return Finding("speed", "warn", f"{what}, and FOUNDRY_TIMEOUT is {timeout:g} s", fix)


def _memory(pid: int | None) -> Finding:
    free = psutil.virtual_memory().available / 1e9
    used = "" if pid is None else f"{memory_of(pid)} MB in the service's process, "
    detail = f"{used}{free:.1f} GB free"
    if free >= LITTLE_GB:
        return Finding("memory", "ok", detail)
    return Finding("memory", "warn", detail, "Close other programs, or use FOUNDRY_MODEL=lab-tiny.")
