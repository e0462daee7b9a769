"""The fault console: what is chosen happens on the wire, and the table is what the proxy saw."""

from collections.abc import Iterator
from itertools import islice

import httpx
import pytest

from foundry_lab import FaultProxy, Service
from foundry_lab.faults import KINDS, Always, CutBody, Mix, Reset, Script, Stall, Status
from foundry_lab.widgets.console import FaultConsole


@pytest.fixture
def console(service: Service) -> Iterator[FaultConsole]:
    """Make a console for a proxy that runs, without a fault."""
    with FaultProxy(service.url) as proxy:
        yield FaultConsole(proxy)


def statuses(console: FaultConsole, times: int) -> list[int]:
    """Ask through the proxy; return what is answered."""
    url = f"{console.proxy.url}/models/loaded"
    return [httpx.get(url).status_code for _ in range(times)]


def test_always_holds_from_the_next_request_until_no_fault(console: FaultConsole) -> None:
    """Apply changes a proxy that runs, and so does No fault."""
    assert statuses(console, 1) == [200]
    console.start.click()
    assert statuses(console, 2) == [503, 503]
    console.none.click()
    assert statuses(console, 1) == [200]
    assert console.text.startswith("plan   no fault\n")


def test_once_is_the_next_request_only(console: FaultConsole) -> None:
    """One request meets it, the others pass; a second Apply means once more."""
    console.when.value = "once"
    console.inputs["code"].value = "429"
    console.start.click()
    assert statuses(console, 3) == [429, 200, 200]
    console.start.click()
    assert statuses(console, 2) == [429, 200]


def test_a_share_is_the_mix_of_that_share(console: FaultConsole) -> None:
    """Which requests meet it is drawn as in a `Mix`."""
    console.when.value, console.share.value = "share", 50
    console.start.click()
    assert console.proxy.plan == Mix({Status(503): 0.5})
    faults = islice(console.proxy.plan, 12)
    drawn = [503 if fault == Status() else 200 for fault in faults]
    assert statuses(console, 12) == drawn
    assert set(drawn) == {503, 200}


@pytest.mark.parametrize("name", [name for name in KINDS if name != "Pass"])
def test_every_fault_can_be_chosen_with_its_defaults(console: FaultConsole, name: str) -> None:
    """Its fields have controls with names, and untouched they make the fault's own defaults."""
    console.kind.value = name
    assert all(control.description == field for field, control in console.inputs.items())
    console.start.click()
    assert console.error == ""
    assert console.proxy.plan == Always(KINDS[name]())


def test_fields_are_read_as_what_they_are(console: FaultConsole) -> None:
    """Numbers are numbers, a text stays one even of digits, an empty control is the default."""
    console.inputs["retry_after"].value = "0.5"
    console.inputs["message"].value = "17"
    console.start.click()
    assert console.proxy.plan == Always(Status(503, retry_after=0.5, message="17"))
    console.kind.value = "Stall"
    console.inputs["after_events"].value = "3"
    console.start.click()
    assert console.proxy.plan == Always(Stall(after_events=3))
    console.inputs["after_events"].value = " "
    console.start.click()
    assert console.proxy.plan == Always(Stall())
    console.kind.value = "CutBody"
    console.inputs["how"].value = "end"
    console.start.click()
    assert console.proxy.plan == Always(CutBody(how="end"))


def test_what_cant_be_is_a_sentence_and_the_plan_stays(console: FaultConsole) -> None:
    """A wrong field, and a share of Refuse, are said with what to do; the next Apply forgets it."""
    console.start.click()
    console.inputs["code"].value = "teapot"
    console.start.click()
    assert "Status can't have code='teapot'" in console.text
    assert "→ help(Status)" in console.view.value
    assert console.proxy.plan == Always(Status())
    console.kind.value, console.when.value = "Refuse", "share"
    console.start.click()
    assert "can't be mixed" in console.text
    console.none.click()
    assert console.error == ""
    assert not console.proxy.plan


def test_the_table_counts_what_the_proxy_saw(console: FaultConsole) -> None:
    """Requests by fault, status and end; what came after the last update shows with the next."""
    assert console.text == "plan   no fault\nseen   no request yet"
    statuses(console, 2)
    before = console.view.value
    console.start.click()
    statuses(console, 3)
    console.kind.value = "Reset"
    console.start.click()
    with pytest.raises(httpx.ReadError):
        statuses(console, 1)
    assert "<td>Reset</td>" not in console.view.value
    console.refresh.click()
    assert console.view.value != before
    rows = [line.split() for line in console.text.splitlines()[3:]]
    assert rows == [
        ["Pass", "200", "whole", "2"],
        ["Status", "503", "whole", "3"],
        ["Reset", "no", "answer", "cut", "1"],
    ]
    assert "<td>Reset</td><td>no answer</td><td>cut</td><td>1</td>" in console.view.value


def test_a_plan_made_elsewhere_is_shown(console: FaultConsole) -> None:
    """The console says what the proxy does, whoever said so; a long plan is cut."""
    console.proxy.plan = Script([Reset()] * 20)
    console.update()
    assert console.text.startswith("plan   Script(faults=[Reset(after='request'), ")
    assert "Script(faults=" in console.view.value
    assert max(map(len, console.text.splitlines())) <= 96


def test_it_says_what_a_fault_is(console: FaultConsole) -> None:
    """The words of the fault's own documentation stand under its name."""
    console.kind.value = "Stall"
    help_text = console.panel.children[1].value
    assert "Silence for ever" in help_text
    assert "httpx.ReadTimeout" in help_text


def test_it_shows_a_widget_and_the_same_in_words(console: FaultConsole) -> None:
    """Where no widget can be drawn the text is there; what is typed is not markup."""
    console.inputs["code"].value = "<b>"
    console.start.click()
    assert "<b>" not in console.view.value
    bundle = console._repr_mimebundle_()
    assert bundle["text/plain"] == console.text
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_every_control_has_a_name(console: FaultConsole) -> None:
    """A screen reader and a keyboard reach each control by its words."""
    controls = [console.kind, console.when, console.share, *console.inputs.values()]
    for control in [*controls, console.start, console.none, console.refresh]:
        assert control.description
        assert not control.disabled
