"""The timeline panel: its button asks the real service, and what came stands in words beside it."""

import asyncio
from html import escape

import pytest

from foundry_lab import FoundryAPIClient
from foundry_lab.faults import Always, FaultProxy, Pace
from foundry_lab.records import FirstToken, Record
from foundry_lab.service import Service
from foundry_lab.settings import Settings
from foundry_lab.widgets.timeline import TimelinePanel

pytestmark = pytest.mark.anyio


async def test_it_shows_when_each_piece_came(client: FoundryAPIClient) -> None:
    """One time for each piece of text, in order; the text is the client's own answer."""
    panel = TimelinePanel(client)
    panel.max_tokens.value = 12
    await panel.run()
    answer = await client.complete("What is jitter?", max_tokens=12)
    assert panel.text == answer.content
    assert panel.tokens == answer.usage.completion_tokens
    assert len(panel.times) > 2
    assert panel.times == sorted(panel.times)
    assert panel.summary.startswith(f"whole\n{len(panel.times)} pieces of text, 12 tokens\nfirst")


async def test_the_button_does_the_same(client: FoundryAPIClient) -> None:
    """A click runs the handler on the running loop; another one meanwhile does nothing."""
    panel = TimelinePanel(client)
    panel.start.click()
    first = panel.task
    panel.start.click()
    assert panel.task is first
    assert first is not None
    await first
    assert panel.summary.startswith("whole\n")
    panel.start.click()
    second = panel.task
    assert second is not None
    assert second is not first
    await second


async def test_the_text_grows_while_it_comes(
    client: FoundryAPIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The panel is drawn again in the middle of an answer, and says that it is not over."""
    monkeypatch.setattr("foundry_lab.widgets.timeline.REFRESH", 0.0)
    panel = TimelinePanel(client)
    drawn: list[str] = []
    panel.view.observe(lambda change: drawn.append(change.new), "value")
    await panel.run()
    before, first, second, *_ = drawn  # the role comes first, without text
    assert "running\n\n" in before
    assert "running\n1 piece" in first
    assert "running\n2 piece" in second
    assert panel.text not in second


async def test_the_figure_has_words_in_the_panel_too(client: FoundryAPIClient) -> None:
    """What is drawn is the figure of the lesson, with its alt text, under the text."""
    panel = TimelinePanel(client)
    await panel.run()
    assert panel.plot is not None
    assert panel.plot.alt.startswith("Token timeline. The answer to 'What is jitter?'. First text")
    assert f'<img alt="{escape(panel.plot.alt)}"' in panel.view.value
    assert panel.text in panel.view.value


async def test_stop_ends_the_stream(service: Service) -> None:
    """Stop cancels an answer in its middle; the text so far stays, and so does the panel."""
    begun = asyncio.Event()

    def hook(record: Record) -> None:
        if isinstance(record, FirstToken):
            begun.set()

    with FaultProxy(service.url, Always(Pace(20)), only="/chat/") as proxy:
        async with FoundryAPIClient(proxy.url, hook=hook) as client:
            panel = TimelinePanel(client, "What is jitter?")
            panel.start.click()
            await begun.wait()
            panel.stop.click()
            assert panel.task is not None
            with pytest.raises(asyncio.CancelledError):
                await panel.task
    assert panel.summary.startswith(f"stopped\n{len(panel.times)} piece")
    assert panel.text
    assert panel.tokens is None


async def test_an_error_is_shown_and_the_panel_goes_on(
    client: FoundryAPIClient, own_service: Service
) -> None:
    """A service that is gone is said in the panel; nothing is raised into the notebook."""
    settings = Settings(retries=0)
    async with FoundryAPIClient(own_service, settings=settings) as lost:
        panel = TimelinePanel(lost)
        own_service.kill()
        await panel.run()
        assert panel.summary.startswith("ServiceUnreachable: ")
        assert "ServiceUnreachable" in panel.view.value
    panel.client = client
    await panel.run()
    assert panel.summary.startswith("whole\n")


async def test_what_is_no_error_of_a_call_is_shown_too(service: Service) -> None:
    """With a client that was closed the panel does not say "running" for ever."""
    async with FoundryAPIClient(service) as closed:
        pass
    panel = TimelinePanel(closed)
    with pytest.raises(RuntimeError):
        await panel.run()
    assert panel.summary.startswith("RuntimeError: ")


async def test_the_figure_names_the_prompt_that_was_asked(client: FoundryAPIClient) -> None:
    """What is typed while the answer comes belongs to the next one."""
    panel = TimelinePanel(client)
    running = asyncio.ensure_future(panel.run())
    await asyncio.sleep(0)
    panel.prompt.value = "And now?"
    await running
    assert panel.plot is not None
    assert "What is jitter?" in panel.plot.alt


async def test_one_piece_has_no_gaps(client: FoundryAPIClient) -> None:
    """With a single piece there is no timeline to draw, and no gap to speak of."""
    panel = TimelinePanel(client)
    panel.max_tokens.value = 1
    await panel.run()
    assert panel.plot is None
    assert len(panel.times) == 1
    assert "gaps" not in panel.summary
    assert "<img" not in panel.view.value


async def test_what_is_typed_is_not_markup(client: FoundryAPIClient) -> None:
    """A prompt and an answer stand in the panel as text."""
    panel = TimelinePanel(client, '"><b>What is jitter?')
    await panel.run()
    assert "<b>" not in panel.view.value


def test_it_has_words_where_no_widget_is_drawn() -> None:
    """The plain text of a notebook's output says what would stand there."""
    bundle = TimelinePanel(FoundryAPIClient("http://127.0.0.1:9"))._repr_mimebundle_()
    assert bundle["text/plain"] == "A panel for 'What is jitter?': not run yet"
    assert "application/vnd.jupyter.widget-view+json" in bundle
