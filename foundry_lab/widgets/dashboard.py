"""The dashboard: how the service is, and how the calls to it go, in five lines.

It reads what hooks and a monitor have counted, and makes no call of its own.
"""

from html import escape
from textwrap import shorten
from typing import Any

import ipywidgets

from foundry_lab.health import HealthMonitor
from foundry_lab.metrics import Metrics
from foundry_lab.retry import RetryBudget
from foundry_lab.stats import requests_needed
from foundry_lab.widgets.parts import button

__all__ = ["Dashboard"]

LONGEST = 84
"""Characters of a line without its name."""


class Dashboard:
    """A panel: health, calls and their rate, TTFT, breakers, and retries against their budget.

    Clicking the button and `update` do the same. Where no widget can be drawn, `text` stands in its
    place. It is no live region: a screen reader reads it when you go there, not at every update.

    Args:
        metrics: What counts the records of the client.
        monitor: What checks the health.
        budget: What the retries may draw on; the client's default otherwise. Only its ratio and its
            reserve are read.
    """

    def __init__(
        self, metrics: Metrics, monitor: HealthMonitor, *, budget: RetryBudget | None = None
    ) -> None:
        self.metrics = metrics
        self.monitor = monitor
        self.budget = budget or RetryBudget()
        self.refresh = button("Update", self.update)
        self.view = ipywidgets.HTML()
        """What `text` said at the last update."""
        self.panel = ipywidgets.VBox([self.view, self.refresh])
        self.update()

    def update(self) -> None:
        """Read everything anew, and show it."""
        self.view.value = f"<pre>{escape(self.text)}</pre>"

    @property
    def text(self) -> str:
        """What is known now, a line for each subject."""
        lines = {
            "health": self._health(),
            "calls": self._calls(),
            "TTFT": self._ttft(),
            "breaker": self._breakers(),
            "retries": self._retries(),
        }
        return "\n".join(
            f"{name:9}{shorten(words, LONGEST, placeholder=' …')}" for name, words in lines.items()
        )

    def _health(self) -> str:
        found = self.monitor.latest
        if found is None:
            return "not checked yet"
        if found.reason:
            return f"{found.status}: {found.reason}"
        memory = "" if found.memory_usage is None else f", {found.memory_usage:.0f} MB"
        return f"{found.status}, models loaded: {len(found.loaded_models)}{memory}"

    def _calls(self) -> str:
        calls = self.metrics.calls
        if not calls:
            return "none yet"
        outcomes = ", ".join(f"{n} {outcome}" for outcome, n in calls.most_common())
        return f"{calls.total()} ({self.metrics.rate:.1f}/s): {outcomes}"

    def _ttft(self) -> str:
        ttft, wanted = self.metrics.ttft, requests_needed(95)
        if not ttft.n:
            return "none yet"
        # A p95 of few requests is their maximum by another name.
        shares = (0.5, 0.95) if ttft.n >= wanted else (0.5,)
        values = ", ".join(f"p{100 * q:g} {1000 * (ttft.quantile(q) or 0):.3g} ms" for q in shares)
        missing = "" if ttft.n >= wanted else f"; p95 needs {wanted}"
        return f"{values} (n = {ttft.n}{missing})"

    def _breakers(self) -> str:
        breakers = self.metrics.breakers
        if len(breakers) < 2:
            return next(iter(breakers.values()), "closed")
        return ", ".join(f"{state} for {key}" for key, state in sorted(breakers.items()))

    def _retries(self) -> str:
        retries = self.metrics.retries.total()
        ratio, reserve = self.budget.ratio, self.budget.reserve
        refused = self.metrics.given_up["budget"]
        rule = f"a pot of {reserve:g}, plus {ratio:.0%} of {self.metrics.requests} requests"
        return f"{retries} ({rule}), refused by the budget: {refused}"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.panel._repr_mimebundle_()
        return bundle | {"text/plain": self.text}
