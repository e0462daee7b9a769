"""Every error of this package, in one tree.

::

    FoundryLabError
    ├── SettingsError              an environment variable holds what can't be used
    ├── InvalidRequest             refused here, before anything was sent
    ├── ServiceError               the service on this machine
    │   ├── ServiceStartFailed     it did not come up; the message says what is known
    │   ├── PortInUse              another program listens there
    │   ├── InvalidModelFolder     no model in the folder
    │   ├── CatalogModelNotFound   no such model in the catalog, or no catalog within reach
    │   └── DownloadFailed         a catalog model could not be brought here
    └── CallError                  a call over HTTP that brought no whole answer
        ├── ServiceUnreachable     nobody answers at the endpoint
        ├── ConnectionLost         the connection broke before any of the answer was seen
        ├── TokenTimeout           connected, but no token in time
        ├── StreamInterrupted      part of the answer came, the rest did not
        ├── DeadlineExceeded       the time given for the whole operation is over
        ├── BreakerOpen            not sent: the calls before it failed too often
        ├── QueueFull              not sent: too many calls wait already
        ├── InvalidResponse        an answer, but not one this API gives
        └── StatusError            an answer with an error status; ``.status`` holds it
            ├── ModelNotFound      no model of that name; the message offers the nearest
            ├── ModelNotLoaded     known, but not in memory
            ├── ContextTooLong     prompt and max_tokens do not fit into the context
            └── ModelBusy          can't be unloaded while it generates

Each message says what happened and why, then after an arrow what to do next. What a layer raises
itself (`DeadlineExceeded`, `BreakerOpen`, `QueueFull`) is an ``httpx.TransportError`` as well, for
programs that use the layers under an httpx client of their own.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import httpx

__all__ = [
    "BreakerOpen",
    "CallError",
    "CatalogModelNotFound",
    "ConnectionLost",
    "ContextTooLong",
    "DeadlineExceeded",
    "DownloadFailed",
    "FoundryLabError",
    "InvalidModelFolder",
    "InvalidRequest",
    "InvalidResponse",
    "ModelBusy",
    "ModelNotFound",
    "ModelNotLoaded",
    "PortInUse",
    "QueueFull",
    "ServiceError",
    "ServiceStartFailed",
    "ServiceUnreachable",
    "SettingsError",
    "StatusError",
    "StreamInterrupted",
    "TokenTimeout",
    "nearest_names",
]


class FoundryLabError(Exception):
    """The root: ``except FoundryLabError`` catches all that this package raises on purpose.

    Args:
        what: What happened, and why.
        fix: What to do next.
    """

    def __init__(self, what: str, *, fix: str) -> None:
        super().__init__(f"{what}\n→ {fix}")
        self.what = what
        self.fix = fix

    def say(self, what: str) -> None:
        """Say something else happened; the advice stays."""
        self.what, self.args = what, (f"{what}\n→ {self.fix}",)

    def __reduce__(self) -> tuple[Any, ...]:  # copies and process pools rebuild it from here
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[FoundryLabError], args: tuple[str, ...]) -> FoundryLabError:
    return kind.__new__(kind, *args)


class SettingsError(FoundryLabError):
    """An environment variable holds what can't be used."""


class InvalidRequest(FoundryLabError):
    """Refused here, before anything was sent."""


class ServiceError(FoundryLabError):
    """The service on this machine can't do what was asked."""


class ServiceStartFailed(ServiceError):
    """The service did not come up."""


class PortInUse(ServiceError):
    """Another program listens on the port."""


class InvalidModelFolder(ServiceError):
    """The folder holds no model that ONNX Runtime GenAI could load."""


class CatalogModelNotFound(ServiceError):
    """The catalog has no such model, or can't be reached."""


class DownloadFailed(ServiceError):
    """A catalog model could not be brought to this machine."""


class CallError(FoundryLabError):
    """A call over HTTP brought no whole answer."""

    content: str = ""
    """The text that a stream had brought before the error: nothing of an answer is lost. Where
    `complete` tried several times, it is that of the last attempt that brought any."""
    attempts: int = 1
    """How often the request was tried."""


class ServiceUnreachable(CallError):
    """Nobody answers at the endpoint."""


class ConnectionLost(CallError):
    """The connection broke before the caller has seen any of the answer."""


class TokenTimeout(CallError):
    """Connected, but silent: a token did not come in the time given for it."""


class StreamInterrupted(CallError):
    """Part of the answer came and is in ``.content``; ``__cause__`` says why the rest did not."""


class DeadlineExceeded(CallError, httpx.TransportError):
    """The time given for the whole operation is over."""


class BreakerOpen(CallError, httpx.TransportError):
    """Not sent: the calls before it failed too often.

    Args:
        what: What happened, and why.
        fix: What to do next.
        retry_in: Seconds until the breaker lets a probe through.
    """

    def __init__(self, what: str, *, fix: str, retry_in: float) -> None:
        super().__init__(what, fix=fix)
        self.retry_in = retry_in


class QueueFull(CallError, httpx.TransportError):
    """Not sent: too many calls wait already."""


class InvalidResponse(CallError):
    """An answer came, but not one that this API gives."""


class StatusError(CallError):
    """The service answered with an error status.

    Args:
        what: What happened, and why.
        fix: What to do next.
        status: The HTTP status code.
    """

    def __init__(self, what: str, *, fix: str, status: int) -> None:
        super().__init__(what, fix=fix)
        self.status = status


class ModelNotFound(StatusError):
    """The service has no model of that name."""


class ModelNotLoaded(StatusError):
    """The model is known, but not in memory."""


class ContextTooLong(StatusError):
    """Prompt and ``max_tokens`` together do not fit into the model's context."""


class ModelBusy(StatusError):
    """The model can't be unloaded while it generates."""


def nearest_names(wanted: str, known: Iterable[str]) -> str:
    """Say in a sentence which known names are closest to the one that was wanted."""
    names = sorted(set(known))
    nearest = get_close_matches(wanted, names, n=3, cutoff=0.5)
    if nearest:
        return f"Did you mean {' or '.join(nearest)}?"
    return f"There are: {', '.join(names[:10])}{' …' if len(names) > 10 else ''}."
