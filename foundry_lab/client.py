"""`FoundryAPIClient`: the calls a program needs, each with one deadline and typed errors.

It holds no HTTP of its own: what it adds to httpx is names, checks and clear errors. The layers
that make calls resilient are httpx transports, and `resilient` is where they are stacked.
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import httpx

from foundry_lab.answers import Listing, Status, parse, read, status_error
from foundry_lab.batch import BatchResult, Prompt, batch
from foundry_lab.breaker import BreakerTransport
from foundry_lab.cache import Cache, cache_key
from foundry_lab.chat import (
    ChatParameters,
    ChatRequest,
    Chunk,
    Completion,
    conversation,
    streamed,
)
from foundry_lab.chunks import ChunkDecoder
from foundry_lab.errors import (
    CallError,
    FoundryLabError,
    InvalidRequest,
    InvalidResponse,
    ModelBusy,
    ModelNotFound,
    ModelNotLoaded,
    StatusError,
    nearest_names,
)
from foundry_lab.failures import call_error, no_stream
from foundry_lab.health import Health, memory_of, runtime_version
from foundry_lab.layers import drain, is_event_stream
from foundry_lab.limits import ConcurrencyLimit, DeadlineTransport, TokenTimeouts, too_late
from foundry_lab.records import CacheHit, Call, FirstToken, Hook, ignore
from foundry_lab.retry import RetryPolicy, RetryTransport
from foundry_lab.service import Service, alias_of, say_once, start_service
from foundry_lab.settings import DEFAULT_MODEL, LOOPBACK, Settings, checked_url
from foundry_lab.wire import http_transport

__all__ = ["FoundryAPIClient", "Model", "resilient"]

CHAT = "/v1/chat/completions"
MAX_STREAM = 64_000_000
"""Bytes of a stream that are read at most, some 250,000 tokens."""
BUSY_PAUSE = 0.1
"""Seconds between two attempts to unload a model that generates."""
T = TypeVar("T")
Limits = dict[str, Any]
"""What a request tells the layers: ``deadline``, ``first_token``, ``stall``, ``commit`` …"""


@dataclass(frozen=True)
class Model:
    """A model the service knows."""

    id: str
    """What chat takes, such as ``lab-tiny:1``."""
    alias: str
    """What load and unload take, such as ``lab-tiny``."""
    loaded: bool


def resilient(
    wire: httpx.AsyncBaseTransport, settings: Settings, hook: Hook = ignore
) -> httpx.AsyncBaseTransport:
    """Stack the layers: deadline → retry → breaker → concurrency limit → token timeouts → HTTP.

    The deadline is outside, as it bounds the waits too. Each attempt asks the breaker, and only
    what it lets through takes a slot. The token timeouts are inside, so that the breaker sees them.

    Args:
        wire: What carries the requests at last.
        settings: The deadline and the number of retries.
        hook: Is told what the layers do.
    """
    limited = ConcurrencyLimit(TokenTimeouts(wire))
    retried = RetryTransport(
        BreakerTransport(limited, hook=hook),
        RetryPolicy(attempts=settings.retries + 1),
        hook=hook,
    )
    return DeadlineTransport(retried, settings.timeout)


class FoundryAPIClient:
    """A client for one Foundry Local service.

    Args:
        service: A running service or the URL of one (what precedes ``/v1``). By default this
            notebook's own service, started when it does not run yet.
        settings: Deadline, retries and key; the environment's settings by default.
        transport: What carries the requests, under the layers, instead of httpx's own transport.
        cache: Where `complete` keeps the answers to deterministic requests; None for nowhere.
        hook: Is told what happens to the calls; see `foundry_lab.records`.

    Raises:
        SettingsError: The URL can't be used.
        ServiceError: The notebook's own service could not be started.
    """

    def __init__(
        self,
        service: Service | str | None = None,
        *,
        settings: Settings | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        cache: Cache | None = None,
        hook: Hook = ignore,
    ) -> None:
        self.cache = cache
        self.settings = settings or Settings.from_environment()
        if service is None:
            service = (settings and settings.endpoint) or start_service()
        self._service = service if isinstance(service, Service) else None
        self._model_ids: dict[str | None, str] = {}
        self._hook = hook
        url = httpx.URL(service.url if isinstance(service, Service) else checked_url(service))
        wire = transport or http_transport(url)
        self._http = self._over(resilient(wire, self.settings, hook), url)
        self._direct = self._over(DeadlineTransport(wire, self.settings.timeout), url)

    def _over(self, transport: httpx.AsyncBaseTransport, url: httpx.URL) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=url,
            transport=transport,
            headers={"Accept-Encoding": "identity"} | self.settings.headers,
            timeout=None,  # noqa: S113 - the layers have timeouts that bound the whole
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; the service goes on."""
        await self._http.aclose()
        await self._direct.aclose()

    async def complete(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        first_token: float | None = None,
        stall: float | None = None,
        **parameters: Unpack[ChatParameters],
    ) -> Completion:
        """Ask one question, or go on with a conversation, and wait for the whole answer.

        Underneath it streams: only a stream can be cancelled, and only a stream shows a stall. As
        its caller sees nothing before the end, an answer that breaks off is asked for again.

        Args:
            prompt: The question; or else `messages`.
            messages: The conversation so far, as ``{"role": …, "content": …}``.
            system: What the model should keep to, put before the rest.
            model: An id or an alias; by default the model the service was started with. In the
                place of ``phi-4-mini``, where that is not loaded, a model that is loaded answers.
            timeout: Seconds for the whole operation; by default ``FOUNDRY_TIMEOUT``.
            first_token: Seconds that each attempt may take until its first token.
            stall: Seconds of silence after it.
            **parameters: See `ChatParameters`.

        Raises:
            InvalidRequest: Refused before it was sent.
            ModelNotFound: No model of that name.
            ModelNotLoaded: Known, but not in memory.
            ContextTooLong: Prompt and ``max_tokens`` exceed the context.
            DeadlineExceeded: No whole answer in time.
            CallError: The other reasons why there is no answer; see `foundry_lab.errors`. What had
                come of it is in ``.content``.
        """
        request = ChatRequest.checked(messages=conversation(prompt, messages, system), **parameters)
        limits = self._limits(timeout, first_token, stall) | {"commit": "end"}

        async def ask() -> Completion:
            async with self._chat(request, model, limits) as chunks:
                return Completion.of([chunk async for chunk in chunks])

        if self.cache is None:
            return await ask()
        try:
            key = cache_key(request.body(await self._model_id(model, limits)))
            return await self._cached(self.cache, key, ask, limits) if key else await ask()
        except FoundryLabError as error:
            if "told" not in limits:  # it failed before it was sent, or with somebody else's call
                began = limits["deadline"] - limits["seconds"]
                self._tell(began, type(error).__name__, 0, limits)
            raise

    def stream_complete(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        first_token: float | None = None,
        stall: float | None = None,
        **parameters: Unpack[ChatParameters],
    ) -> AsyncGenerator[Chunk]:
        """Ask as with `complete`, and get the answer piece by piece while it is generated.

        ``async for chunk in client.stream_complete("…"): print(chunk.content, end="")``. Leaving
        the loop, cancelling the task and missing the deadline close the connection, and the
        service stops generating. A stream that you keep in a variable is yours to close: use
        `contextlib.aclosing`.

        Args:
            prompt: As for `complete`, like all other arguments.
            messages: See `complete`.
            system: See `complete`.
            model: See `complete`.
            timeout: See `complete`.
            first_token: See `complete`.
            stall: See `complete`.
            **parameters: See `ChatParameters`.

        Yields:
            Chunks as they come. The last ones hold no text: the reason of the end, then the usage.

        Raises:
            StreamInterrupted: The stream broke after its first content, which ``.content`` holds.
            CallError: As for `complete`. Before the first content a failure is retried.
        """
        request = ChatRequest.checked(messages=conversation(prompt, messages, system), **parameters)
        return self._stream(request, model, self._limits(timeout, first_token, stall))

    def batch(
        self,
        prompts: Iterable[Prompt],
        *,
        concurrency: int = 4,
        journal: Path | None = None,
        progress: bool = True,
    ) -> AsyncGenerator[BatchResult]:
        """Ask many prompts, a few at once, and yield each result as soon as it is there.

        See `foundry_lab.batch.batch`, which says what each argument is and what is raised.
        """
        return batch(
            self.complete, prompts, concurrency=concurrency, journal=journal, progress=progress
        )

    async def models(self) -> list[Model]:
        """List every model of the service's catalog, loaded or not.

        Raises:
            CallError: No answer, or not one that this API gives.
        """
        return await self._models(self._limits())

    async def find(self, model: str) -> Model:
        """Look a model up by its id or its alias.

        Raises:
            ModelNotFound: No model of that name; the message offers the nearest names.
            CallError: No answer, or not one that this API gives.
        """
        models = await self.models()
        if (found := _find(models, model)) is None:
            raise _not_found(model, models)
        return found

    async def warm_up(self, model: str) -> float:
        """Load a model and let it answer once, so that nobody else waits for either.

        Returns:
            Seconds to the first token of that answer.

        Raises:
            ModelNotFound: No model of that name.
            CallError: The other reasons why there is no answer.
        """
        ready = await self.load(model)
        return await self._ttft(ready.id, self._limits())

    async def load(self, model: str, *, timeout: float | None = None) -> Model:
        """Load a model into memory; one that is loaded already is fine.

        Args:
            model: An id or an alias.
            timeout: Seconds for the whole operation; by default ``FOUNDRY_TIMEOUT``.

        Raises:
            ModelNotFound: No model of that name.
            CallError: The other reasons why there is no answer.
        """
        return await self._load_or_unload("load", model, self._limits(timeout))

    async def unload(
        self, model: str, *, wait: bool = False, timeout: float | None = None
    ) -> Model:
        """Unload a model from memory; one that is not loaded is fine.

        Args:
            model: An id or an alias.
            wait: Whether to wait, until the timeout, for a generation that is under way.
            timeout: Seconds for the whole operation; by default ``FOUNDRY_TIMEOUT``.

        Raises:
            ModelNotFound: No model of that name.
            ModelBusy: It generates at the moment.
            CallError: The other reasons why there is no answer.
        """
        limits = self._limits(timeout)
        while True:
            try:
                return await self._load_or_unload("unload", model, limits)
            except ModelBusy:
                if not wait or time.monotonic() + BUSY_PAUSE > limits["deadline"]:
                    raise
            await asyncio.sleep(BUSY_PAUSE)

    async def health_check(self, *, timeout: float = 5.0) -> Health:
        """Ask how the service is, down to a chat of one token: only that shows that it answers.

        It goes around retry and breaker, which would hide what it looks for. It never raises for a
        service that is not well: it says so.

        Args:
            timeout: Seconds for the whole check.
        """
        base, limits = self._http.base_url, self._limits(timeout)
        above = base.path.rstrip("/").removesuffix("/catalogs/local")
        root = base.copy_with(path=f"{above}/status")
        try:
            status = await self._get(self._direct, root, limits, Status)
            loaded = await self._get(self._direct, "/models/loaded", limits, list[str])
        except CallError as error:
            return Health("down", error.what)
        memory = memory_of(status.pid) if root.host in LOOPBACK else None
        version = runtime_version() if self._service and self._service.pid else None
        found = Health("ok", "", loaded, memory, None, version)
        if not loaded:
            return replace(found, status="degraded", reason="No model is loaded.")
        try:
            own = self._service.model_id if self._service else ""
            model = own if own in loaded else loaded[0]
            return replace(found, ttft=await self._ttft(model, limits))
        except CallError as error:
            return replace(found, status="degraded", reason=f"No chat: {error.what}")

    async def _ttft(self, model: str, limits: Limits) -> float:
        """Measure a chat of one token, in seconds."""
        began = time.perf_counter()
        request = ChatRequest.checked(messages=conversation("Hello", None, None), max_tokens=1)
        body = streamed(request.body(model))
        async with self._sent(self._direct, "POST", CHAT, limits, body) as answer:
            ttft = None
            async for chunk in self._chunks(answer):
                if ttft is None and (chunk.content or chunk.finish_reason):
                    ttft = time.perf_counter() - began
        return ttft or time.perf_counter() - began

    async def _models(self, limits: Limits) -> list[Model]:
        listing = await self._get(self._http, "/v1/models", limits, Listing)
        loaded = await self._get(self._http, "/models/loaded", limits, list[str])
        aliases = self._service.aliases if self._service else {}
        return [
            Model(known, aliases.get(known) or alias_of(known), known in loaded)
            for known in (entry.id for entry in listing.data)
        ]

    async def _model_id(self, name: str | None, limits: Limits) -> str:
        """Look a name up once: every later call with it saves two requests."""
        if not isinstance(name, str | None):
            raise InvalidRequest(
                f"model is {name!r}, which is not a name.",
                fix="Pass an id or an alias, such as lab-tiny.",
            )
        if name not in self._model_ids:
            self._model_ids[name] = await self._look_up(name, limits)
        return self._model_ids[name]

    async def _look_up(self, name: str | None, limits: Limits) -> str:
        served = self._service.model_id if self._service else ""
        wanted = name or served or DEFAULT_MODEL
        models = await self._models(limits)
        found = _find(models, wanted)
        if wanted == DEFAULT_MODEL and not (found and found.loaded):
            loaded = [model for model in models if model.loaded]
            if stand_in := _find(loaded, served) or next(iter(loaded), None):
                say_once(f"{wanted} is not on this machine: {stand_in.alias} answers.")
                found = stand_in
        if found is None:
            raise _not_found(wanted, models)
        return found.id

    async def _load_or_unload(self, verb: str, name: str, limits: Limits) -> Model:
        models = await self._models(limits)
        if (model := _find(models, name)) is None:
            raise _not_found(name, models)
        await self._get(self._direct, f"/models/{verb}/{model.alias}", limits, dict[str, str])
        self._model_ids.clear()  # another model may answer to a name now
        return replace(model, loaded=verb == "load")

    def _limits(
        self,
        timeout: float | None = None,
        first_token: float | None = None,
        stall: float | None = None,
    ) -> Limits:
        """Turn seconds into what the layers read, from now on; all requests of a call share it."""
        seconds = self.settings.timeout if timeout is None else timeout
        given = {"seconds": seconds, "first_token": first_token, "stall": stall}
        for name, value in given.items():
            if value is not None and not (isinstance(value, (int, float)) and value > 0):
                name = "timeout" if name == "seconds" else name
                raise InvalidRequest(
                    f"{name} is {value!r}, which is not a number of seconds above zero.",
                    fix=f"Pass something like {name}=30, or leave it out.",
                )
        return given | {"deadline": time.monotonic() + seconds, "call": token_hex(4)}

    async def _stream(
        self, request: ChatRequest, model: str | None, limits: Limits
    ) -> AsyncGenerator[Chunk]:
        limits["deadline"] = time.monotonic() + limits["seconds"]  # from here on, not from the call
        async with self._chat(request, model, limits) as chunks:
            async for chunk in chunks:
                yield chunk

    @asynccontextmanager
    async def _chat(
        self, request: ChatRequest, model: str | None, limits: Limits
    ) -> AsyncIterator[AsyncIterator[Chunk]]:
        """Send the request as a stream, and give its chunks; then tell how the call went."""
        began, text, tokens, outcome = time.monotonic(), list[str](), 0, "left"
        asked = time.perf_counter()  # finer than monotonic on some systems

        async def chunks(answer: httpx.Response) -> AsyncIterator[Chunk]:
            nonlocal tokens
            async for chunk in self._chunks(answer):
                if chunk.content:
                    if not text and "commit" not in limits:  # else it comes with the last
                        self._hook(FirstToken(time.perf_counter() - asked, limits["call"]))
                    text.append(chunk.content)
                tokens = chunk.usage.completion_tokens if chunk.usage else tokens
                yield chunk

        try:
            body = request.body(await self._model_id(model, limits))
            async with self._sent(self._http, "POST", CHAT, limits, streamed(body), text) as answer:
                yield chunks(answer)
            outcome = "ok"
        except FoundryLabError as error:
            outcome = type(error).__name__
            raise
        finally:
            limits["told"] = True
            self._tell(began, outcome, tokens, limits)

    def _tell(self, began: float, outcome: str, tokens: int, limits: Limits) -> None:
        self._hook(Call(began, time.monotonic(), outcome, tokens, limits["call"]))

    async def _chunks(self, answer: httpx.Response) -> AsyncIterator[Chunk]:
        if not is_event_stream(answer):
            raise no_stream(await read(answer))
        chunks, packets, size = ChunkDecoder(), answer.aiter_bytes(), 0
        async for packet in packets:
            size += len(packet)
            if size > MAX_STREAM:
                raise InvalidResponse(
                    f"The stream is longer than {MAX_STREAM:,} bytes.",
                    fix="Check that the endpoint is a Foundry Local service.",
                )
            for chunk in chunks.feed(packet):
                yield chunk
            if chunks.over:
                await drain(packets)
                return
        raise httpx.RemoteProtocolError("no [DONE]", request=answer.request)

    async def _cached(
        self, cache: Cache, key: str, ask: Callable[[], Awaitable[Completion]], limits: Limits
    ) -> Completion:
        async def own() -> Completion:
            if not patience.expired():
                patience.reschedule(None)  # its layers keep the deadline, and their error has more
            return await ask()

        try:  # somebody else's call may be slower
            async with asyncio.timeout_at(limits["deadline"]) as patience:
                completion, was_there = await cache.get_or_ask(key, own)
        except TimeoutError as error:
            raise too_late(limits["seconds"]) from error
        if was_there:
            self._hook(CacheHit(limits["call"]))
        return completion

    async def _get(
        self, http: httpx.AsyncClient, url: httpx.URL | str, limits: Limits, kind: type[T]
    ) -> T:
        async with self._sent(http, "GET", url, limits) as answer:
            return parse(kind, await read(answer))

    @asynccontextmanager
    async def _sent(
        self,
        http: httpx.AsyncClient,
        method: str,
        url: httpx.URL | str,
        limits: Limits,
        body: Any = None,
        text: Sequence[str] = (),
    ) -> AsyncIterator[httpx.Response]:
        """Send one request, and raise the `CallError` that fits what went wrong with it.

        `text` is what the caller has seen of the answer when that happens.
        """
        request = http.build_request(method, url, json=body, extensions=limits)
        try:
            async with aclosing(await http.send(request, stream=True)) as response:
                if response.status_code != 200:
                    raise self._refusal(response, await read(response))
                yield response
        except (httpx.RequestError, CallError) as error:
            failure = call_error(error, request, "".join(text))
            if self.settings.without_key(str(failure)) != str(failure):
                failure.say(self.settings.without_key(failure.what))
                raise failure from None  # a traceback prints its cause
            if failure is error:
                raise
            raise failure from error

    def _refusal(self, response: httpx.Response, text: str) -> StatusError:
        refusal = status_error(response.status_code, self.settings.without_key(text))
        if isinstance(refusal, ModelNotFound | ModelNotLoaded):
            self._model_ids.clear()  # the service was replaced, or somebody else unloaded
        return refusal


def _find(models: list[Model], name: str) -> Model | None:
    """Find a model by id or alias; of several variants with one alias, a loaded one."""
    fitting = [model for model in models if name in (model.id, model.alias)]
    return next((model for model in fitting if model.loaded), next(iter(fitting), None))


def _not_found(name: str, models: list[Model]) -> ModelNotFound:
    known = [known for model in models for known in (model.id, model.alias)]
    return ModelNotFound(
        f"The service has no model {name!r}. {nearest_names(name, known)}",
        fix="Use one of these, or start the service with FOUNDRY_MODEL set.",
        status=404,
    )
