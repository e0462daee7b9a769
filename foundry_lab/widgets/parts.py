"""What the panels share: a button, a table that a screen reader reads, a picture with its words."""

from base64 import b64encode
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import ipywidgets

from foundry_lab.figures import Plot

__all__ = ["NAMED", "WIDE", "button", "picture", "preformatted", "table"]

WIDE = {"width": "640px", "max_width": "100%"}
"""As wide as a figure."""

NAMED = {"description_width": "140px"}
"""The style of controls whose names would be cut short otherwise."""

SMALL = 'style="line-height: 1.4; border-spacing: 1em 0; text-align: right"'
"""A widget's own line height would make a table longer than a screen."""


def button(name: str, action: Callable[[], object]) -> Any:
    """Make a button; ``.click()`` in a program does what a click does."""
    made = ipywidgets.Button(description=name)
    made.on_click(lambda _: action())
    return made


def preformatted(text: str) -> str:
    """Write text as HTML that keeps its lines, and breaks those that are too long."""
    return f'<pre style="white-space: pre-wrap; word-break: normal">{escape(text)}</pre>'


def picture(plot: Plot) -> str:
    """Write a figure as HTML, with its alt text."""
    data, _ = plot._repr_mimebundle_()
    source = b64encode(data["image/png"]).decode()
    return f'<img alt="{escape(plot.alt)}" width="640" src="data:image/png;base64,{source}">'


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Write a table as HTML, its columns named for a screen reader."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    lines = ("".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<table {SMALL}><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
