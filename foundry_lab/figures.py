"""What every figure has in common: words and numbers beside the picture, colours, axes, labels."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from foundry_lab.errors import InvalidRequest
from foundry_lab.lesson import WIDTH, table
from foundry_lab.stats import Floats, finite, percentile, requests_needed

__all__ = [
    "HATCHES",
    "PALETTE",
    "Line",
    "Plot",
    "Series",
    "legend",
    "log_scale",
    "mark",
    "medians",
    "new_figure",
    "number",
    "percentile_cell",
    "percentile_or_nan",
    "row_figure",
    "spread_table",
    "styled",
]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart with every kind of colour vision."""
MARKERS = ("o", "^", "s", "D", "v", "P", "X")
LINES = ("-", "--", "-.")
HATCHES = ("", "////", "....", "xxxx", "----")

Series = Mapping[str, Sequence[float] | Floats]
"""Name → values, all in one unit."""


@dataclass(frozen=True)
class Plot:
    """A figure for a notebook; a cell that ends with it shows it."""

    figure: Figure
    alt: str
    """What the figure shows, in words."""
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def table(self) -> None:
        """Print the figure's words and its numbers: JupyterLab shows no alt text of a picture."""
        print(fill(self.alt, WIDTH))
        table(self.header, self.rows)

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        png = io.BytesIO()
        self.figure.savefig(png, format="png", dpi=150, facecolor="white")
        return (
            {"image/png": png.getvalue(), "text/plain": self.alt},
            {"image/png": {"alt": self.alt, "width": 640}},
        )


class Line(NamedTuple):
    """One series and its look: told from the others by more than its colour."""

    name: str
    values: Floats
    """In ascending order."""
    color: str
    marker: str
    style: str

    @property
    def label(self) -> str:
        """The name, and how many values stand behind it."""
        return f"{self.name}\nn = {len(self.values)}"

    @property
    def median(self) -> float:
        """The value in the middle."""
        return float(np.median(self.values))


def styled(series: Series) -> list[Line]:
    """Order the values of every series, and give it its colour, marker and line style.

    Raises:
        InvalidRequest: There is no series, one is empty, or a value is not finite.
    """
    if not series:
        raise InvalidRequest("There is nothing to draw.", fix="Give at least one series.")
    looks = zip(cycle(PALETTE), cycle(MARKERS), cycle(LINES), strict=False)
    named = [(name, finite(values)) for name, values in series.items()]
    return [Line(*one, *look) for one, look in zip(named, looks, strict=False)]


def spread_table(
    lines: Sequence[Line], unit: str, first: str = ""
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return the table of some series: how many values, minimum, median, maximum."""
    header = (first, "n", f"min {unit}", f"median {unit}", f"max {unit}")
    rows = tuple(
        (
            line.name,
            str(len(line.values)),
            *map(number, (line.values[0], line.median, line.values[-1])),
        )
        for line in lines
    )
    return header, rows


def number(value: float) -> str:
    """Write a measured value as the tables do."""
    return f"{value:.2f}" if abs(value) >= 0.1 or not value else f"{value:.2g}"


def percentile_cell(values: Floats, q: float) -> str:
    """Write a percentile, or how many values it takes."""
    value = percentile_or_nan(values, q)
    return f"needs n = {requests_needed(q):,}" if math.isnan(value) else number(value)


def percentile_or_nan(values: Floats, q: float) -> float:
    """Return a percentile; nan, which no figure draws, where there are too few values for it."""
    return percentile(values, q).value if len(values) >= requests_needed(q) else math.nan


def new_figure(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """Make a figure as wide as a notebook's output, with its title and what its axes measure."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(fill(title, 70), loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(which="both", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def row_figure(title: str, x: str, names: Sequence[str], inches: float) -> tuple[Figure, Axes]:
    """Make a figure with one named row for each thing, from the top down, so many inches high."""
    figure, axes = new_figure(title, x, "")
    figure.set_figheight(1.3 + inches * len(names))
    axes.set_yticks(range(len(names)), [_wrapped(name, 24) for name in names], parse_math=False)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, which="both", axis="y")
    axes.spines["left"].set_visible(False)
    return figure, axes


def log_scale(axes: Axes, name: Literal["x", "y"], lines: Sequence[Line]) -> None:
    """Count in 1, 2, 5, 10 on that axis and say so; stay linear if this would hide a value."""
    if min(line.values[0] for line in lines) <= 0:
        return
    axes.set(**{f"{name}scale": "log"})
    axis = axes.xaxis if name == "x" else axes.yaxis
    axis.set_label_text(f"{axis.get_label_text()}, log scale")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def mark(axes: Axes, x: float, y: float, line: Line) -> None:
    """Put the marker of a series somewhere; in the legend it stands on the line."""
    axes.plot(x, y, line.marker, c=line.color, ls=line.style, label=line.label)


def legend(axes: Axes) -> None:
    """Name what is drawn, each look once, under the figure: there it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip([_wrapped(label, 60) for label in labels], handles, strict=True))
    widest = max(len(line) for label in once for line in label.splitlines())
    assert isinstance(axes.figure, Figure)
    box = axes.figure.legend(
        once.values(),
        once.keys(),
        loc="outside lower center",
        ncols=max(1, min(4, 75 // (8 + widest))),
        fontsize=9,
        frameon=False,
    )
    for text in box.get_texts():
        text.set_parse_math(False)


def _wrapped(label: str, width: int) -> str:
    return "\n".join(fill(line, width) for line in label.splitlines())


def medians(lines: Sequence[Line], unit: str) -> str:
    """Say the median of every series in words."""
    return "; ".join(f"{line.name}: median {number(line.median)} {unit}" for line in lines)
