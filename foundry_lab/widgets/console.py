"""The fault console: choose what goes wrong in front of the service, while calls go through.

::

    with FaultProxy(service.url) as proxy:
        console = FaultConsole(proxy)
        console                       # in a cell: choose, Tab to Apply, press Enter
    console.kind.value = "Stall"      # the same in code
    console.apply()
    console.update()                  # what Update does: count anew
    print(console.text)               # what the panel shows, where no widget is drawn
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import Field, fields
from inspect import getdoc
from textwrap import shorten
from typing import Any, Literal, get_args, get_origin, get_type_hints

import ipywidgets

from foundry_lab.errors import FoundryLabError
from foundry_lab.faults import KINDS, Always, Fault, FaultProxy, Mix, Pass, Script
from foundry_lab.lesson import aligned
from foundry_lab.widgets.parts import NAMED, WIDE, button, preformatted, table

__all__ = ["FaultConsole"]

LONGEST = 89
"""Characters of a line without its name."""

HEADER = ("fault", "status sent", "ended", "requests")


class FaultConsole:
    """A panel: a fault and its fields, which requests meet it, and what the proxy saw.

    A plan that can't be made is answered with a sentence, and the one before it stays. The table
    counts the last 10,000 requests; it is read anew by *Update*, *Apply* and *No fault*.

    Args:
        proxy: A proxy that runs; its plan may be changed elsewhere, too.
    """

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.error = ""
        """Why the last plan could not be made, and what to do."""
        kinds = [name for name in KINDS if name != Pass.__name__]
        self.kind = ipywidgets.Dropdown(
            options=kinds, value="Status", description="fault", style=NAMED
        )
        self.inputs: dict[str, Any] = {}
        """Field of the fault → its control. An empty one means the default."""
        self.when = ipywidgets.Dropdown(
            options=("always", "share", "once"), description="when", style=NAMED
        )
        self.share = ipywidgets.IntSlider(20, 0, 100, 5, description="share, %", style=NAMED)
        self.start = button("Apply", self.apply)
        self.none = button("No fault", self.no_fault)
        self.refresh = button("Update", self.update)
        self.view = ipywidgets.HTML()
        """The plan and the counts of the last update."""
        self._help, self._fields = ipywidgets.HTML(layout=WIDE), ipywidgets.VBox()
        self.kind.observe(self._choose, "value")
        buttons = ipywidgets.HBox([self.start, self.none, self.refresh])
        choice = [self.kind, self._help, self._fields, self.when, self.share]
        self.panel = ipywidgets.VBox([*choice, buttons, self.view])
        self._choose()
        self.update()

    def apply(self) -> None:
        """Make the plan that is chosen; it holds from the next request on."""
        self._set(self._chosen)

    def no_fault(self) -> None:
        """Let all requests pass."""
        self._set(tuple)

    def update(self) -> None:
        """Count anew what the proxy saw, and show it."""
        shown = preformatted(self._plan())
        rows = self._rows()
        self.view.value = shown + table(HEADER, rows) if rows else shown

    @property
    def text(self) -> str:
        """The plan, an error if there was one, and what the proxy saw until now."""
        rows = self._rows()
        return f"{self._plan()}\n{aligned(HEADER, rows) if rows else 'seen   no request yet'}"

    def _set(self, make: Any) -> None:
        try:
            self.proxy.plan, self.error = make(), ""
        except FoundryLabError as error:
            self.error = str(error)
        self.update()

    def _chosen(self) -> Iterable[Fault]:
        kind = KINDS[self.kind.value]
        values = {each.name: _value(self.inputs[each.name].value, each) for each in fields(kind)}
        fault = kind(**values)
        if self.when.value == "share":
            return Mix({fault: self.share.value / 100})
        return Always(fault) if self.when.value == "always" else Script([fault])

    def _choose(self, _: object = None) -> None:
        kind = KINDS[self.kind.value]
        hints = get_type_hints(kind)
        self.inputs = {each.name: _input(each, hints[each.name]) for each in fields(kind)}
        self._fields.children = tuple(self.inputs.values())
        self._help.value = preformatted((getdoc(kind) or "").replace("`", ""))

    def _plan(self) -> str:
        plan = repr(self.proxy.plan) if self.proxy.plan else "no fault"
        lines = [f"plan   {shorten(plan, LONGEST, placeholder=' …')}"]
        return "\n".join([*lines, *self.error.splitlines()])

    def _rows(self) -> list[tuple[object, ...]]:
        seen = Counter(
            (each.fault, each.status or "no answer", each.outcome or "under way")
            for each in self.proxy.seen
        )
        return [(*what, count) for what, count in seen.items()]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle: dict[str, Any] = self.panel._repr_mimebundle_()
        return bundle | {"text/plain": self.text}


def _input(field: Field[Any], hint: object) -> Any:
    """Make the control for a field: a list where there are few values, else a box."""
    if get_origin(hint) is Literal:
        return ipywidgets.Dropdown(
            options=get_args(hint), value=field.default, description=field.name, style=NAMED
        )
    shown = "" if field.default is None else str(field.default)
    return ipywidgets.Text(shown, description=field.name, placeholder="none", style=NAMED)


def _value(text: str, field: Field[Any]) -> object:
    """Read what stands in a control; the fault itself says if it can't have that."""
    if not text.strip():
        return field.default
    if isinstance(field.default, str):
        return text
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
