"""Helpers behind the workbook *Foundry Local, by hand*: what the lessons built, in finished form.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundry_lab.chat import Completion
    from foundry_lab.client import FoundryAPIClient, Model
    from foundry_lab.doctor import examine
    from foundry_lab.health import Health
    from foundry_lab.lesson import compare, expect, table
    from foundry_lab.plots import strip_plot
    from foundry_lab.service import Service, start_service
    from foundry_lab.settings import Settings

__all__ = [
    "Completion",
    "FoundryAPIClient",
    "Health",
    "Model",
    "Service",
    "Settings",
    "compare",
    "examine",
    "expect",
    "start_service",
    "strip_plot",
    "table",
]

_HOMES = {
    "Completion": "chat",
    "FoundryAPIClient": "client",
    "Health": "health",
    "Model": "client",
    "Service": "service",
    "Settings": "settings",
    "compare": "lesson",
    "examine": "doctor",
    "expect": "lesson",
    "start_service": "service",
    "strip_plot": "plots",
    "table": "lesson",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foundry_lab' has no attribute {name!r}")
    return getattr(import_module(f"foundry_lab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
