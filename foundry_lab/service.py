"""The real Foundry Local on this machine: start it, attach to it, stop, kill, restart it."""

import contextlib
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import getproxies

import httpx

from foundry_lab.answers import MAX_BODY, parse
from foundry_lab.child import Child, Plan
from foundry_lab.errors import (
    CatalogModelNotFound,
    InvalidModelFolder,
    InvalidResponse,
    PortInUse,
    ServiceError,
    ServiceUnreachable,
)
from foundry_lab.settings import (
    BUNDLED_MODEL,
    BUNDLED_MODEL_DIR,
    DEFAULT_MODEL,
    LOOPBACK,
    Settings,
)

__all__ = ["Service", "alias_of", "say_once", "start_service"]

ATTACH_TIMEOUT = 5.0
"""Seconds that a service which is said to run may take to say which models it has loaded."""

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
        self._child: Child | None = None
        self._pid: int | None = None  # its own word: a venv's python.exe is only a launcher

    def __enter__(self) -> Self:
        return self.start()

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
        """The process id of the runtime; None for a service that was found running."""
        return self._pid if self._child else None

    @property
    def alive(self) -> bool:
        """Whether the child runs; a service that was found running counts as alive."""
        return self._child.process.poll() is None if self._child else bool(self.url)

    @property
    def log(self) -> str:
        """What the running service has logged; empty once it has ended."""
        return self._child.log if self._child else ""

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
        keep_proxies_out()
        if self.settings.endpoint is not None:
            self.url, self.model_id = _attach(self.settings.endpoint, self.settings)
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
        if self._child is not None:
            self._child.stop()

    def kill(self) -> None:
        """Kill the child as ``kill -9`` does: no goodbye, connections broken in the middle.

        Raises:
            ServiceError: The service was not started here.
        """
        self._own_child("killed").kill()

    def restart(self) -> Self:
        """Start again on the same port, so that clients find it where it was.

        Raises:
            ServiceError: The service was not started here.
            PortInUse: Something took the port meanwhile.
        """
        self._own_child("restarted").stop()
        return self.start()

    def wait(self) -> None:
        """Wait until the child ends; one that was found running is not waited for."""
        while self._child and self._child.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.process.wait(0.5)  # Windows hears no Ctrl-C in a wait without an end

    def _own_child(self, done: str) -> Child:
        if self._child is None:
            raise ServiceError(
                f"The service at {self.url or 'no address yet'} was not started here, "
                f"so it can't be {done} here.",
                fix="Unset FOUNDRY_ENDPOINT to let the notebook start a service of its own.",
            )
        return self._child

    def _spawn_default(self) -> None:
        """Serve the default model where it is on this machine, else the bundled one."""
        if any(self._cache_dir.rglob("inference_model.json")):  # asking the catalog is slow
            with contextlib.suppress(CatalogModelNotFound):
                return self._spawn(DEFAULT_MODEL)
        say_once(f"{DEFAULT_MODEL} is not on this machine: {BUNDLED_MODEL} answers.")
        return self._spawn(BUNDLED_MODEL, BUNDLED_MODEL_DIR)

    def _spawn(self, alias: str, model_dir: Path | None = None, download: bool = False) -> None:
        plan = Plan(
            model=alias,
            port=self.port,
            log_level=self.settings.log_level,
            model_dir=str(model_dir) if model_dir else None,
            cache_dir=str(self._cache_dir),
            catalog_url=self._catalog_url,
            download=download,
        )
        if self._child is not None:
            self._child.stop()
        self._child = Child(plan)
        ready = self._child.wait_until_ready()
        self.url, self.model_id, self.aliases = ready["url"], ready["model_id"], ready["aliases"]
        self._pid = ready["pid"]
        self.port = httpx.URL(self.url).port or self.port


def _own_model(folder: Path) -> tuple[str, Path]:
    if not (folder / "genai_config.json").is_file():
        raise InvalidModelFolder(
            f"{folder} {'holds no genai_config.json' if folder.is_dir() else 'is not a folder'}, "
            "so it holds no model for ONNX Runtime GenAI.",
            fix="Point FOUNDRY_MODEL_DIR at what the onnxruntime-genai model builder wrote.",
        )
    folder = folder.resolve()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", folder.name).strip("-._") or "model", folder


def _attach(url: str, settings: Settings) -> tuple[str, str]:
    """Find a running service: its base URL, and the id of the wanted or of the first loaded model.

    Models of one's own live below ``/catalogs/local``, which is easily forgotten. Look there
    first: the public catalog may go to the network before it answers.
    """
    loaded: list[str] = []
    if not url.endswith("/catalogs/local"):
        with contextlib.suppress(ServiceUnreachable):
            loaded = _loaded_models(f"{url}/catalogs/local", settings)
    if loaded:
        url = f"{url}/catalogs/local"
    else:
        loaded = _loaded_models(url, settings)
    wanted = settings.model
    fitting = [known for known in loaded if wanted in (None, known, alias_of(known))]
    return url, next(iter(fitting), wanted or "")


def _loaded_models(url: str, settings: Settings) -> list[str]:
    fix = (
        "Start one with `python -m foundry_lab serve` and set FOUNDRY_ENDPOINT to the URL it "
        "prints, or unset FOUNDRY_ENDPOINT."
    )
    try:
        status, text = _got(f"{url}/models/loaded", settings)
        if status == 200:
            return parse(list[str], text)
        why = f"it answers with status {status}"
        fix = "Check FOUNDRY_API_KEY." if status in (401, 403) else fix
    except httpx.HTTPError as error:
        why = f"{type(error).__name__}: {settings.without_key(str(error))}"
    except InvalidResponse:
        why = "the answer is no list of models"  # not its text, which may hold the key
    raise ServiceUnreachable(f"No Foundry Local service answers at {url}: {why}.", fix=fix)


def _got(url: str, settings: Settings) -> tuple[int, str]:
    """Status and body, bounded in time and size as a whole."""
    ends, body = time.monotonic() + ATTACH_TIMEOUT, bytearray()
    headers = {"Accept-Encoding": "identity"} | settings.headers
    with httpx.stream("GET", url, headers=headers, timeout=ATTACH_TIMEOUT) as answer:
        if "content-encoding" in answer.headers:
            raise httpx.DecodingError("it is packed, and nobody asked for that")
        for piece in answer.iter_bytes():
            body += piece
            if len(body) > MAX_BODY or time.monotonic() > ends:
                raise httpx.ReadTimeout("no whole answer in time")
    return answer.status_code, body.decode("utf-8", "replace")


def keep_proxies_out() -> None:
    """Tell httpx, and whatever else reads the environment, to reach this machine directly.

    The variables hide the proxies that Windows and macOS keep elsewhere, so these are written down.
    GNOME writes ``socks://``, which httpx does not know.
    """
    proxies = getproxies()
    others = proxies.pop("no", "")
    for scheme, proxy in proxies.items():
        if proxy.startswith("socks://"):
            os.environ[f"{scheme}_proxy"] = proxy.replace("socks://", "socks5://", 1)
    if proxies and others.strip() != "*" and "127.0.0.1" not in others:
        for scheme, proxy in proxies.items():
            os.environ.setdefault(f"{scheme}_proxy", proxy)
        direct = ",".join(filter(None, [others, *LOOPBACK]))
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = direct


_said: set[str] = set()


def say_once(sentence: str) -> None:
    """Print what a learner should know, but not every time."""
    if sentence not in _said:
        _said.add(sentence)
        print(sentence)


_shared: Service | None = None
_starting = threading.Lock()


def start_service() -> Service:
    """Start this notebook's service, or hand back the one that runs.

    The environment's ``FOUNDRY_*`` variables decide what is served; after they have changed, the
    next call stops the old service and starts another.

    Raises:
        ServiceError: As `Service.start` says.
    """
    global _shared
    settings = Settings.from_environment()
    with _starting:
        if _shared is not None and _shared.alive and _shared.settings == settings:
            return _shared
        port = 0
        if _shared is not None:
            _shared.stop()
            port = _shared.port
        try:
            _shared = Service(settings, port=port).start()
        except PortInUse:
            _shared = Service(settings).start()
        return _shared
