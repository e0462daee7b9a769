"""The real Foundry Local as a child process: start it, attach to it, stop, kill, restart it.

The child says where it listens as one JSON line on its standard output and ends when its standard
input closes, so it cannot outlive the notebook that started it. Its log goes to a file.
"""

import atexit
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import psutil

from foundry_lab import errors
from foundry_lab.errors import (
    CatalogModelNotFound,
    FoundryLabError,
    InvalidModelFolder,
    ServiceError,
    ServiceStartFailed,
    ServiceUnreachable,
)
from foundry_lab.plan import Plan
from foundry_lab.settings import BUNDLED_MODEL, BUNDLED_MODEL_DIR, DEFAULT_MODEL, Settings

__all__ = ["Service", "alias_of", "start_service"]

SILENCE_LIMIT = 60.0
"""Seconds a starting child may say nothing before it is taken for hung."""

DOWNLOADED_MODELS = Path.home() / ".foundry-lab" / "cache" / "models"


def alias_of(model_id: str) -> str:
    """Derive a model's alias from its id: ``qwen-generic-cpu:3`` → ``qwen``.

    True for models of one's own; a catalog may name a model otherwise, which only
    `Service.aliases` knows.
    """
    return re.sub(r"-generic-(cpu|gpu|npu)$", "", model_id.rpartition(":")[0] or model_id)


class Service:
    """One Foundry Local service on this machine, in a process of its own or found running.

    Args:
        settings: What to serve; the environment's settings by default.
        port: Where to listen on 127.0.0.1; 0 takes a free port.
        catalog_url: A catalog other than Microsoft's.
        cache_dir: Where downloaded catalog models live.

    Use it as a context manager, or call `start` and `stop`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        port: int = 0,
        catalog_url: str | None = None,
        cache_dir: Path = DOWNLOADED_MODELS,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        self.port = port
        self.url = ""
        """Base URL; what follows starts with ``/v1`` or ``/models``."""
        self.model_id = ""
        """The full id of the model that is served, such as ``lab-tiny:1``."""
        self.aliases: dict[str, str] = {}
        """Model id → alias, as far as known."""
        self._catalog_url = catalog_url
        self._cache_dir = cache_dir
        self._process: subprocess.Popen[str] | None = None
        self._home: Path | None = None

    def __enter__(self) -> Self:
        return self if self.alive else self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Service {self.model_id} at {self.url}>" if self.alive else "<Service, stopped>"

    @property
    def alias(self) -> str:
        """The alias of the model that is served, such as ``lab-tiny``."""
        return self.aliases.get(self.model_id) or alias_of(self.model_id)

    @property
    def pid(self) -> int | None:
        """The process id of the child; None for a service that was found running."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the child runs; a service that was found running counts as alive."""
        return self._process.poll() is None if self._process else bool(self.url)

    @property
    def log(self) -> str:
        """What the service has logged since it started."""
        if self._home is None or not (file := self._home / "service.log").exists():
            return ""
        return file.read_text(encoding="utf-8", errors="replace")

    def start(self) -> Self:
        """Start the child, or attach to ``FOUNDRY_ENDPOINT``, and wait until it answers.

        Raises:
            PortInUse: Something else listens on the port.
            InvalidModelFolder: ``FOUNDRY_MODEL_DIR`` holds no model.
            CatalogModelNotFound: ``FOUNDRY_MODEL`` is not in the catalog.
            DownloadFailed: It is, but could not be brought here.
            ServiceUnreachable: Nobody answers at ``FOUNDRY_ENDPOINT``.
            ServiceStartFailed: Anything else; the message says what the child said.
        """
        if self.alive:
            return self
        if self.settings.endpoint is not None:
            self.url = self.settings.endpoint
            self.model_id = _served_model(self.url, self.settings)
            return self
        if self.settings.model_dir is not None:
            self._spawn(*_own_model(self.settings.model_dir))
        elif self.settings.model == BUNDLED_MODEL:
            self._spawn(BUNDLED_MODEL, BUNDLED_MODEL_DIR)
        elif self.settings.model is not None:
            self._spawn(self.settings.model, download=True)
        else:
            self._spawn_default()
        return self

    def stop(self) -> None:
        """End the child and remove its files; a service that was found running is left alone."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._home or "", ignore_errors=True)
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """Kill the child as ``kill -9`` does: no goodbye, connections broken in the middle.

        Raises:
            ServiceError: The service was not started here.
        """
        self._own_process("killed").kill()
        self.stop()

    def restart(self) -> Self:
        """Start again on the same port, so that clients find it where it was.

        Raises:
            ServiceError: The service was not started here.
            PortInUse: Something took the port meanwhile.
        """
        self._own_process("restarted")
        self.stop()
        return self.start()

    def wait(self) -> None:
        """Wait until the child ends; one that was found running is not waited for."""
        if self._process is not None:
            self._process.wait()

    def _own_process(self, done: str) -> subprocess.Popen[str]:
        if self._process is None:
            raise ServiceError(
                f"The service at {self.url or 'no address yet'} was not started here, "
                f"so it can't be {done} here.",
                fix="Unset FOUNDRY_ENDPOINT to let the notebook start a service of its own.",
            )
        return self._process

    def _spawn_default(self) -> None:
        """Serve the default model where it is on this machine, else the bundled one."""
        if any(self._cache_dir.rglob("inference_model.json")):  # asking the catalog is slow
            with contextlib.suppress(CatalogModelNotFound):
                return self._spawn(DEFAULT_MODEL)
        print(f"{DEFAULT_MODEL} is not on this machine: {BUNDLED_MODEL} answers.")
        return self._spawn(BUNDLED_MODEL, BUNDLED_MODEL_DIR)

    def _spawn(self, alias: str, model_dir: Path | None = None, download: bool = False) -> None:
        _remove_left_over_homes()
        self._home = Path(tempfile.mkdtemp(prefix=f"foundry-lab-{os.getpid()}-"))
        plan = Plan(
            model=alias,
            home=str(self._home),
            port=self.port,
            log_level=self.settings.log_level,
            model_dir=str(model_dir) if model_dir else None,
            cache_dir=str(self._cache_dir),
            catalog_url=self._catalog_url,
            download=download,
        )
        with (self._home / "service.log").open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "foundry_lab.runtime", json.dumps(asdict(plan))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                **_own_process_group(),
            )
        atexit.register(self.stop)
        try:
            ready = self._wait_until_ready()
        except BaseException:  # Ctrl-C during a download too: the child must not stay
            self._process.kill()
            self.stop()
            raise
        self.url, self.model_id, self.aliases = ready["url"], ready["model_id"], ready["aliases"]
        self.port = httpx.URL(self.url).port or self.port

    def _wait_until_ready(self) -> dict[str, Any]:
        with contextlib.closing(_DownloadBar()) as bar:
            for line in self._lines():
                if line["event"] == "ready":
                    return line
                if line["event"] == "failed":
                    error: type[FoundryLabError] = getattr(errors, line["error"])
                    raise error(line["what"], fix=line["fix"])
                bar.show(line["model"], line["percent"])
        last_words = "\n".join(self.log.splitlines()[-5:])
        raise ServiceStartFailed(
            f"The service ended, or said nothing for {SILENCE_LIMIT:.0f} s, before it was ready."
            f" Its last words:\n{last_words or '(none)'}",
            fix="Run `python -m foundry_lab doctor`.",
        )

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield what the child says, line by line; a child that falls silent for long is killed."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            watchdog = threading.Timer(SILENCE_LIMIT, self._process.kill)
            watchdog.start()
            try:
                line = self._process.stdout.readline()
            finally:
                watchdog.cancel()
            if not line:
                return
            yield json.loads(line)


class _DownloadBar:
    """A progress bar that appears with the first report."""

    def __init__(self) -> None:
        self._bar: Any = None

    def show(self, model: str, percent: float) -> None:
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=100, desc=f"Downloading {model}", unit="%")
        self._bar.update(percent - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _own_model(folder: Path) -> tuple[str, Path]:
    if not (folder / "genai_config.json").is_file():
        raise InvalidModelFolder(
            f"{folder} {'holds no genai_config.json' if folder.is_dir() else 'is not a folder'}, "
            "so it holds no model for ONNX Runtime GenAI.",
            fix="Point FOUNDRY_MODEL_DIR at what the onnxruntime-genai model builder wrote.",
        )
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name), folder.resolve()


def _served_model(url: str, settings: Settings) -> str:
    """Ask a running service which model to use: the one in the settings, else the first loaded."""
    try:
        loaded = httpx.get(f"{url}/models/loaded", timeout=settings.timeout).raise_for_status()
        return str(settings.model or next(iter(loaded.json()), ""))
    except (httpx.HTTPError, ValueError) as error:
        raise ServiceUnreachable(
            f"No Foundry Local service answers at {url}: {error}",
            fix="Start one with `python -m foundry_lab serve` and set FOUNDRY_ENDPOINT to the URL "
            "it prints, or unset FOUNDRY_ENDPOINT.",
        ) from error


def _own_process_group() -> dict[str, Any]:
    """Keep Ctrl-C and "Interrupt kernel" away from the child: they are meant for the notebook."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _remove_left_over_homes() -> None:
    """Remove what a notebook and its service left when both were killed at the same moment."""
    for home in Path(tempfile.gettempdir()).glob("foundry-lab-*-*"):
        owner = home.name.split("-")[2]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(home, ignore_errors=True)


_shared: Service | None = None


def start_service() -> Service:
    """Start this notebook's service, or hand back the one that runs.

    The environment's ``FOUNDRY_*`` variables decide what is served; after they have changed, the
    next call stops the old service and starts another.

    Raises:
        ServiceError: As `Service.start` says.
    """
    global _shared
    settings = Settings.from_environment()
    if _shared is not None and _shared.alive and _shared.settings == settings:
        return _shared
    port = 0
    if _shared is not None:
        _shared.stop()
        port = _shared.port
    _shared = Service(settings, port=port).start()
    return _shared
