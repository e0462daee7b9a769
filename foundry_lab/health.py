"""Is the service well? One record that says so, and why not."""

from dataclasses import dataclass
from typing import Literal

import psutil

__all__ = ["Health", "memory_of"]


@dataclass(frozen=True)
class Health:
    """What one check found."""

    status: Literal["ok", "degraded", "down"]
    """``ok``: it can answer a chat. ``degraded``: it runs, but no model is loaded. ``down``: it
    gave no answer, or not one that Foundry Local gives."""
    reason: str
    """Why it is not ok; empty when it is."""
    loaded_models: list[str]
    """Ids of the models in memory."""
    memory_usage: float | None
    """Megabytes (10⁶ bytes) that the service's process holds in memory; None when not known."""


def memory_of(pid: int) -> float | None:
    """Return the resident memory of a process on this machine in megabytes, None if it is gone."""
    try:
        resident: int = psutil.Process(pid).memory_info().rss
        return round(resident / 1e6, 1)
    except (psutil.Error, ValueError):
        return None
