"""The load explorer: put load on a service, and see what its latencies can tell.

::

    explorer = LoadExplorer(lambda: client.stream_complete("What is jitter?", max_tokens=8))
    explorer                       # in a cell: set the sliders, Tab to Run, press Enter
    explorer.users.value = 8       # the same in code
    await explorer.run()
    print(explorer.text)           # what the panel shows, where no widget is drawn
"""

import asyncio
from textwrap import fill
from typing import Any

import ipywidgets

from foundry_lab.errors import InvalidRequest
from foundry_lab.latency import Call, closed_loop, open_loop
from foundry_lab.lesson import WIDTH, aligned
from foundry_lab.plots import Plot, ecdf_plot, percentile_plot
from foundry_lab.samples import Samples
from foundry_lab.stats import Floats, percentile
from foundry_lab.widgets.parts import WIDE, button, picture, preformatted, table

__all__ = ["LoadExplorer"]

FIGURES = {"ECDF": ecdf_plot, "percentiles": percentile_plot}
MOST = 6
"""Runs that are shown: so many colours can be told apart."""


class LoadExplorer:
    """A panel: a closed loop of users or an open loop at a rate, and the latencies of its answers.

    Each run stays beside those before it, until *Clear*; another one with the same load takes its
    place. A percentile that a run is too short for is refused, with the number of requests it
    takes. *Stop* ends a run, and what was recorded is shown.

    Args:
        call: Makes one request; see `foundry_lab.latency.Call`.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.runs: dict[str, Samples] = {}
        """Load → what was recorded under it."""
        self.plot: Plot | None = None
        """The figure; None while there is no answer to draw."""
        self.task: asyncio.Task[None] | None = None
        """What Run started last."""
        self.loop = ipywidgets.Dropdown(options=("closed", "open"), description="loop")
        self.users = _slider("users", 2, 1, 16)
        self.rate = _slider("rate, 1/s", 20, 1, 200)
        self.requests = _slider("requests", 60, 10, 1000, 10)
        self.figure = ipywidgets.Dropdown(options=tuple(FIGURES), description="figure")
        self.q = ipywidgets.Dropdown(
            options=[(f"p{q:g}", q) for q in (50, 90, 95, 99, 99.9)], value=95, description="tail"
        )
        self.start = button("Run", self._begin)
        self.stop = button("Stop", lambda: self.task and self.task.cancel())
        self.clear = button("Clear", self.forget)
        self.view = ipywidgets.HTML()
        """The runs, what their tails are worth, the figure and its table."""
        self._state = "not run yet"
        for control in (self.figure, self.q):
            control.observe(self._draw, "value")
        controls = [self.loop, self.users, self.rate, self.requests, self.figure, self.q]
        buttons = ipywidgets.HBox([self.start, self.stop, self.clear])
        self.panel = ipywidgets.VBox([*controls, buttons, self.view])
        self._draw()

    async def run(self) -> None:
        """Put on the load that is set; cancelled, it shows what was recorded until then."""
        requests, users, closed = self.requests.value, self.users.value, self.loop.value == "closed"
        of_users = "1 user" if users == 1 else f"{users} users"
        name = of_users if closed else f"{self.rate.value} per second"
        self._state, runs = f"running: {name}, {requests} requests", self.runs
        self._draw()
        if closed:
            run = await closed_loop(self.call, users=users, requests=requests)
        else:
            run = await open_loop(self.call, rate=self.rate.value, requests=requests)
        if self.runs is not runs:  # cleared meanwhile
            return
        self.runs.pop(name, None)
        self.runs = dict([*self.runs.items(), (name, run)][-MOST:])
        self._state = f"last run: {name}"
        self._draw()

    def forget(self) -> None:
        """Stop what is under way, and begin with an empty figure."""
        if self.task:
            self.task.cancel()
        self.runs, self._state = {}, "not run yet"
        self._draw()

    @property
    def text(self) -> str:
        """The runs, what their tails are worth, and the table of the figure."""
        shown = [aligned(self.plot.header, self.plot.rows)] if self.plot else []
        return "\n".join([self._words(), *shown])

    def _begin(self) -> None:
        # Not disabled meanwhile: a button that is loses the keyboard's focus.
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self.run())

    def _draw(self, _: object = None) -> None:
        answered = {name: _milliseconds(run) for name, run in self.runs.items() if run.successes}
        draw = FIGURES[self.figure.value]
        title = "Latency of the answers"
        self.plot = draw(answered, title=title, unit="ms") if answered else None
        shown = picture(self.plot) + table(self.plot.header, self.plot.rows) if self.plot else ""
        self.view.value = preformatted(self._words()) + shown

    def _words(self) -> str:
        lines = [self._state]
        for name, run in self.runs.items():
            lines.append(f"{name}: {run!r}, {run.throughput:.1f} answers/s")
            lines += self._tail(run).splitlines()
        return "\n".join(fill(line, WIDTH, subsequent_indent="  ") for line in lines)

    def _tail(self, run: Samples) -> str:
        try:
            return f"ms: {percentile(_milliseconds(run), self.q.value)}"
        except InvalidRequest as refusal:
            return str(refusal)

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.panel._repr_mimebundle_()
        return bundle | {"text/plain": self.text}


def _milliseconds(run: Samples) -> Floats:
    return 1000 * run.successes.column("latency")


def _slider(name: str, value: int, least: int, most: int, step: int = 1) -> Any:
    return ipywidgets.IntSlider(value, least, most, step, description=name, layout=WIDE)
