"""The dashboard: each line comes from what was counted, and an update shows it."""

from collections.abc import Awaitable, Callable
from html import unescape

import pytest

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.faults import FaultProxy, Script, Status
from foundry_lab.health import Health, HealthMonitor
from foundry_lab.metrics import Metrics
from foundry_lab.records import Attempt, Call, FirstToken, GaveUp, Record, StateChange, Wait
from foundry_lab.retry import RetryBudget
from foundry_lab.widgets.dashboard import Dashboard

pytestmark = pytest.mark.anyio

FIRST_FAILED: list[Record] = [
    Attempt(1, 0.0, 0.1, "503"),
    Wait(1, 0.1, "backoff"),
    Attempt(2, 0.2, 0.3, "200"),
]


def answering(found: Health) -> Callable[[], Awaitable[Health]]:
    async def check() -> Health:
        return found

    return check


def dashboard(*records: Record, found: Health | None = None) -> Dashboard:
    """Make a panel that has been told these records, ten seconds after they began."""
    metrics = Metrics(now=lambda: 10.0)
    for record in records:
        metrics(record)
    return Dashboard(metrics, HealthMonitor(answering(found or Health("ok", ""))))


def line(panel: Dashboard, name: str) -> str:
    """Return what the text says after a name."""
    found = next(line for line in panel.text.splitlines() if line.startswith(name))
    return found.removeprefix(name).strip()


def test_before_the_first_call_it_claims_nothing() -> None:
    """No zero stands where nothing was measured."""
    panel = dashboard()
    assert line(panel, "health") == "not checked yet"
    assert line(panel, "calls") == "none yet"
    assert line(panel, "TTFT") == "none yet"
    assert line(panel, "breaker") == "closed"


async def test_health_is_the_monitors_last_word() -> None:
    """What is wrong is said with its reason, what is well with its memory."""
    well = dashboard(found=Health("ok", "", ["m:1"], 103.4))
    await well.monitor.observe()
    assert line(well, "health") == "ok, models loaded: 1, 103 MB"
    ill = dashboard(found=Health("down", "Nobody answers."))
    await ill.monitor.observe()
    assert line(ill, "health") == "down: Nobody answers."


def test_calls_by_outcome_and_their_rate() -> None:
    """All calls count, failures by their name; the rate is that of the metrics' window."""
    answered = [Call(1.0, 2.0, "ok", 8)] * 4
    panel = dashboard(*answered, Call(1.0, 2.0, "BreakerOpen", 0))
    assert line(panel, "calls") == "5 (0.5/s): 4 ok, 1 BreakerOpen"


def test_no_p95_of_too_few() -> None:
    """Up to 58 first tokens there is a median only; from 59 on there is a p95."""
    few = dashboard(*[FirstToken(0.1)] * 58)
    assert "p95" not in line(few, "TTFT").partition("(")[0]
    assert line(few, "TTFT").endswith("(n = 58; p95 needs 59)")
    enough = dashboard(*[FirstToken(0.1)] * 59)
    p95 = line(enough, "TTFT").partition("p95 ")[2].partition(" ms")[0]
    assert 95 <= float(p95) <= 105
    assert line(enough, "TTFT").endswith("(n = 59)")


def test_breakers_are_told_apart() -> None:
    """One breaker is its state; of several each has its name."""
    opened = StateChange("b", "closed", "open", 1.0)
    assert line(dashboard(opened), "breaker") == "open"
    probing = StateChange("a", "open", "half-open", 1.0)
    assert line(dashboard(opened, probing), "breaker") == "half-open for a, open for b"


def test_retries_stand_against_their_budget() -> None:
    """Two requests, one of them retried, the other refused by the budget; a third one waits."""
    panel = dashboard(*FIRST_FAILED, Attempt(1, 0.0, 0.1, "503"), GaveUp(1, "budget"))
    rule = "(a pot of 10, plus 10% of 2 requests)"
    assert line(panel, "retries") == f"1 {rule}, refused by the budget: 1"
    panel.metrics(Attempt(1, 0.0, 0.1, "503"))
    panel.metrics(Wait(1, 0.1, "backoff"))
    panel.budget = RetryBudget(ratio=0.5, reserve=2)
    assert line(panel, "retries").startswith("2 (a pot of 2, plus 50% of 3 requests)")


def test_an_update_shows_what_came_since() -> None:
    """The widget holds the text of the last update; the button makes one."""
    panel = dashboard()
    before = panel.view.value
    panel.metrics(Call(1.0, 2.0, "<b>", 8))
    assert panel.view.value == before
    panel.refresh.click()
    assert panel.view.value != before
    assert "<b>" not in panel.view.value
    assert unescape(panel.view.value) == f"<pre>{panel.text}</pre>"
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == panel.text
    assert "application/vnd.jupyter.widget-view+json" in bundle


async def test_long_reasons_fit_into_a_line() -> None:
    """However long a reason is, a line of the text is at most as wide as an output."""
    panel = dashboard(found=Health("down", "word " * 100))
    await panel.monitor.observe()
    assert max(map(len, panel.text.splitlines())) <= 96


async def test_it_reads_a_real_client(service: Service) -> None:
    """A call whose first attempt meets a 503: one call, one retry, and the service is well."""
    metrics, settings = Metrics(), Settings(retries=3)
    with FaultProxy(service.url, Script([Status(503)]), only="chat") as faulty:
        async with FoundryAPIClient(faulty.url, settings=settings, hook=metrics) as client:
            panel = Dashboard(metrics, HealthMonitor(client.health_check))
            await client.complete("Hello", max_tokens=1)
            await panel.monitor.observe()
    assert line(panel, "health").startswith("ok")
    assert line(panel, "calls").startswith("1 (")
    rule = "(a pot of 10, plus 10% of 3 requests)"  # two for the model's name, one chat
    assert line(panel, "retries") == f"1 {rule}, refused by the budget: 0"
