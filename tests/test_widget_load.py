"""The load explorer: its sliders drive the real load generators, and no tail is made up."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from foundry_lab import FoundryAPIClient, Service
from foundry_lab.chat import Chunk, Completion
from foundry_lab.faults import FaultProxy, Mix, Status
from foundry_lab.settings import Settings
from foundry_lab.widgets.load import LoadExplorer

pytestmark = pytest.mark.anyio


async def nothing() -> None:
    """Answer at once."""
    await asyncio.sleep(0)


async def test_a_closed_loop_of_the_real_service(client: FoundryAPIClient) -> None:
    """As many requests as are set, at most as many at once as there are users; all are drawn."""
    at_once = most = 0

    async def call() -> Completion:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        answer = await client.complete("What is jitter?", max_tokens=2)
        at_once -= 1
        return answer

    explorer = LoadExplorer(call)
    explorer.users.value, explorer.requests.value = 3, 20
    await explorer.run()
    assert most == 3
    assert {name: len(run.successes) for name, run in explorer.runs.items()} == {"3 users": 20}
    assert explorer.plot is not None
    assert explorer.plot.alt.startswith("ECDF. Latency of the answers. 3 users: median ")
    assert explorer.plot.rows[0][:2] == ("3 users", "20")


async def test_an_open_loop_keeps_its_rate() -> None:
    """At 200 a second no request is due before its time, whether or not others are answered."""
    explorer = LoadExplorer(nothing)
    explorer.loop.value, explorer.rate.value, explorer.requests.value = "open", 200, 20
    await explorer.run()
    run = explorer.runs["200 per second"]
    due = run.column("intended")
    assert len(run) == 20
    assert all(run.column("started") >= due)
    assert 0.05 <= due[-1] <= 0.2  # Poisson arrivals, seed 1


async def test_runs_stand_side_by_side() -> None:
    """Another load is another line; the same load again takes the place of its first run."""
    explorer = LoadExplorer(nothing)
    for users in (1, 4, 1):
        explorer.users.value = users
        await explorer.run()
    assert list(explorer.runs) == ["4 users", "1 user"]
    assert explorer.plot is not None
    assert [row[0] for row in explorer.plot.rows] == ["4 users", "1 user"]
    for users in range(5, 11):
        explorer.users.value = users
        await explorer.run()
    assert list(explorer.runs) == [f"{users} users" for users in range(5, 11)]
    explorer.clear.click()
    assert not explorer.runs
    assert "<img" not in explorer.view.value
    assert explorer.text == "not run yet"


async def test_a_tail_that_the_run_cant_tell_is_refused() -> None:
    """Of 50 requests there is no p95, of 60 there is; the percentile figure says what is needed."""
    explorer = LoadExplorer(nothing)
    explorer.requests.value = 50
    await explorer.run()
    assert "50 requests are too few for p95" in explorer.text
    assert "Make 59 requests or more" in explorer.text
    assert "Make 59 requests or more" in explorer.view.value
    explorer.requests.value = 60
    await explorer.run()
    assert "ms: p95 = " in explorer.text
    explorer.q.value = 99
    assert "60 requests are too few for p99" in explorer.text
    explorer.figure.value = "percentiles"
    assert "needs n = 299" in explorer.text
    assert explorer.plot is not None
    assert explorer.plot.alt.startswith("Percentile plot")


async def test_stop_ends_a_run_and_keeps_what_was_recorded(client: FoundryAPIClient) -> None:
    """The button starts a run, a second click does nothing, and Stop ends it in its middle."""
    asked, enough = 0, asyncio.Event()

    async def call() -> Completion:
        nonlocal asked
        asked += 1
        if asked == 5:
            enough.set()
        return await client.complete("What is jitter?", max_tokens=2)

    explorer = LoadExplorer(call)
    explorer.users.value, explorer.requests.value = 2, 1000
    explorer.start.click()
    first = explorer.task
    explorer.start.click()
    assert explorer.task is first
    assert first is not None
    await enough.wait()
    assert explorer.text.startswith("running: 2 users, 1000 requests")
    explorer.stop.click()
    await first
    run = explorer.runs["2 users"]
    assert 5 <= len(run) < 1000
    assert 1 <= len(run.failures) <= 2
    assert "CancelledError" in explorer.text
    assert explorer.plot is not None


async def test_clear_ends_a_run_and_forgets_it() -> None:
    """What was cleared does not come back, and Run works at once."""
    began = asyncio.Event()

    async def call() -> None:
        began.set()
        await asyncio.Future()

    explorer = LoadExplorer(call)
    explorer.start.click()
    await began.wait()
    assert explorer.task is not None
    explorer.clear.click()
    await explorer.task
    assert (explorer.runs, explorer.text) == ({}, LoadExplorer(call).text)


async def test_failures_are_counted_beside_the_answers(service: Service) -> None:
    """What failed has no latency in the figure, and its number stands above it."""
    plan = Mix({Status(500): 0.5}, seed=1)
    with FaultProxy(service.url, plan, only="/chat/") as proxy:
        async with FoundryAPIClient(proxy.url, settings=Settings(retries=0)) as client:

            def call() -> AsyncIterator[Chunk]:
                return client.stream_complete("What is jitter?", max_tokens=2)

            explorer = LoadExplorer(call)
            explorer.users.value, explorer.requests.value = 1, 10
            await explorer.run()
    run = explorer.runs["1 user"]
    assert len(run.failures) == proxy.counts["Status"] > 0
    assert f"{len(run.failures)} StatusError" in explorer.text
    assert explorer.plot is not None
    assert explorer.plot.rows[0][1] == str(len(run.successes))


async def test_without_an_answer_there_is_no_figure() -> None:
    """All failed: that is said, and nothing is drawn."""

    async def call() -> None:
        raise ConnectionError("no")

    explorer = LoadExplorer(call)
    await explorer.run()
    assert explorer.plot is None
    assert "60 ConnectionError" in explorer.text
    assert "<img" not in explorer.view.value


async def test_it_shows_a_widget_and_the_same_in_words() -> None:
    """Where no widget can be drawn there are words and the table; the figure has its alt text."""
    explorer = LoadExplorer(nothing)
    assert explorer._repr_mimebundle_()["text/plain"] == "not run yet"
    await explorer.run()
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == explorer.text
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert explorer.plot is not None
    assert f'<img alt="{explorer.plot.alt}"' in explorer.view.value
    assert max(map(len, explorer.text.splitlines())) <= 96


def test_every_control_has_a_name() -> None:
    """A screen reader and a keyboard reach each control by its words."""
    explorer = LoadExplorer(nothing)
    controls = [explorer.loop, explorer.users, explorer.rate, explorer.requests]
    controls += [explorer.figure, explorer.q, explorer.start, explorer.stop, explorer.clear]
    for control in controls:
        assert control.description
        assert not control.disabled
