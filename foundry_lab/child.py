"""The child process that runs the service: spawn it, hear it out, end it, leave nothing behind.

`foundry_lab.runtime` is what runs in it. It says where it listens as one JSON line on its standard
output and ends when its standard input closes, so it cannot outlive the notebook that started it.
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
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from foundry_lab import errors
from foundry_lab.errors import FoundryLabError, ServiceStartFailed

__all__ = ["Child", "Plan"]

SILENCE_LIMIT = 600.0
"""Seconds a starting child may say nothing before it is taken for hung: to load a large model, or
to download one percent of it, can take minutes."""


@dataclass(frozen=True)
class Plan:
    """What the child is to serve."""

    model: str
    """The alias."""
    port: int
    """Where to listen on 127.0.0.1; 0: any free port."""
    log_level: str
    model_dir: str | None
    """The folder of a model of one's own; None: a model of the public catalog."""
    cache_dir: str
    """Where downloaded catalog models live."""
    catalog_url: str | None
    """Another catalog than Microsoft's; the tests have one."""
    download: bool
    """Whether a catalog model that is not on this machine may be downloaded."""


class Child:
    """One child process and its private folder.

    Args:
        plan: What it is to serve.
    """

    def __init__(self, plan: Plan) -> None:
        _remove_left_over_folders()
        self._owner = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix=f"foundry-lab-{os.getpid()}-"))
        command = [sys.executable, "-m", "foundry_lab.runtime", json.dumps(asdict(plan))]
        with (self._folder / "service.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                **_own_process_group(),
            )
        atexit.register(self.stop)

    @property
    def log(self) -> str:
        """What it has logged so far."""
        file = self._folder / "service.log"
        return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""

    def wait_until_ready(self) -> dict[str, Any]:
        """Wait, with a progress bar while it downloads, and return what it says of itself.

        Raises:
            ServiceError: It could not start; the child is gone then.
        """
        try:
            with contextlib.closing(_DownloadBar()) as bar:
                for line in self._lines():
                    if line["event"] == "ready":
                        return line
                    if line["event"] == "failed":
                        error: type[FoundryLabError] = getattr(errors, line["error"])
                        raise error(line["what"], fix=line["fix"])
                    bar.show(line["model"], line["percent"])
            last_words = "\n".join(self.log.splitlines()[-5:]) or "(none)"
            raise ServiceStartFailed(
                f"The service ended before it was ready. Its last words:\n{last_words}",
                fix="Run `python -m foundry_lab doctor`.",
            )
        except BaseException:  # Ctrl-C during a download too: the child must not stay
            self.kill()
            raise

    def _lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        while True:
            watchdog = threading.Timer(SILENCE_LIMIT, self.process.kill)
            watchdog.daemon = True  # if Ctrl-C comes before it can be cancelled
            try:
                watchdog.start()
                line = self.process.stdout.readline()
            finally:
                watchdog.cancel()
            if not line:
                return
            yield json.loads(line)

    def kill(self) -> None:
        """End it as ``kill -9`` does, then clean up after it: remove its folder."""
        self.process.kill()
        self.stop()

    def stop(self) -> None:
        """End it by closing its standard input, and remove its folder.

        Only the process that started it can: a fork of that one has this object too.
        """
        if os.getpid() != self._owner:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()
        _remove(self._folder)
        atexit.unregister(self.stop)


def _remove(folder: Path) -> None:
    """Remove a folder; whoever still has a file in it, as can be after a kill, gets a second."""
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


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


def _own_process_group() -> dict[str, Any]:
    """Keep Ctrl-C and "Interrupt kernel" away from the child: they are meant for the notebook."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    return {"start_new_session": True}


def _remove_left_over_folders() -> None:
    """Remove what a notebook and its service left when both were killed at the same moment."""
    for folder in Path(tempfile.gettempdir()).glob("foundry-lab-*-*"):
        owner = folder.name.split("-")[2]
        if re.fullmatch("[0-9]{1,9}", owner) and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
