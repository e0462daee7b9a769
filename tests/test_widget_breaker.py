"""The breaker panel: its buttons drive the real state machine, and its text says what it does."""

from foundry_lab.breaker import BreakerPolicy
from foundry_lab.widgets.breaker import BreakerPanel

POLICY = BreakerPolicy(minimum_throughput=10, window=3.0, break_duration=5.0, probes=2)


def line(panel: BreakerPanel, name: str) -> str:
    """Return what the text says after a name."""
    found = next(line for line in panel.text.splitlines() if line.startswith(name))
    return found.removeprefix(name).strip()


def test_a_service_that_never_fails_keeps_it_closed() -> None:
    """At 0 % every call is sent, and the window counts no failure."""
    panel = BreakerPanel(POLICY)
    panel.fails.value = 0
    panel.twenty.click()
    assert panel.breaker.state == "closed"
    assert line(panel, "calls") == "+" * 20
    assert line(panel, "window").startswith("0 of 20 calls failed (0%)")
    assert line(panel, "in all") == "20 sent, 0 not sent"


def test_it_opens_at_the_minimum_throughput() -> None:
    """At 100 % ten calls fail, not one more: the other ten are not sent."""
    panel = BreakerPanel(POLICY)
    panel.fails.value = 100
    panel.twenty.click()
    assert line(panel, "calls") == "x" * 10 + "·" * 10
    assert line(panel, "in all") == "10 sent, 10 not sent"
    assert line(panel, "state") == "open after 2.0 s: the next call may pass in 3.9 s"


def test_it_comes_back_by_probes() -> None:
    """After the break duration two good calls close it, and the window begins anew."""
    panel = BreakerPanel(POLICY)
    panel.fails.value = 100
    panel.twenty.click()
    panel.fails.value = 0
    for _ in range(4):
        panel.second.click()
    assert line(panel, "state") == "open after 6.0 s: the next call may pass"
    panel.one.click()
    assert line(panel, "state").startswith("half-open ")
    assert line(panel, "state").endswith("1 more must succeed, and one failure opens it again")
    panel.one.click()
    assert line(panel, "state").startswith("closed ")
    assert line(panel, "window").startswith("0 of 0 calls failed;")


def test_the_window_forgets() -> None:
    """A failure counts for as long as the policy says, in the panel as in the breaker."""
    panel = BreakerPanel(POLICY)
    panel.fails.value = 100
    panel.call(9)
    assert line(panel, "window").startswith("9 of 9 calls failed (100%)")
    panel.wait(2.5)
    assert line(panel, "window").startswith("5 of 5")
    panel.wait(1.0)
    panel.one.click()
    assert line(panel, "window").startswith("1 of 1")
    assert panel.breaker.state == "closed"


def test_starting_again_gives_the_same_again() -> None:
    """The failures come from the seed: another seed makes others, the same one the same."""
    panel, other = BreakerPanel(POLICY, seed=1), BreakerPanel(POLICY, seed=2)
    panel.call(9)
    first = panel.text
    panel.again.click()
    assert line(panel, "in all") == "0 sent, 0 not sent"
    panel.call(9)
    other.call(9)
    assert panel.text == first != other.text


def test_it_shows_a_widget_and_the_same_in_words() -> None:
    """Where no widget can be drawn the text is there, and the widget holds the same text."""
    panel = BreakerPanel()
    for _ in range(5):
        panel.twenty.click()
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == panel.text
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert panel.view.value == f"<pre>{panel.text}</pre>"
    assert max(map(len, panel.text.splitlines())) <= 96


def test_every_control_has_a_name() -> None:
    """A screen reader and a keyboard reach each control by its words."""
    panel = BreakerPanel()
    controls = [panel.fails, panel.one, panel.twenty, panel.second, panel.again]
    assert all(control.description and not control.disabled for control in controls)
