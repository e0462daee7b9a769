"""`FoundryAPIClient`: the calls a program needs, each with one deadline and typed errors.

It holds no HTTP of its own: what it adds to httpx is names, checks and clear errors. The layers
that make calls resilient are httpx transports, and `FoundryAPIClient` is where they are stacked.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from foundry_lab.answers import Listing, Status, parse, read, status_error
from foundry_lab.chat import ChatParameters, ChatRequest, Completion, conversation
from foundry_lab.errors import (
    CallError,
    ConnectionLost,
    DeadlineExceeded,
    InvalidRequest,
    InvalidResponse,
    ModelNotFound,
    ServiceUnreachable,
    nearest_names,
)
from foundry_lab.health import Health, memory_of
from foundry_lab.service import Service, alias_of, say_once, start_service
from foundry_lab.settings import DEFAULT_MODEL, LOOPBACK, Settings, checked_url

__all__ = ["FoundryAPIClient", "Model"]


@dataclass(frozen=True)
class Model:
    """A model the service knows."""

    id: str
    """What chat takes, such as ``lab-tiny:1``."""
    alias: str
    """What load and unload take, such as ``lab-tiny``."""
    loaded: bool


class FoundryAPIClient:
    """A client for one Foundry Local service.

    Args:
        service: A running service or the URL of one (what precedes ``/v1``). By default this
            notebook's own service, started when it does not run yet.
        settings: Deadline and key; the environment's settings by default.
        transport: What carries the requests instead of httpx's own transport.

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
    ) -> None:
        self.settings = settings or Settings.from_environment()
        if service is None:
            service = (settings and settings.endpoint) or start_service()
        self._service = service if isinstance(service, Service) else None
        self._model_ids: dict[str | None, str] = {}
        url = service.url if isinstance(service, Service) else checked_url(service)
        self._http = httpx.AsyncClient(
            base_url=url,
            transport=transport,
            headers=self.settings.headers,
            trust_env=httpx.URL(url).host not in LOOPBACK,  # no proxy leads to this machine
            timeout=None,  # noqa: S113 - httpx has no total timeout; _deadline is one
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

    async def complete(
        self,
        prompt: str | None = None,
        *,
        messages: Sequence[Mapping[str, Any]] | None = None,
        system: str | None = None,
        model: str | None = None,
        timeout: float | None = None,
        **parameters: Unpack[ChatParameters],
    ) -> Completion:
        """Ask one question, or go on with a conversation, and wait for the whole answer.

        Args:
            prompt: The question; or else `messages`.
            messages: The conversation so far, as ``{"role": …, "content": …}``.
            system: What the model should keep to, put before the rest.
            model: An id or an alias; by default the model the service was started with. In the
                place of ``phi-4-mini``, where that is not loaded, a model that is loaded answers.
            timeout: Seconds for the whole operation; by default ``FOUNDRY_TIMEOUT``.
            **parameters: See `ChatParameters`.

        Raises:
            InvalidRequest: Refused before it was sent.
            ModelNotFound: No model of that name.
            ModelNotLoaded: Known, but not in memory.
            ContextTooLong: Prompt and ``max_tokens`` exceed the context.
            DeadlineExceeded: No whole answer in time.
            CallError: The other reasons why there is no answer; see `foundry_lab.errors`.
        """
        request = ChatRequest.checked(messages=conversation(prompt, messages, system), **parameters)
        async with self._deadline(timeout):
            body = request.body(await self._model_id(model))
            return Completion.from_body(await self._call("POST", "/v1/chat/completions", body))

    async def models(self) -> list[Model]:
        """List every model of the service's catalog, loaded or not.

        Raises:
            CallError: No answer, or not one that this API gives.
        """
        async with self._deadline():
            return await self._models()

    async def load(self, model: str, *, timeout: float | None = None) -> Model:
        """Load a model into memory; one that is loaded already is fine.

        Args:
            model: An id or an alias.
            timeout: Seconds for the whole operation; by default ``FOUNDRY_TIMEOUT``.

        Raises:
            ModelNotFound: No model of that name.
            CallError: The other reasons why there is no answer.
        """
        return await self._load_or_unload("load", model, timeout)

    async def unload(self, model: str, *, timeout: float | None = None) -> Model:
        """Unload a model from memory; one that is not loaded is fine.

        Args:
            model: An id or an alias.
            timeout: Seconds for the whole operation; by default ``FOUNDRY_TIMEOUT``.

        Raises:
            ModelNotFound: No model of that name.
            ModelBusy: It generates at the moment.
            CallError: The other reasons why there is no answer.
        """
        return await self._load_or_unload("unload", model, timeout)

    async def health_check(self) -> Health:
        """Ask how the service is. Never raises for a service that is not well: it says so."""
        try:
            async with self._deadline():
                root = self._http.base_url.copy_with(path="/status")
                status = parse(Status, await self._call("GET", root))
                loaded = parse(list[str], await self._call("GET", "/models/loaded"))
        except CallError as error:
            return Health("down", error.what, [], None)
        memory = memory_of(status.pid) if root.host in LOOPBACK else None
        if not loaded:
            return Health("degraded", "No model is loaded.", [], memory)
        return Health("ok", "", loaded, memory)

    async def _models(self) -> list[Model]:
        listing = parse(Listing, await self._call("GET", "/v1/models"))
        loaded = parse(list[str], await self._call("GET", "/models/loaded"))
        aliases = self._service.aliases if self._service else {}
        return [
            Model(known, aliases.get(known) or alias_of(known), known in loaded)
            for known in (entry.id for entry in listing.data)
        ]

    async def _model_id(self, name: str | None) -> str:
        """Look a name up once: every later call with it saves two requests."""
        if name not in self._model_ids:
            self._model_ids[name] = await self._look_up(name)
        return self._model_ids[name]

    async def _look_up(self, name: str | None) -> str:
        served = self._service.model_id if self._service else ""
        wanted = name or served or DEFAULT_MODEL
        models = await self._models()
        found = _find(models, wanted)
        if wanted == DEFAULT_MODEL and not (found and found.loaded):
            loaded = [model for model in models if model.loaded]
            if stand_in := _find(loaded, served) or next(iter(loaded), None):
                say_once(f"{wanted} is not on this machine: {stand_in.alias} answers.")
                found = stand_in
        if found is None:
            raise _not_found(wanted, models)
        return found.id

    async def _load_or_unload(self, verb: str, name: str, timeout: float | None) -> Model:
        async with self._deadline(timeout):
            models = await self._models()
            if (model := _find(models, name)) is None:
                raise _not_found(name, models)
            await self._call("GET", f"/models/{verb}/{model.alias}")
            return replace(model, loaded=verb == "load")

    @asynccontextmanager
    async def _deadline(self, timeout: float | None = None) -> AsyncIterator[None]:
        """Bound everything inside by one point in time, whatever each step may take."""
        seconds = self.settings.timeout if timeout is None else timeout
        if not isinstance(seconds, (int, float)) or not seconds > 0:
            raise InvalidRequest(
                f"timeout is {seconds!r}, which is not a number of seconds above zero.",
                fix="Pass something like timeout=30, or leave it out.",
            )
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"No whole answer within {seconds:g} s.",
                fix="Ask for fewer tokens, or allow more time with timeout=… or FOUNDRY_TIMEOUT.",
            ) from error

    async def _call(self, method: str, url: httpx.URL | str, body: Any = None) -> str:
        """Send one request and read its answer, or raise the `CallError` that fits."""
        try:
            async with self._http.stream(method, url, json=body) as response:
                text = self._without_key(await read(response))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise ServiceUnreachable(
                f"Nobody answers at {self._http.base_url}: {error}",
                fix="Start the service: service.restart(), or `python -m foundry_lab serve`.",
            ) from error
        except httpx.DecodingError as error:
            raise InvalidResponse(
                f"The answer can't be unpacked: {error}",
                fix="Check that the endpoint is a Foundry Local service.",
            ) from error
        except httpx.TransportError as error:
            raise ConnectionLost(
                f"The connection broke before the answer was whole: {error}",
                fix="See whether the service still runs: await client.health_check().",
            ) from error
        if response.status_code != 200:
            refusal = status_error(response.status_code, text)
            if isinstance(refusal, ModelNotFound):
                self._model_ids.clear()  # the names of a service that was replaced
            raise refusal
        return text

    def _without_key(self, text: str) -> str:
        """A server may echo what it was sent; no error message of ours does."""
        key = self.settings.api_key
        return text.replace(key, "[key]") if key else text


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
