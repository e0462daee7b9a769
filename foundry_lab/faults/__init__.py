"""Faults on the wire, in front of the real service: what an outage does, whenever you want it.

`kinds` says what can go wrong, `plans` which request meets it, and `proxy` makes it happen.
"""

from foundry_lab.faults.kinds import (
    BrokenJson,
    BrokenSse,
    Cut,
    CutBody,
    Delay,
    Drip,
    ErrorEvent,
    Fault,
    HtmlPage,
    Pace,
    Pass,
    Refuse,
    Reset,
    SplitUtf8,
    Stall,
    Status,
)
from foundry_lab.faults.plans import KINDS, Always, Mix, Script, plan_from
from foundry_lab.faults.proxy import FaultProxy, Seen

__all__ = [
    "KINDS",
    "Always",
    "BrokenJson",
    "BrokenSse",
    "Cut",
    "CutBody",
    "Delay",
    "Drip",
    "ErrorEvent",
    "Fault",
    "FaultProxy",
    "HtmlPage",
    "Mix",
    "Pace",
    "Pass",
    "Refuse",
    "Reset",
    "Script",
    "Seen",
    "SplitUtf8",
    "Stall",
    "Status",
    "plan_from",
]
