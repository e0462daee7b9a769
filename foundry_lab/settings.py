"""What the environment says: the ``FOUNDRY_*`` variables, read once into one frozen record."""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from foundry_lab.errors import SettingsError

__all__ = [
    "BUNDLED_MODEL",
    "BUNDLED_MODEL_DIR",
    "DEFAULT_MODEL",
    "LOOPBACK",
    "Settings",
    "checked_url",
]

DEFAULT_MODEL = "phi-4-mini"
BUNDLED_MODEL = "lab-tiny"
BUNDLED_MODEL_DIR = Path(__file__).parent / "model"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""The names of this machine to itself."""


@dataclass(frozen=True)
class Settings:
    """How to reach a model, and how long to wait for it."""

    model: str | None = None
    """``FOUNDRY_MODEL``: ``lab-tiny`` or the alias of a catalog model, downloaded when it is not on
    this machine. None: ``phi-4-mini`` where it is on the machine, else the bundled ``lab-tiny``."""

    timeout: float = 30.0
    """``FOUNDRY_TIMEOUT``: seconds for one whole operation, everything included."""

    retries: int = 3
    """``FOUNDRY_RETRIES``: attempts after the first one."""

    log_level: str = "INFO"
    """``FOUNDRY_LOG_LEVEL``: DEBUG, INFO, WARNING, ERROR or CRITICAL."""

    endpoint: str | None = None
    """``FOUNDRY_ENDPOINT``: the URL of a service that already runs, without ``/v1``."""

    api_key: str | None = field(default=None, repr=False)
    """``FOUNDRY_API_KEY``: sent as a bearer token. Foundry Local ignores it, a gateway may not."""

    model_dir: Path | None = None
    """``FOUNDRY_MODEL_DIR``: a folder of one's own in the format of ONNX Runtime GenAI."""

    def __post_init__(self) -> None:
        if self.api_key:
            _key(self.api_key)

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that carry the key, if there is one."""
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    def without_key(self, text: str) -> str:
        """Remove the key from a text: a server may echo what it was sent."""
        return text.replace(self.api_key, "[key]") if self.api_key else text

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> "Settings":
        """Read the ``FOUNDRY_*`` variables; one that is unset or empty means its default.

        Args:
            environment: Where to look; the process's own environment by default.

        Raises:
            SettingsError: A variable holds what can't be used.
        """
        environment = os.environ if environment is None else environment
        given = {
            name: text.strip()
            for name in ("MODEL", "TIMEOUT", "RETRIES", "LOG_LEVEL", "ENDPOINT", "API_KEY")
            if (text := environment.get(f"FOUNDRY_{name}", "")).strip()
        }
        folder = environment.get("FOUNDRY_MODEL_DIR", "").strip()
        return cls(
            model=given.get("MODEL"),
            timeout=_positive_seconds(given.get("TIMEOUT", "30")),
            retries=_whole_number(given.get("RETRIES", "3")),
            log_level=_log_level(given.get("LOG_LEVEL", "INFO")),
            endpoint=checked_url(given["ENDPOINT"]) if "ENDPOINT" in given else None,
            api_key=_key(given["API_KEY"]) if "API_KEY" in given else None,
            model_dir=_folder(folder) if folder else None,
        )


def _positive_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise SettingsError(
            f"FOUNDRY_TIMEOUT is {text!r}, which is not a number of seconds above zero.",
            fix="Set it to something like 30, or unset it.",
        )
    return seconds


def _whole_number(text: str) -> int:
    if not re.fullmatch("[0-9]{1,4}", text):
        raise SettingsError(
            f"FOUNDRY_RETRIES is {text!r}, which is not a whole number from zero up.",
            fix="Set it to something like 3 (0 means one attempt only), or unset it.",
        )
    return int(text)


def _log_level(text: str) -> str:
    level = text.upper()
    if level not in ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"):
        raise SettingsError(
            f"FOUNDRY_LOG_LEVEL is {text!r}, which is not a level of Python's logging.",
            fix="Use DEBUG, INFO, WARNING, ERROR or CRITICAL.",
        )
    return level


def _folder(text: str) -> Path:
    with contextlib.suppress(RuntimeError):  # ~somebody who is not known here
        return Path(text).expanduser().resolve()
    return Path(text).resolve()


def _key(text: str) -> str:
    if not re.fullmatch("[!-~]+", text):
        raise SettingsError(
            "FOUNDRY_API_KEY holds a space, a line break or a letter that no header can carry.",
            fix="Set it again, without quotes or a line break; it is not shown here on purpose.",
        )
    return text


def checked_url(text: str) -> str:
    """Check the URL of a service, and cut a trailing slash and ``/v1``: the client adds its own.

    Raises:
        SettingsError: It is no http:// or https:// URL, or it holds a password.
    """
    url = text.rstrip("/").removesuffix("/v1").rstrip("/")
    if "@" in url:
        raise SettingsError(
            "The URL of the service holds a user name or a password, which would reach logs.",
            fix="Put the key into FOUNDRY_API_KEY and leave it out of the URL.",
        )
    try:
        parts = httpx.URL(url)
        usable = parts.scheme in ("http", "https") and parts.host and (parts.port or 80) < 65536
    except (httpx.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise SettingsError(
            f"FOUNDRY_ENDPOINT, or the URL given, is {text!r}: no http:// or https:// URL.",
            fix="Use what `python -m foundry_lab serve` prints: http://127.0.0.1:PORT/…",
        )
    return url
