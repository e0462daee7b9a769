"""Chat chunks: what the events of a streamed answer say.

A stream has three ends that are not the same: the chunk with a ``finish_reason`` (the model is
done), the event ``[DONE]`` (the service has said all), and the end of the body.
"""

import contextlib
from collections.abc import Iterable, Iterator

from pydantic import BaseModel, ValidationError

from foundry_lab.answers import beginning, status_error
from foundry_lab.chat import Chunk, ToolCall, Usage
from foundry_lab.errors import CallError, InvalidResponse
from foundry_lab.sse import Decoder

__all__ = ["ChunkDecoder", "text_of"]


class _Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class _Tool(BaseModel):
    index: int = 0
    id: str | None = None
    function: _Function = _Function()


class _Delta(BaseModel):
    content: str | None = None
    tool_calls: list[_Tool] | None = None


class _Choice(BaseModel):
    delta: _Delta
    finish_reason: str | None = None


class _Body(BaseModel):
    choices: list[_Choice] | None = None
    id: str = ""
    model: str = ""
    usage: Usage | None = None
    error: object = None


class ChunkDecoder:
    """Decode the packets of one answer. Feed it every packet in turn."""

    def __init__(self) -> None:
        self._events = Decoder()
        self.over = False
        """Whether ``[DONE]`` came: without it a stream that ends was cut off."""

    def feed(self, packet: bytes) -> Iterator[Chunk]:
        """Take the next bytes, yield the chunks that are complete now.

        Raises:
            InvalidResponse: An event is not a chat chunk, or is too long.
            StatusError: The service reports an error in an event: the status was sent long before.
        """
        if self.over:  # what comes after that is nobody's business
            return
        for event in self._events.feed(packet):
            if event.data == "[DONE]":
                self.over = True
                return
            yield _chunk(event.data)

    def shows_content(self, packet: bytes) -> bool:
        """Take the next bytes; say whether they bring what a caller waits for.

        That is text or a tool call, the end of the answer, or an error in its place. It is the
        commit point: afterwards feed the packets, from the first on, to another decoder.
        """
        shown = False
        try:
            for chunk in self.feed(packet):  # to its end: the packet may hold [DONE] as well
                shown = shown or bool(chunk.content or chunk.tool_calls)
        except CallError:
            self.over = True
        return shown or self.over


def text_of(packets: Iterable[bytes]) -> str:
    """Return the text of a stream that broke off: all that can be read of it."""
    chunks, text = ChunkDecoder(), list[str]()
    with contextlib.suppress(CallError):
        for packet in packets:
            for chunk in chunks.feed(packet):
                text.append(chunk.content)
    return "".join(text)


def _chunk(data: str) -> Chunk:
    try:
        body = _Body.model_validate_json(data)
    except ValidationError:
        raise _not_a_chunk(data) from None  # a traceback prints its cause, and what is in that
    if body.error is not None:
        raise status_error(200, data)
    if body.choices is None:
        raise _not_a_chunk(data)
    if not body.choices:  # the chunk that holds the usage
        return Chunk(usage=body.usage, model=body.model, id=body.id)
    choice = body.choices[0]
    tools = tuple(
        ToolCall(tool.index, tool.id or "", tool.function.name or "", tool.function.arguments or "")
        for tool in choice.delta.tool_calls or ()
    )
    return Chunk(
        choice.delta.content or "", choice.finish_reason, body.usage, tools, body.model, body.id
    )


def _not_a_chunk(data: str) -> InvalidResponse:
    return InvalidResponse(
        f"An event of the stream is not a chat chunk; it begins with {beginning(data)!r}.",
        fix="Check that the endpoint is a Foundry Local service.",
    )
