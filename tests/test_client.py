"""The client on the real service; only what that service never does comes from a stand-in."""

import asyncio
import contextlib
import gzip
import itertools
import json
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from essay import ESSAY

from foundry_lab import FoundryAPIClient, Service, Settings
from foundry_lab.answers import MAX_BODY
from foundry_lab.errors import (
    CallError,
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
    client: FoundryAPIClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says which model answers instead, however many calls and clients there are."""
    monkeypatch.setattr("foundry_lab.service._said", set())
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(client.complete("What is jitter?", model="phi-4-mini", max_tokens=1))
    assert capsys.readouterr().out == "phi-4-mini is not on this machine: lab-tiny answers.\n"


async def test_only_a_chat_falls_back(client: FoundryAPIClient) -> None:
    """To load or unload phi-4-mini never touches another model."""
    for call in (client.load, client.unload):
        with pytest.raises(ModelNotFound, match="phi-4-mini"):
            await call("phi-4-mini")
    assert (await client.health_check()).status == "ok"


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


async def test_the_deadline_bounds_the_call_and_frees_the_model(own_service: Service) -> None:
    """Given up, the call ends, and so does the generation: the model can be unloaded at once."""
    async with FoundryAPIClient(own_service) as client:
        await client.complete("What is jitter?", max_tokens=1)
        with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
            await client.complete("Hello", **ESSAY, timeout=0.1)
        async with asyncio.timeout(0.5):
            await unload_when_free(client)


async def unload_when_free(client: FoundryAPIClient) -> None:
    """Ask until the model is no longer busy."""
    while True:
        with contextlib.suppress(ModelBusy):
            await client.unload("lab-tiny")
            return


async def test_a_busy_model_says_so(own_service: Service) -> None:
    """While a stream runs the model is not unloaded; when it was left, it is."""
    async with FoundryAPIClient(own_service) as client:
        async for chunk in client.stream_complete("Hello", **ESSAY):
            if chunk.content:
                with pytest.raises(ModelBusy, match="Wait for the running generation"):
                    await client.unload("lab-tiny")
                break
        async with asyncio.timeout(0.5):
            await unload_when_free(client)


async def test_unloading_can_wait_for_a_generation(
    own_service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With wait it comes after the answer; with too little time to ask again it says busy."""
    monkeypatch.setattr("foundry_lab.client.BUSY_PAUSE", 0.6)
    async with FoundryAPIClient(own_service) as client:
        answer = client.stream_complete("Hello", **ESSAY)
        text = (await anext(answer)).content
        with pytest.raises(ModelBusy):
            await client.unload("lab-tiny", wait=True, timeout=0.5)
        unloading = asyncio.create_task(client.unload("lab-tiny", wait=True))
        async for chunk in answer:
            text += chunk.content
        assert len(text) > 1000
        assert not (await unloading).loaded


async def test_a_model_is_found_and_warmed_up(own_service: Service) -> None:
    """By id or alias; warming up loads it and gives the time to its first token."""
    async with FoundryAPIClient(own_service) as client:
        await client.unload("lab-tiny")
        found = await client.find("lab-tiny:1")
        assert (found.alias, found.loaded) == ("lab-tiny", False)
        assert 0 < await client.warm_up("lab-tiny") < 30
        assert (await client.find("lab-tiny")).loaded
        with pytest.raises(ModelNotFound, match="Did you mean"):
            await client.find("lab-tinny")


async def test_the_deadline_bounds_all_the_requests_of_a_call() -> None:
    """A server that never answers is given up on, be it at the look-up of the model's name."""

    async def silent(_: httpx.Request) -> httpx.Response:
        return await asyncio.Future()

    client = FoundryAPIClient("http://gateway", transport=httpx.MockTransport(silent))
    calls = client.complete("Hello", timeout=0.01), client.load("lab-tiny", timeout=0.01)
    for call in calls:
        with pytest.raises(DeadlineExceeded):
            await call


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
    """A server that never stops sending can't fill our memory."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 1_000_000
            yield b"x" * 1_000_000

    with pytest.raises(InvalidResponse, match="longer than"):
        await answering(lambda _: httpx.Response(200, content=endless())).models()
    assert sent <= MAX_BODY + 2_000_000


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"Content-Encoding": "gzip"}, b"no"), ({}, b"[" * 200_000), ({}, b'{"data": [{}]}')],
    ids=["broken gzip", "deep nesting", "no ids"],
)
async def test_a_broken_answer_is_one_documented_error(
    headers: dict[str, str], body: bytes
) -> None:
    """Whatever the server does wrong stays inside the error tree, and health says down."""

    def broken(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(body))

    with pytest.raises(InvalidResponse):
        await answering(broken).models()
    assert (await answering(broken).health_check()).status == "down"


async def test_a_packed_answer_is_not_unpacked() -> None:
    """A thousand bytes can unpack to a gigabyte, and nobody asked for packed ones."""
    packed = gzip.compress(b"[" + b" " * 1_000_000 + b"]")
    headers = {"Content-Encoding": "gzip"}
    answer = httpx.Response(200, headers=headers, stream=httpx.ByteStream(packed))
    with pytest.raises(InvalidResponse, match="status 200, is packed as 'gzip'"):
        await answering(lambda _: answer).models()


async def test_a_replaced_service_is_noticed(own_service: Service, other_model: Path) -> None:
    """A remembered id of a service that was replaced fails once; then the new name is found."""
    async with FoundryAPIClient(own_service.url) as client:
        await client.complete("What is jitter?", max_tokens=1)
        own_service.stop()
        with Service(Settings(model_dir=other_model), port=own_service.port):
            with pytest.raises(ModelNotFound):
                await client.complete("What is jitter?", max_tokens=1)
            assert (await client.complete("What is jitter?", max_tokens=1)).model == "count-bot:1"


async def test_memory_is_the_services_own_in_megabytes(
    client: FoundryAPIClient, service: Service
) -> None:
    """What the system says of the process, and nothing for a service on another machine."""
    health = await client.health_check()
    resident = psutil.Process(service.pid).memory_info().rss
    assert health.memory_usage == pytest.approx(resident / 1e6, rel=0.1)

    def elsewhere(request: httpx.Request) -> httpx.Response:
        status = request.url.path == "/status"
        return httpx.Response(200, json={"pid": os.getpid()} if status else ["lab-tiny:1"])

    assert (await answering(elsewhere).health_check()).memory_usage is None


@pytest.mark.parametrize("url", ["", "/v1", "/", "/v1/"])
async def test_a_url_may_end_as_people_write_it(service: Service, url: str) -> None:
    """With and without /v1 and a slash, the client finds its paths."""
    async with FoundryAPIClient(service.url + url) as client:
        assert [model.id for model in await client.models()] == ["lab-tiny:1"]


@pytest.mark.parametrize(
    "mistake",
    [
        {"timeout": "3"},
        {"timeout": 0},
        {"timeout": float("nan")},
        {"prompt": None, "messages": "Hello"},
        {"prompt": None, "messages": [None]},
        {"response_format": {"type": "nope"}},
        {"response_format": {"type": "json_schema", "json_schema": {"a": float("nan")}}},
        {"response_format": {"type": "json_schema", "json_schema": {"a": "\ud800"}}},
        {"model": ["lab-tiny"]},
        {"max_tokens": 10**30},
    ],
    ids=str,
)
async def test_odd_arguments_are_refused(client: FoundryAPIClient, mistake: Any) -> None:
    """Nothing a caller passes escapes as another error than InvalidRequest."""
    with pytest.raises(InvalidRequest, match=list(mistake)[-1]):
        await client.complete(**{"prompt": "Hello", **mistake})


async def test_a_proxy_is_not_asked_for_this_machine(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An office's proxy settings do not come between the client and 127.0.0.1."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    async with FoundryAPIClient(service.url) as client:
        assert (await client.health_check()).status == "ok"
    Service(Settings(endpoint=service.url)).start()  # from here on for every other program too
    async with httpx.AsyncClient() as http:
        assert (await http.get(f"{service.url}/models/loaded")).json() == ["lab-tiny:1"]


@pytest.mark.parametrize("status", [401, 429, 500, 503])
async def test_a_gateways_error_keeps_its_status(status: int) -> None:
    """What the service itself never sends arrives with status and text."""
    refused = httpx.Response(status, text="<html>not now</html>")
    with pytest.raises(StatusError, match="not now") as caught:
        await answering(lambda _: refused).models()
    assert caught.value.status == status


async def test_a_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    """The bearer token goes out over a real socket; no error, repr or log line repeats it."""
    caplog.set_level(logging.DEBUG)
    seen = b""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 No\r\nContent-Length: %d\r\n\r\n" % len(seen) + seen)
        writer.close()

    settings = Settings(api_key="s3cret")
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with FoundryAPIClient(f"http://127.0.0.1:{port}", settings=settings) as client:
            with pytest.raises(StatusError, match=r"Bearer \[key\]") as caught:
                await client.complete("Hello")
    assert b"Authorization: Bearer s3cret" in seen
    assert "s3cret" not in f"{caught.value!r} {client!r} {settings!r} {caplog.text}"


SSE = {"content-type": "text/event-stream"}
ECHOES = {
    "escaped": httpx.Response(401, text=r'{"error": {"message": "bad key s3\u002Bcret"}}'),
    "event": httpx.Response(200, headers=SSE, text='data: {"error":{"message":"s3+cret"}}\n\n'),
    "no chunk": httpx.Response(200, headers=SSE, text="data: bad key s3+cret\n\n"),
}


def with_models(
    answer: Callable[[httpx.Request], httpx.Response], *loaded: str
) -> FoundryAPIClient:
    """Make a client of a server that lists a model, each time the next; it chats in its own way."""
    ids, listed = itertools.chain(loaded, itertools.repeat("m:1")), ""

    def handle(request: httpx.Request) -> httpx.Response:
        nonlocal listed
        if request.url.path.endswith("/v1/models"):
            listed = next(ids)
            return httpx.Response(200, json={"data": [{"id": listed}]})
        if request.url.path.endswith("/models/loaded"):
            return httpx.Response(200, json=[listed])
        return answer(request)

    settings = Settings(api_key="s3+cret", retries=0)
    transport = httpx.MockTransport(handle)
    return FoundryAPIClient("http://gateway/below", settings=settings, transport=transport)


@pytest.mark.parametrize("echo", ECHOES.values(), ids=list(ECHOES))
async def test_no_way_of_echoing_the_key_shows_it(echo: httpx.Response) -> None:
    """Neither escaped in JSON, nor in an event, nor in what is no event; not as a cause either."""
    async with with_models(lambda _: echo) as client:
        with pytest.raises(CallError, match=r"\[key\]") as caught:
            await client.complete("Hello", model="m")
    assert "s3+cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("before", [64, 200], ids=["cut in two", "further on"])
async def test_no_part_of_a_key_is_quoted(before: int) -> None:
    """Where an error quotes the beginning of an event, no half of a key is in it, nor behind it."""
    event = json.dumps({"choices": "x" * before + " s3+cret"})
    echo = httpx.Response(200, headers=SSE, text=f"data: {event}\n\n")
    async with with_models(lambda _: echo) as client:
        with pytest.raises(CallError, match="not a chat chunk") as caught:
            await client.complete("Hello", model="m")
    assert "s3" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("error", ["x" * 184 + " s3+cret", {"message": "x" * 1_996 + " s3+cret"}])
async def test_no_part_of_a_key_is_in_a_long_message(error: object) -> None:
    """Where the message of an error event is cut, it is not cut inside the key."""
    echo = httpx.Response(200, headers=SSE, text=f"data: {json.dumps({'error': error})}\n\n")
    async with with_models(lambda _: echo) as client:
        with pytest.raises(StatusError) as caught:
            await client.complete("Hello", model="m")
    assert "s3" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("key", ["lab", "1", "id"])
async def test_a_key_that_is_a_part_of_the_answers_does_no_harm(service: Service, key: str) -> None:
    """Foundry Local takes any key, so people set something short; names and numbers stay whole."""
    async with FoundryAPIClient(service.url, settings=Settings(api_key=key)) as client:
        assert (await client.complete("Hello", max_tokens=1)).model == "lab-tiny:1"
        assert (await client.health_check()).status == "ok"


async def test_time_runs_from_a_streams_first_step(
    client: FoundryAPIClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream that is made and read later has its whole time then."""
    real = time.monotonic
    with monkeypatch.context() as a_minute_ago:
        a_minute_ago.setattr(time, "monotonic", lambda: real() - 60)
        stream = client.stream_complete("What is jitter?", timeout=30)
    assert [chunk async for chunk in stream]


async def test_a_stream_without_end_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up at a size that no answer has."""
    monkeypatch.setattr("foundry_lab.client.MAX_STREAM", 10_000)
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"more "}}]}\n\n'
    endless = httpx.Response(200, headers=SSE, content=chunk * 1_000)
    async with with_models(lambda _: endless) as client:
        with pytest.raises(CallError, match="longer than 10,000 bytes"):
            async for _ in client.stream_complete("Hello", model="m"):
                pass


async def test_health_is_asked_for_below_the_gateways_path() -> None:
    """A prefix belongs to every address of a service, to that of its status as well."""
    asked = list[str]()

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return httpx.Response(404, text="no")

    async with with_models(refuse) as client:
        assert (await client.health_check()).status == "down"
    assert asked == ["/below/status"]


async def test_a_model_that_was_unloaded_by_others_is_looked_up_again() -> None:
    """The first call says that it is not loaded; the next one asks anew what is."""
    not_loaded = "Model not loaded: Model 'm:1' must be loaded before inference"
    asked = list[str]()

    def refuse(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content)["model"])
        return httpx.Response(400, json={"error": {"message": not_loaded}})

    async with with_models(refuse, "m:1", "m:2") as client:
        for _ in range(2):
            with pytest.raises(ModelNotLoaded):
                await client.complete("Hello", model="m")
    assert asked == ["m:1", "m:2"]
