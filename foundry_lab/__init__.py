"""Helpers behind the workbook *Foundry Local, by hand*: what the lessons built, in finished form.

Names are loaded when they are first used, so that importing the package costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundry_lab.breaker import Breaker, BreakerPolicy, BreakerTransport
    from foundry_lab.chat import Chunk, Completion
    from foundry_lab.chunks import ChunkDecoder
    from foundry_lab.client import FoundryAPIClient, Model, resilient
    from foundry_lab.clock import VirtualClock
    from foundry_lab.doctor import examine
    from foundry_lab.faults import FaultProxy
    from foundry_lab.health import Health
    from foundry_lab.lesson import compare, expect, table
    from foundry_lab.limits import ConcurrencyLimit, DeadlineTransport, TokenTimeouts
    from foundry_lab.plots import strip_plot
    from foundry_lab.retry import RetryBudget, RetryPolicy, RetryTransport, backoff_delays
    from foundry_lab.service import Service, start_service
    from foundry_lab.settings import Settings
    from foundry_lab.sse import Decoder
    from foundry_lab.wire import QuickAckTransport

__all__ = [
    "Breaker",
    "BreakerPolicy",
    "BreakerTransport",
    "Chunk",
    "ChunkDecoder",
    "Completion",
    "ConcurrencyLimit",
    "DeadlineTransport",
    "Decoder",
    "FaultProxy",
    "FoundryAPIClient",
    "Health",
    "Model",
    "QuickAckTransport",
    "RetryBudget",
    "RetryPolicy",
    "RetryTransport",
    "Service",
    "Settings",
    "TokenTimeouts",
    "VirtualClock",
    "backoff_delays",
    "compare",
    "examine",
    "expect",
    "resilient",
    "start_service",
    "strip_plot",
    "table",
]

_HOMES = {
    "Breaker": "breaker",
    "BreakerPolicy": "breaker",
    "BreakerTransport": "breaker",
    "Chunk": "chat",
    "ChunkDecoder": "chunks",
    "Completion": "chat",
    "ConcurrencyLimit": "limits",
    "DeadlineTransport": "limits",
    "Decoder": "sse",
    "FaultProxy": "faults",
    "FoundryAPIClient": "client",
    "Health": "health",
    "Model": "client",
    "QuickAckTransport": "wire",
    "RetryBudget": "retry",
    "RetryPolicy": "retry",
    "RetryTransport": "retry",
    "Service": "service",
    "Settings": "settings",
    "TokenTimeouts": "limits",
    "VirtualClock": "clock",
    "backoff_delays": "retry",
    "compare": "lesson",
    "examine": "doctor",
    "expect": "lesson",
    "resilient": "client",
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
