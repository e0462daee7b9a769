"""The client on the real service; only what that service never does comes from a stand-in."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.answers import MAX_BODY
from foundry_lab.errors import (
    ConnectionLost,
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    InvalidResponse,
    ModelBusy,
    ModelNotFound,
    ModelNotLoaded,
    ServiceUnreachable,
    StatusError,
)

pytestmark = pytest.mark.anyio

MODELS = {"data": [{"id": "lab-tiny:1"}]}


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> FoundryAPIClient:
    """Make a client of a server that answers as no Foundry Local does."""
    return FoundryAPIClient("http://gateway", transport=httpx.MockTransport(answer))


async def test_a_question_gets_its_answer(client: FoundryAPIClient) -> None:
    """Content, reason, usage and model arrive, and the same question gets the same text."""
    first = await client.complete("What is jitter?")
    again = await client.complete("What is jitter?")
    assert "random" in first.content
    assert first.content == again.content
    assert (first.finish_reason, first.model) == ("stop", "lab-tiny:1")
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens


async def test_the_example_of_the_readme_runs(client: FoundryAPIClient) -> None:
    """phi-4-mini falls back to the model that is there, and health has all three facts."""
    response = await client.complete(
        prompt="Explain quantum computing", model="phi-4-mini", max_tokens=500
    )
    health = await client.health_check()
    assert response.model == "lab-tiny:1"
    assert (health.status, health.loaded_models) == ("ok", ["lab-tiny:1"])
    assert health.memory_usage is not None
    assert 10 < health.memory_usage < 1000


async def test_the_fallback_is_said_once(
    client: FoundryAPIClient, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which model answers instead, not one a call."""
    for _ in range(3):
        await client.complete("What is jitter?", model="phi-4-mini", max_tokens=1)
    assert capsys.readouterr().out == "phi-4-mini is not on this machine: lab-tiny answers.\n"


async def test_parameters_reach_the_service(client: FoundryAPIClient) -> None:
    """max_tokens and stop end the answer, and seed repeats a random one."""
    short = await client.complete("What is jitter?", max_tokens=3)
    assert (short.finish_reason, short.usage.completion_tokens) == ("length", 3)
    until = await client.complete("Count from 1 to 20.", stop="5")
    assert until.content.strip() == "1 2 3 4"
    draws = {
        (await client.complete("What is jitter?", temperature=2.0, seed=7)).content
        for _ in range(3)
    }
    assert len(draws) == 1


async def test_a_conversation_and_a_system_message_are_sent(client: FoundryAPIClient) -> None:
    """More turns cost more prompt tokens."""
    turns = [
        {"role": "user", "content": "What is jitter?"},
        {"role": "assistant", "content": "Randomness."},
        {"role": "user", "content": "What is a deadline?"},
    ]
    one = await client.complete("What is a deadline?", max_tokens=1)
    all_three = await client.complete(messages=turns, max_tokens=1)
    with_system = await client.complete("What is a deadline?", system="Be brief.", max_tokens=1)
    assert all_three.usage.prompt_tokens > one.usage.prompt_tokens
    assert with_system.usage.prompt_tokens > one.usage.prompt_tokens


async def test_an_alias_is_resolved(client: FoundryAPIClient) -> None:
    """Chat takes ids, load and unload take aliases; the caller may use either for both."""
    for name in ("lab-tiny", "lab-tiny:1"):
        assert (await client.complete("What is jitter?", model=name, max_tokens=1)).model
        assert (await client.load(name)).loaded


async def test_an_unknown_model_gets_the_nearest_names(client: FoundryAPIClient) -> None:
    """A typo is answered with the name that was meant, for a chat as for loading."""
    with pytest.raises(ModelNotFound, match="Did you mean lab-tiny"):
        await client.complete("Hello", model="lab-tinny")
    with pytest.raises(ModelNotFound, match="Did you mean lab-tiny"):
        await client.load("lab-tini")


async def test_a_mistake_is_refused_before_it_is_sent() -> None:
    """No request leaves for a mistyped parameter, not even to look up the model."""

    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError(f"sent {request.url}")

    with pytest.raises(InvalidRequest, match="max_tokens"):
        await answering(never).complete("Hello", max_tokens="20")  # type: ignore[arg-type]


async def test_a_model_that_is_not_loaded_says_how_to_load_it(own_service: Service) -> None:
    """Unloaded, a chat is refused with the call that helps, and that call helps."""
    async with FoundryAPIClient(own_service) as client:
        assert not (await client.unload("lab-tiny")).loaded
        assert [model.loaded for model in await client.models()] == [False]
        health = await client.health_check()
        assert (health.status, health.reason) == ("degraded", "No model is loaded.")
        with pytest.raises(ModelNotLoaded, match=r"client\.load\('lab-tiny:1'\)"):
            await client.complete("Hello")
        await client.load("lab-tiny:1")
        assert (await client.complete("What is jitter?")).content


async def test_too_long_for_the_context_says_so(client: FoundryAPIClient) -> None:
    """Both a long prompt and a large max_tokens give the numbers."""
    with pytest.raises(ContextTooLong, match="maximum context length of 4096"):
        await client.complete("word " * 6000)
    with pytest.raises(ContextTooLong, match="1000000 output"):
        await client.complete("Hello", max_tokens=1_000_000)


async def test_the_deadline_bounds_the_whole_and_a_busy_model_says_so(
    own_service: Service,
) -> None:
    """Given up, the call ends; the service works on, and refuses to unload until it is done."""
    async with FoundryAPIClient(own_service) as client:
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await client.complete("Count from 1 to 300.", max_tokens=3000, timeout=0.05)
        with pytest.raises(ModelBusy, match="Wait for the running generation"):
            await client.unload("lab-tiny")


async def test_a_service_that_is_gone_is_unreachable_and_down(own_service: Service) -> None:
    """After a kill calls say that nobody answers; after a restart the same client works."""
    async with FoundryAPIClient(own_service) as client:
        await client.complete("What is jitter?", max_tokens=1)
        own_service.kill()
        with pytest.raises(ServiceUnreachable, match="Nobody answers"):
            await client.complete("What is jitter?")
        health = await client.health_check()
        assert (health.status, health.loaded_models, health.memory_usage) == ("down", [], None)
        assert "Nobody answers" in health.reason
        own_service.restart()
        assert (await client.complete("What is jitter?", max_tokens=1)).model == "lab-tiny:1"


async def test_a_connection_that_breaks_is_lost() -> None:
    """An answer that ends before its length leaves the caller a ConnectionLost."""

    async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        writer.close()

    async with await asyncio.start_server(half_an_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with FoundryAPIClient(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(ConnectionLost, match="before the answer was whole"):
                await client.models()


async def test_the_own_service_is_used_without_arguments(
    monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    """FoundryAPIClient() finds the notebook's service."""
    monkeypatch.setattr("foundry_lab.service._shared", service)
    async with FoundryAPIClient() as client:
        assert (await client.complete("What is jitter?", max_tokens=1)).model == "lab-tiny:1"


async def test_another_model_answers_too(other_model: Path) -> None:
    """A folder of one's own is served under its name."""
    with Service(Settings(model_dir=other_model)) as running:
        async with FoundryAPIClient(running) as client:
            assert (await client.complete("Hello", max_tokens=8)).model == "count-bot:1"
            assert (await client.complete("Hello", model="phi-4-mini", max_tokens=8)).content


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (httpx.Response(200, text="<html>It works!</html>"), "down"),
        (httpx.Response(404, text="server=oatpp/1.3.0\ncode=404"), "down"),
        (httpx.Response(200, json={"error": "no"}), "down"),
        (httpx.Response(503, text="<html>later</html>"), "down"),
    ],
)
async def test_what_is_no_foundry_local_is_not_healthy(answer: httpx.Response, status: str) -> None:
    """A web page, a 404 and a stranger's JSON are not taken for a running service."""
    health = await answering(lambda _: answer).health_check()
    assert health.status == status
    assert health.reason


async def test_a_web_page_is_not_an_answer() -> None:
    """HTML with status 200 is refused with its first words."""

    def page(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=MODELS if "v1" in request.url.path else ["lab-tiny:1"])
        return httpx.Response(200, text="<html>Please log in</html>")

    with pytest.raises(InvalidResponse, match="Please log in"):
        await answering(page).complete("Hello", model="lab-tiny")


async def test_an_endless_answer_is_cut_off() -> None:
    """A server can't fill our memory."""
    huge = httpx.Response(200, content=b"x" * (MAX_BODY + 1))
    with pytest.raises(InvalidResponse, match="longer than"):
        await answering(lambda _: huge).models()


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_a_gateways_error_keeps_its_status(status: int) -> None:
    """What the service itself never sends arrives with status and text."""
    refused = httpx.Response(status, text="<html>not now</html>")
    with pytest.raises(StatusError, match="not now") as caught:
        await answering(lambda _: refused).models()
    assert caught.value.status == status


async def test_a_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    """The bearer token goes out, and no error, repr or log line at any level repeats it."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["Authorization"])
        return httpx.Response(401, text="no")

    transport = httpx.MockTransport(refuse)
    settings = Settings(api_key="s3cret")
    client = FoundryAPIClient("http://gateway", settings=settings, transport=transport)
    with pytest.raises(StatusError) as caught:
        await client.complete("Hello")
    assert seen == ["Bearer s3cret"]
    assert "s3cret" not in f"{caught.value!r} {client!r} {settings!r} {caplog.text}"
