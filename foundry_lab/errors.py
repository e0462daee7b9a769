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
    └── CallError                  a call over HTTP that brought no answer
        ├── ServiceUnreachable     nobody answers at the endpoint
        ├── ConnectionLost         the connection broke before the answer was whole
        ├── DeadlineExceeded       the time given for the whole operation is over
        ├── InvalidResponse        an answer, but not one this API gives
        └── StatusError            an answer with an error status; ``.status`` holds it
            ├── ModelNotFound      no model of that name; the message offers the nearest
            ├── ModelNotLoaded     known, but not in memory
            ├── ContextTooLong     prompt and max_tokens do not fit into the context
            └── ModelBusy          can't be unloaded while it generates

Each message says what happened and why, then after an arrow what to do next.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
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
    "ServiceError",
    "ServiceStartFailed",
    "ServiceUnreachable",
    "SettingsError",
    "StatusError",
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
    """A call over HTTP brought no usable answer."""


class ServiceUnreachable(CallError):
    """Nobody answers at the endpoint."""


class ConnectionLost(CallError):
    """The connection broke before the answer was whole."""


class DeadlineExceeded(CallError):
    """The time given for the whole operation is over."""


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
