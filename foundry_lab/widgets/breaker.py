"""The breaker panel: a service that fails as often as you say, and a breaker in front of it.

Both are simulated in virtual time, so a wait costs nothing and the same clicks show the same again.
"""

import random
from collections import deque
from html import escape
from typing import Any

import ipywidgets

from foundry_lab.breaker import Breaker, BreakerPolicy
from foundry_lab.clock import VirtualClock
from foundry_lab.records import Record
from foundry_lab.widgets.parts import button

__all__ = ["BreakerPanel"]

CALL_SECONDS = 0.1
"""Virtual seconds from one call to the next."""

SHOWN = 60
"""Calls that are drawn: the last ones."""


class BreakerPanel:
    """A panel: set how often the service fails, make calls, let time pass, and watch the breaker.

    Clicking a button and calling it, as in ``panel.twenty.click()``, do the same. Where no widget
    can be drawn, `text` stands in its place.

    Args:
        policy: When the breaker opens and closes; `BreakerPolicy`'s defaults otherwise.
        seed: Of the random generator: the same seed makes the same failures.
    """

    def __init__(self, policy: BreakerPolicy | None = None, *, seed: int = 0) -> None:
        self.policy = policy or BreakerPolicy()
        self.seed = seed
        self.fails = ipywidgets.IntSlider(20, 0, 100, 10, description="fails, %")
        """The share of the calls that the service fails."""
        self.one = button("1 call", lambda: self.call(1))
        self.twenty = button("20 calls", lambda: self.call(20))
        self.second = button("Wait 1 s", lambda: self.wait(1.0))
        self.again = button("Start again", self.start_again)
        self.view = ipywidgets.HTML()
        """What `text` says."""
        buttons = ipywidgets.HBox([self.one, self.twenty, self.second, self.again])
        self.panel = ipywidgets.VBox([self.fails, buttons, self.view])
        self.start_again()

    def start_again(self) -> None:
        """Forget all calls; time begins at zero again. The share stays."""
        self.clock = VirtualClock()
        self.breaker = Breaker(self.policy, hook=self._forget_window)
        self._rng = random.Random(self.seed)  # noqa: S311 - nothing secret
        self._drawn = deque[str](maxlen=SHOWN)
        self._probes_left = self.policy.probes
        self._window = deque[tuple[float, bool]]()  # when a call ended, whether it failed
        self._sent = self._refused = 0
        self._show()

    def call(self, times: int) -> None:
        """Make calls, ten in a second."""
        for _ in range(times):
            self._drawn.append(self._call_once())
            self.clock.advance(CALL_SECONDS)
        self._show()

    def wait(self, seconds: float) -> None:
        """Let time pass without a call."""
        self.clock.advance(seconds)
        self._show()

    @property
    def text(self) -> str:
        """The state, the window, the last calls, what their marks mean, and all counts."""
        sent, refused = self._sent, self._refused
        lines = {
            "state": f"{self.breaker.state} after {self.clock.now():.1f} s: {self._meaning()}",
            "window": self._window_words(),
            "calls": "".join(self._drawn) or "none",
            "": "(+ success, x failure, · not sent)",
            "in all": f"{sent} sent, {refused} not sent",
        }
        return "\n".join(f"{name:7} {words}" for name, words in lines.items())

    def _call_once(self) -> str:
        now = self.clock.now()
        if (permit := self.breaker.admit(now)) is None:
            self._refused += 1
            return "·"
        failed = self._rng.random() < self.fails.value / 100
        self._sent += 1
        self._window.append((now, failed))
        self._probes_left -= not failed
        self.breaker.settle(permit, "failure" if failed else "success", now)
        return "x" if failed else "+"

    def _forget_window(self, _: Record) -> None:
        """Each state begins with an empty window, as in the breaker."""
        self._window.clear()
        self._probes_left = self.policy.probes

    def _meaning(self) -> str:
        if self.breaker.state == "closed":
            return "calls pass"
        if self.breaker.state == "half-open":
            return f"{self._probes_left} more must succeed, and one failure opens it again"
        seconds = self.breaker.retry_in(self.clock.now())
        return f"the next call may pass in {seconds:.1f} s" if seconds else "the next call may pass"

    def _window_words(self) -> str:
        if self.breaker.state != "closed":
            return "counts again once it is closed"
        begin = self.clock.now() - self.policy.window
        recent = [failed for ended, failed in self._window if ended > begin]
        share = f" ({sum(recent) / len(recent):.0%})" if recent else ""
        rule = f"opens at {self.policy.failure_ratio:.0%} of {self.policy.minimum_throughput}"
        return f"{sum(recent)} of {len(recent)} calls failed{share}; {rule} or more"

    def _show(self) -> None:
        self.view.value = f"<pre>{escape(self.text)}</pre>"

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.panel._repr_mimebundle_()
        return bundle | {"text/plain": self.text}
