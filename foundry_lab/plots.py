"""Figures that say what they show: title, unit, n, alt text, and their numbers as a table."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from foundry_lab.lesson import WIDTH, table

__all__ = ["Plot", "strip_plot"]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's colours, told apart with every kind of colour vision."""
MARKERS = ("o", "^", "s", "D", "v", "P")


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


def strip_plot(samples: Mapping[str, Sequence[float]], *, title: str, unit: str) -> Plot:
    """Show every sample as a dot, one row a series, with a bar at the median; log scale.

    Args:
        samples: Series name → positive values.
        title: What is compared.
        unit: The values' unit, such as ``ms``.
    """
    figure = Figure(figsize=(6.4, 1.3 + 0.55 * len(samples)), layout="constrained")
    axes = figure.subplots()
    for row, (values, color, marker) in enumerate(
        zip(samples.values(), PALETTE, MARKERS, strict=False)
    ):
        axes.scatter(values, [row] * len(values), color=color, marker=marker, alpha=0.5, s=28)
        axes.plot([median(values)] * 2, [row - 0.3, row + 0.3], color="black", linewidth=2)
    axes.set_title(f"{title} (bar: median)", loc="left", fontsize=11)
    names = [f"{name}\nn = {len(values)}" for name, values in samples.items()]
    axes.set_yticks(range(len(samples)), names)
    axes.set_ylim(len(samples) - 0.5, -0.5)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(f"{unit}, log scale")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)
    rows = tuple(
        (
            name,
            str(len(values)),
            *(f"{value:.2f}" for value in (min(values), median(values), max(values))),
        )
        for name, values in samples.items()
    )
    medians = "; ".join(f"{row[0]}: median {row[3]} {unit}" for row in rows)
    return Plot(
        figure,
        f"Strip plot. {title}. {medians}.",
        ("", "n", f"min {unit}", f"median {unit}", f"max {unit}"),
        rows,
    )
