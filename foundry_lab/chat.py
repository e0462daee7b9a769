"""What goes over the wire: the chat request, checked before it is sent, and the answer.

The service ignores a parameter whose name or type is wrong and answers 200 all the same, so a
request is checked here and refused before it is sent.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypedDict

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
)

from foundry_lab.errors import InvalidRequest, InvalidResponse, nearest_names

__all__ = [
    "ChatParameters",
    "ChatRequest",
    "Chunk",
    "Completion",
    "Message",
    "ToolCall",
    "Usage",
    "conversation",
    "streamed",
]

INT32 = 2**31 - 1
"""The largest number the service reads; it ignores a larger one."""

NonEmpty = Annotated[str, StringConstraints(min_length=1)]


class ChatParameters(TypedDict, total=False):
    """The parameters of a chat request that this service honours."""

    max_tokens: int
    """Most tokens to generate, from 1. Left out of a request it means 2,048 to the service."""
    temperature: float
    """0 to 2. 0, our default: always the likeliest token, so the same text every time. Above: the
    next token is drawn at random. Left out of a request it is not 0 to the service."""
    top_p: float
    """0 to 1: draw only from the likeliest tokens that together have this probability."""
    seed: int
    """Start of the random draws, from 0: same seed, same text."""
    stop: str | list[str]
    """Text before which the answer ends."""
    response_format: dict[str, Any]
    """``{"type": "json_object"}`` forces JSON, or a JSON schema under ``json_schema``."""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Message(_Strict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: NonEmpty


def _writable(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    json.dumps(schema, ensure_ascii=False, allow_nan=False).encode()
    return schema


class ResponseFormat(_Strict):
    """The form an answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Annotated[dict[str, JsonValue], AfterValidator(_writable)] | None = None


class ChatRequest(_Strict):
    """What ``POST /v1/chat/completions`` takes; see `ChatParameters` for the fields."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=INT32)] = 512
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=INT32)] | None = None
    stop: NonEmpty | list[NonEmpty] | None = None
    response_format: ResponseFormat | None = None

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """Make a request out of what the caller gave.

        Raises:
            InvalidRequest: A field is unknown, of the wrong type or out of range.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            raise _refusal(error) from None

    def body(self, model_id: str) -> dict[str, Any]:
        """Return the JSON to send to that model: only what was given."""
        return {"model": model_id, **self.model_dump(exclude_none=True)}


def streamed(body: dict[str, Any]) -> dict[str, Any]:
    """Ask for the answer as a stream that ends with its usage."""
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def conversation(
    prompt: str | None, messages: Sequence[Mapping[str, Any]] | None, system: str | None
) -> list[Mapping[str, Any]]:
    """Join what a caller may give into one list of messages.

    Raises:
        InvalidRequest: Both a prompt and messages were given, or neither, or messages is no list.
    """
    if (prompt is None) == (messages is None):
        given = "Neither prompt nor messages" if prompt is None else "Both prompt and messages"
        raise InvalidRequest(
            f"{given} given: a request has exactly one of them.",
            fix='Pass prompt="…" for one question, or messages=[…] for a conversation.',
        )
    if not isinstance(messages, Sequence | None) or isinstance(messages, str):
        raise InvalidRequest(
            f"messages is {messages!r}, which is not a list of messages.",
            fix='Pass messages=[{"role": "user", "content": "…"}], or prompt="…".',
        )
    turns = [{"role": "user", "content": prompt}] if messages is None else messages
    return [*([{"role": "system", "content": system}] if system else []), *turns]


def _refusal(error: ValidationError) -> InvalidRequest:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return InvalidRequest(
            f"{where!r} is not a parameter that this client sends: only what the service honours "
            "is, as it ignores most of the rest in silence.",
            fix=nearest_names(where, ChatParameters.__annotations__),
        )
    return InvalidRequest(
        f"{where} is {first['input']!r}: {first['msg'].lower()}. The service would ignore many "
        "such mistakes, so nothing was sent.",
        fix=f"Pass a value of the right type and size for {first['loc'][0]}.",
    )


class Usage(BaseModel):
    """What a call cost, in tokens."""

    model_config = ConfigDict(frozen=True)

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A piece of a call to a tool; the pieces with one index belong together."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    """A piece of the JSON of its arguments."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of a streamed answer. A chunk is not a token: it may hold none, or several."""

    content: str = ""
    """Text to append; empty in the first and the last chunks."""
    finish_reason: str | None = None
    """Why the answer ends here: ``stop`` or ``length``. None while it goes on."""
    usage: Usage | None = None
    """What the call cost: in the last chunk, which has no text."""
    tool_calls: tuple[ToolCall, ...] = ()
    model: str = ""
    id: str = ""


class Completion(BaseModel):
    """A whole answer."""

    model_config = ConfigDict(frozen=True)

    content: str
    finish_reason: str
    """``stop``: the model ended its answer. ``length``: it ran into ``max_tokens``."""
    usage: Usage
    model: str
    id: str

    @classmethod
    def of(cls, chunks: Sequence[Chunk]) -> Self:
        """Put the chunks of one whole stream together.

        Raises:
            InvalidResponse: The reason of the end or the usage is missing.
        """
        content = "".join(chunk.content for chunk in chunks)
        reasons = [chunk.finish_reason for chunk in chunks if chunk.finish_reason]
        usages = [chunk.usage for chunk in chunks if chunk.usage]
        if not (reasons and usages):
            error = InvalidResponse(
                "The answer ended without a finish_reason or without its usage.",
                fix="Check that the endpoint is a Foundry Local service. .content has the text.",
            )
            error.content = content
            raise error
        last = chunks[-1]
        return cls(
            content=content,
            finish_reason=reasons[-1],
            usage=usages[-1],
            model=last.model,
            id=last.id,
        )
