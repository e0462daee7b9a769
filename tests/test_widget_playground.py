"""The chat playground: its buttons talk to the real service, and its text is what it shows."""

import asyncio
import json
import re

import httpx
import pytest

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.faults import Always, CutBody, FaultProxy, Pace
from foundry_lab.layers import Layer
from foundry_lab.records import FirstToken, Record
from foundry_lab.widgets.playground import ChatPlayground, Turn
from foundry_lab.wire import http_transport

pytestmark = pytest.mark.anyio


async def test_it_asks_and_shows_the_clients_own_answer(client: FoundryAPIClient) -> None:
    """The answer is that of the client, and its row has its tokens and three times."""
    panel = ChatPlayground(client)
    await panel.ask()
    answer = await client.complete("What is jitter?", max_tokens=100)
    (turn,) = panel.turns
    assert (turn.answer, turn.tokens) == (answer.content, answer.usage.completion_tokens)
    ended, ttft, tokens, median, worst = turn.figures
    assert (ended, tokens) == ("whole", str(turn.tokens))
    assert float(ttft) > 0
    assert 0 <= float(median) <= float(worst)


class Noting(Layer):
    """Remembers the bodies of the requests that go by."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Remember, and send."""
        if request.content:
            self.bodies = [*getattr(self, "bodies", []), json.loads(request.content)]
        return await self.inner.handle_async_request(request)


async def test_both_parameters_reach_the_service(service: Service) -> None:
    """max_tokens cuts the answer, which is said; a temperature goes out as it is set."""
    wire = Noting(http_transport(httpx.URL(service.url)))
    async with FoundryAPIClient(service, transport=wire) as client:
        panel = ChatPlayground(client)
        panel.max_tokens.value, panel.temperature.value = 5, 1.5
        await panel.ask()
    (body,) = wire.bodies
    assert (body["max_tokens"], body["temperature"]) == (5, 1.5)
    assert (panel.turns[0].ended, panel.turns[0].tokens) == ("length", 5)


async def test_the_conversation_is_sent_again_until_it_is_cleared(
    client: FoundryAPIClient,
) -> None:
    """The second turn has the first one's messages before it; after Clear there is none."""
    panel = ChatPlayground(client)
    await panel.ask()
    first = panel.turns[0].answer
    assert panel.messages == [
        {"role": "user", "content": "What is jitter?"},
        {"role": "assistant", "content": first},
    ]
    panel.prompt.value = "What is a circuit breaker?"
    before = panel.messages
    await panel.ask()
    last = {"role": "user", "content": panel.prompt.value}
    alone = await client.complete(messages=[*before, last], max_tokens=100)
    assert panel.turns[1].answer == alone.content
    assert len(panel.messages) == 4
    panel.clear.click()
    assert panel.messages == []
    assert panel.text == "nothing said yet"


async def test_the_button_does_the_same(client: FoundryAPIClient) -> None:
    """A click asks on the running loop; another one meanwhile does nothing."""
    panel = ChatPlayground(client)
    panel.send.click()
    first = panel.task
    panel.send.click()
    assert panel.task is first
    assert first is not None
    await first
    assert [turn.ended for turn in panel.turns] == ["whole"]


async def test_the_answer_grows_while_it_comes(
    client: FoundryAPIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The panel is drawn again in the middle of an answer, and says that it is not over."""
    monkeypatch.setattr("foundry_lab.widgets.playground.REFRESH", 0.0)
    panel = ChatPlayground(client)
    drawn: list[str] = []
    panel.view.observe(lambda change: drawn.append(change.new), "value")
    await panel.ask()
    answer = panel.turns[0].answer
    middle = [view for view in drawn[:-1] if answer[:3] in view and answer not in view]
    assert middle
    assert all("<td>running</td>" in view for view in middle)
    assert "<td>whole</td>" in drawn[-1]


async def test_stop_ends_the_stream_and_frees_the_service(own_service: Service) -> None:
    """Stop closes the connection in mid-answer: the model can be unloaded. The text so far stays.

    What was stopped is not sent along with the next prompt.
    """
    begun = asyncio.Event()

    def hook(record: Record) -> None:
        if isinstance(record, FirstToken):
            begun.set()

    async with FoundryAPIClient(own_service) as direct:
        with FaultProxy(own_service.url, Always(Pace(20)), only="/chat/") as proxy:
            async with FoundryAPIClient(proxy.url, hook=hook) as client:
                panel = ChatPlayground(client, "Count from 1 to 300.")
                panel.max_tokens.value = 500
                panel.send.click()
                await begun.wait()
                panel.stop.click()
                assert panel.task is not None
                with pytest.raises(asyncio.CancelledError):
                    await panel.task
                await direct.unload(own_service.alias, wait=True, timeout=5)
                assert [seen.outcome for seen in proxy.seen][-1] == "client left"
    (turn,) = panel.turns
    assert (turn.ended, turn.tokens) == ("stopped", None)
    assert turn.answer
    assert turn.answer in panel.text
    assert panel.messages == []


async def test_clear_stops_too(service: Service) -> None:
    """A new conversation is empty, and stays so when the old answer's end comes in."""
    with FaultProxy(service.url, Always(Pace(20)), only="/chat/") as proxy:
        async with FoundryAPIClient(proxy.url) as client:
            panel = ChatPlayground(client)
            panel.send.click()
            await asyncio.sleep(0)
            panel.clear.click()
            assert panel.task is not None
            await asyncio.wait([panel.task], timeout=5)
            assert panel.task.cancelled()
    assert panel.turns == []
    assert "nothing said yet" in panel.view.value


async def test_errors_are_sentences_and_the_panel_goes_on(
    client: FoundryAPIClient, service: Service
) -> None:
    """An answer that breaks off keeps its text, says why and what to do, and is not sent along."""
    fault = Always(CutBody(after_events=4))
    panel = ChatPlayground(client)
    with FaultProxy(service.url, fault, only="/chat/") as proxy:
        async with FoundryAPIClient(proxy.url, settings=Settings(retries=0)) as breaking:
            panel.client = breaking
            await panel.ask()
    (turn,) = panel.turns
    assert turn.ended == "StreamInterrupted"
    assert turn.answer
    assert "\nerror  The answer broke off" in panel.text
    assert "→ " in panel.text
    assert "The answer broke off" in panel.view.value
    panel.client = client
    await panel.ask()
    assert [turn.ended for turn in panel.turns] == ["StreamInterrupted", "whole"]
    assert len(panel.messages) == 2


async def test_what_is_no_error_of_a_call_is_shown_too(service: Service) -> None:
    """With a client that was closed the turn does not run for ever."""
    async with FoundryAPIClient(service) as closed:
        pass
    panel = ChatPlayground(closed)
    with pytest.raises(RuntimeError):
        await panel.ask()
    assert panel.turns[0].ended == "RuntimeError"


async def test_an_empty_prompt_is_refused_in_words(client: FoundryAPIClient) -> None:
    """What the client refuses is a turn with an error, and nothing was sent."""
    panel = ChatPlayground(client, "")
    await panel.ask()
    assert panel.turns[0].ended == "InvalidRequest"
    assert "nothing was sent" in panel.text
    assert panel.turns[0].figures[1:] == ("-", "-", "-", "-")


def test_an_answer_without_text_is_not_sent_along() -> None:
    """The service refuses a message without content: one would end every later turn."""
    panel = ChatPlayground(FoundryAPIClient("http://127.0.0.1:9"))
    panel.turns = [Turn("a", "", "whole"), Turn("b", "c", "length")]
    assert [message["content"] for message in panel.messages] == ["b", "c"]


async def test_it_shows_a_widget_and_the_same_in_words(client: FoundryAPIClient) -> None:
    """Where no widget can be drawn there are the words and the table; no line is too wide."""
    panel = ChatPlayground(client, "<b>What is jitter?</b> " + "again " * 30)
    empty = panel._repr_mimebundle_()
    assert empty["text/plain"] == "nothing said yet"
    await panel.ask()
    bundle = panel._repr_mimebundle_()
    assert bundle["text/plain"] == panel.text
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert max(map(len, panel.text.splitlines())) <= 96
    assert "<b>" not in panel.view.value
    assert re.search(r"^turn +ended +TTFT ms +tokens", panel.text, re.MULTILINE)
    assert panel.view.value.count('<th scope="col">') == 6


def test_every_control_has_a_name() -> None:
    """A screen reader and a keyboard reach each control by its words."""
    panel = ChatPlayground(FoundryAPIClient("http://127.0.0.1:9"))
    controls = [panel.prompt, panel.temperature, panel.max_tokens]
    for control in [*controls, panel.send, panel.stop, panel.clear]:
        assert control.description
        assert not control.disabled
