"""The backoff explorer: turn the knobs of a retry policy, and see the waits that it makes."""

import random
from html import escape
from itertools import accumulate, islice
from typing import Any, get_args

import ipywidgets

from foundry_lab.errors import InvalidRequest
from foundry_lab.figures import PALETTE, Plot, legend, new_figure, number
from foundry_lab.retry import Jitter, RetryPolicy, backoff_delays
from foundry_lab.widgets.parts import picture, table

__all__ = ["BackoffExplorer", "backoff_plot"]

BASES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
CAPS = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)

Range = tuple[float, float]
"""The least and the most that a wait can be, in seconds."""


def backoff_plot(policy: RetryPolicy, seed: int) -> Plot:
    """Show the waits of one call that never succeeds, and the range that each was drawn from.

    Args:
        policy: How often and how long.
        seed: Of the random generator: the same seed makes the same waits.

    Raises:
        InvalidRequest: One attempt has no waits.
    """
    waits = list(islice(policy.delays(random.Random(seed)), policy.attempts - 1))  # noqa: S311
    if not waits:
        raise InvalidRequest("One attempt has nothing to wait for.", fix="Allow two or more.")
    lows, highs = zip(*_ranges(policy, waits), strict=True)
    numbers, waited = range(2, policy.attempts + 1), list(accumulate(waits))
    rule = f"base {policy.base:g} s, cap {policy.cap:g} s, jitter {policy.jitter}, seed {seed}"
    figure, axes = new_figure(f"Backoff: {rule}, n = {len(waits)}", "before attempt", "seconds")
    axes.vlines(numbers, lows, highs, color=PALETTE[5], linewidth=9, label="drawn from")
    axes.plot(numbers, waits, "o", color=PALETTE[1], label="wait")
    axes.set_xticks(numbers)
    axes.set_ylim(bottom=0)
    legend(axes)
    columns = (map(str, numbers), *(map(number, each) for each in (lows, highs, waits, waited)))
    total = f"{len(waits)} waits, {number(waited[-1])} s in all"
    return Plot(
        figure,
        f"Waits before each attempt. Backoff with {rule}: {total}.",
        ("before attempt", "at least s", "at most s", "wait s", "waited so far s"),
        tuple(zip(*columns, strict=True)),
    )


def _ranges(policy: RetryPolicy, waits: list[float]) -> list[Range]:
    if policy.jitter == "decorrelated":
        previous = [policy.base, *waits[:-1]]
        return [(policy.base, min(policy.cap, 3 * wait)) for wait in previous]
    expos = islice(backoff_delays(policy.base, policy.cap, "none"), len(waits))
    least = {"none": 1.0, "full": 0.0, "equal": 0.5}[policy.jitter]
    return [(least * expo, expo) for expo in expos]


class BackoffExplorer:
    """A panel: the knobs of a backoff, and what comes of them.

    Moving a control and setting it, as in ``explorer.cap.value = 1.0``, do the same. Where no
    widget can be drawn, the picture stands in its place.
    """

    def __init__(self) -> None:
        self.base = _choice("base", 0.1, BASES)
        self.cap = _choice("cap", 5.0, CAPS)
        self.attempts = ipywidgets.IntSlider(8, 2, 12, description="attempts")
        self.jitter = ipywidgets.Dropdown(options=get_args(Jitter), description="jitter")
        self.seed = ipywidgets.BoundedIntText(1, 0, 9999, description="seed")
        self.view = ipywidgets.HTML()
        """The picture and its numbers, or why there are none."""
        self.plot: Plot | None = None
        """What is shown; None while base and cap make no policy."""
        controls = [self.base, self.cap, self.attempts, self.jitter, self.seed]
        for control in controls:
            control.observe(self._show, "value")
        self.panel = ipywidgets.VBox([*controls, self.view])
        self._show()

    def _show(self, _: object = None) -> None:
        try:
            policy = RetryPolicy(
                self.attempts.value, self.base.value, self.cap.value, self.jitter.value
            )
            self.plot = backoff_plot(policy, self.seed.value)
            self.view.value = picture(self.plot) + table(self.plot.header, self.plot.rows)
        except InvalidRequest as error:
            self.plot, self.view.value = None, f"<p>{escape(str(error))}</p>"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = self.plot._repr_mimebundle_() if self.plot else ({"text/plain": "no policy"}, {})
        return self.panel._repr_mimebundle_() | shown[0], shown[1]


def _choice(name: str, value: float, options: tuple[float, ...]) -> Any:
    """Make a slider over round numbers; the arrow keys go from one to the next."""
    labels = [(f"{option:g} s", option) for option in options]
    return ipywidgets.SelectionSlider(options=labels, value=value, description=name)
