"""What can go wrong between a client and a model, each fault as data.

A fault acts in two places: `Fault.answer` can answer in the service's place, `Fault.body` hands on
the body of a response, packet by packet. Each says what a client sees, by the names of httpx.

Where events are counted: the first one of a chat has the role and no text, and an answer that is no
stream has none.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import httpx

from foundry_lab.errors import InvalidRequest
from foundry_lab.layers import is_event_stream

__all__ = [
    "BrokenJson",
    "BrokenSse",
    "Cut",
    "CutBody",
    "Delay",
    "Drip",
    "ErrorEvent",
    "Fault",
    "HtmlPage",
    "Pace",
    "Pass",
    "Refuse",
    "Reset",
    "SplitUtf8",
    "Stall",
    "Status",
    "error_response",
    "read_whole",
]


class Cut(Exception):
    """The end of a connection before the end of an answer.

    Args:
        how: ``reset`` (RST, which is an error to the client's system) or ``close`` (FIN, an end).
        why: What `Seen.outcome` will say.
    """

    def __init__(self, how: str, why: str = "cut") -> None:
        super().__init__(how, why)
        self.how, self.why = how, why


@dataclass(frozen=True)
class Fault:
    """What a fault can do; this one does nothing.

    Raises:
        InvalidRequest: A field holds what can't be.
    """

    rewrites: ClassVar[bool] = False
    """Whether it changes the body's length, so that ``Content-Length`` must go."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _ALLOWED and not _ALLOWED[name](value):
                raise InvalidRequest(
                    f"{type(self).__name__} can't have {name}={value!r}.",
                    fix=f"help({type(self).__name__}) says what it takes.",
                )

    async def answer(self, request: httpx.Request, /) -> httpx.Response | None:
        """Answer in the service's place; None, after a while or at once, leaves that to it.

        Raises:
            Cut: No answer: the connection ends.
        """

    def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        """Hand on the packets of a body as they come.

        Raises:
            Cut: The connection ends here.
        """
        return _packets(response)


@dataclass(frozen=True)
class Pass(Fault):
    """No fault."""


@dataclass(frozen=True)
class Refuse(Fault):
    """Nobody listens: `httpx.ConnectError`. Idle connections are closed, busy ones finish first.

    A request that crosses with such an end sees `httpx.ReadError` or `httpx.RemoteProtocolError`.
    Nobody can count the connections that are refused, so it lasts until the plan is changed.
    """

    async def answer(self, _: httpx.Request, /) -> None:
        raise Cut("reset")  # it came over a connection that was idle, just before its end


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset before any answer: `httpx.ReadError`.

    With ``after="accept"`` it is reset as soon as it is open: `httpx.ConnectError`, or, to a client
    that is quicker, `httpx.ReadError` or `httpx.RemoteProtocolError`. A connection that was open
    already is reset after its next request.
    """

    after: Literal["accept", "request"] = "request"

    async def answer(self, request: httpx.Request, /) -> None:
        await read_whole(request)
        raise Cut("reset")


@dataclass(frozen=True)
class Delay(Fault):
    """The request is passed on late: `httpx.ReadTimeout`, if the client has less patience."""

    seconds: float = 1.0

    async def answer(self, _: httpx.Request, /) -> None:
        await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class Status(Fault):
    """A gateway answers with an error, its JSON like Foundry's; the service sees no request.

    `httpx.HTTPStatusError` out of ``raise_for_status()``, else no exception.
    """

    code: int = 503
    retry_after: float | str | None = None
    """Seconds, or an HTTP date."""
    message: str = ""
    """By default what the code means."""

    async def answer(self, request: httpx.Request, /) -> httpx.Response:
        await read_whole(request)
        response = error_response(self.code, self.message)
        if self.retry_after is not None:
            response.headers["Retry-After"] = str(self.retry_after)
        return response


@dataclass(frozen=True)
class HtmlPage(Fault):
    """A web page where JSON should be: ``response.json()`` raises `json.JSONDecodeError`.

    A broken gateway sends it with 502, a log-in page with 200.
    """

    code: int = 502

    async def answer(self, request: httpx.Request, /) -> httpx.Response:
        await read_whole(request)
        title = f"{self.code} {_phrase(self.code)}"
        return httpx.Response(self.code, html=f"<!DOCTYPE html>\n<title>{title}</title>\n{title}\n")


@dataclass(frozen=True)
class Stall(Fault):
    """Silence for ever, on an open connection: `httpx.ReadTimeout`, if the client has a timeout."""

    after_events: int | None = None
    """Events that come first, after the headers. None: not even the headers come."""

    async def answer(self, request: httpx.Request, /) -> None:
        if self.after_events is None:
            await read_whole(request)
            await _silence()

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for event in _first(self.after_events, response):
            yield event
        await _silence()


@dataclass(frozen=True)
class Drip(Fault):
    """The body trickles. No exception: the timeouts of httpx are for each packet, not the whole."""

    bytes_per_packet: int = 1
    seconds: float = 0.1
    """Before each packet."""

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for packet in _packets(response):
            for start in range(0, len(packet), self.bytes_per_packet):
                await asyncio.sleep(self.seconds)
                yield packet[start : start + self.bytes_per_packet]


@dataclass(frozen=True)
class Pace(Fault):
    """A slow model: the events of a stream come no faster than this. No exception."""

    tokens_per_second: float = 10.0
    """Events per second, to be exact: a chunk may hold more than one token."""

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        due = time.monotonic()
        async for event in _events(response):
            await asyncio.sleep(due - time.monotonic())
            yield event
            due = max(due, time.monotonic()) + 1 / self.tokens_per_second


@dataclass(frozen=True)
class CutBody(Fault):
    """The body breaks off early, or right at its end if it is shorter than that.

    With ``how="reset"`` `httpx.ReadError`, with ``"close"`` `httpx.RemoteProtocolError`. With
    ``"end"`` no exception: the body ends as HTTP wants it, and only the missing ``[DONE]`` tells.
    """

    rewrites = True
    after_events: int = 0
    after_bytes: int | None = None
    """Bytes of the body; if given, it counts instead of the events."""
    how: Literal["reset", "close", "end"] = "reset"

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        left = self.after_bytes
        async for packet in _packets(response) if left else _first(self.after_events, response):
            yield packet[:left]
            if left is not None and (left := left - len(packet)) <= 0:
                break
        if self.how != "end":
            raise Cut(self.how)


@dataclass(frozen=True)
class BrokenJson(Fault):
    """JSON that breaks off in the middle, also in a stream's events: `json.JSONDecodeError`."""

    rewrites = True
    after_events: int = 0
    """Events that stay whole; ``[DONE]`` always does."""

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        whole = self.after_events if is_event_stream(response) else 0
        async for event in _events(response):
            whole -= 1
            spared = whole >= 0 or b"[DONE]" in event
            yield event if spared else event[: len(event) // 2] + b"\n\n"


@dataclass(frozen=True)
class BrokenSse(Fault):
    """A stream with rubbish before each event, and no blank line after ``[DONE]``. No exception.

    A reader that keeps to the standard (WHATWG HTML, section 9.2) loses no text: unknown fields are
    ignored, wrong bytes replaced. But it drops an unfinished event, and so gets no ``[DONE]``.
    """

    rewrites = True

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        rubbish = b"\xff\xfe rubbish\nretry: soon\nid\n:\n" if is_event_stream(response) else b""
        async for event in _events(response):
            yield event.rstrip() if b"[DONE]" in event else rubbish + event


@dataclass(frozen=True)
class ErrorEvent(Fault):
    """A stream ends, after its 200, with an error instead of ``[DONE]``. No exception."""

    rewrites = True
    after_events: int = 0

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        streams = is_event_stream(response)
        async for piece in _first(self.after_events, response) if streams else _packets(response):
            yield piece
        if streams:
            yield b"data: %b\n\n" % error_response(500, "The model stopped.").content


@dataclass(frozen=True)
class SplitUtf8(Fault):
    """The same bytes, cut where it hurts: in characters, in lines, between ``\\r`` and ``\\n``.

    No exception in httpx; `UnicodeDecodeError` in a client that decodes each packet by itself.
    """

    async def body(self, response: httpx.Response) -> AsyncIterator[bytes]:
        async for packet in _packets(response):
            for piece in re.findall(rb"[\x80-\xff\r\n]|[^\x80-\xff\r\n]{1,16}", packet):
                yield piece


def error_response(code: int, message: str = "") -> httpx.Response:
    """Make an error with the JSON that Foundry Local has in its own."""
    kind = "server_error" if code >= 500 else "invalid_request_error"
    error = {"message": message or _phrase(code), "type": kind, "param": None, "code": None}
    return httpx.Response(code, json={"error": error})


async def read_whole(request: httpx.Request) -> None:
    """Read what is left of a request: a client may look for an answer only when all is sent."""
    assert isinstance(request.stream, httpx.AsyncByteStream)
    async for _ in request.stream:
        pass


def _phrase(code: int) -> str:
    return httpx.Response(code).reason_phrase


async def _silence() -> None:
    await asyncio.Event().wait()


def _packets(response: httpx.Response) -> AsyncIterator[bytes]:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return aiter(response.stream)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """Regroup packets by event; what is no stream keeps its packets."""
    pattern, rest = _EVENT if is_event_stream(response) else _ANYTHING, b""
    async for packet in _packets(response):
        rest += packet
        while found := pattern.match(rest):
            yield found[0]
            rest = rest[found.end() :]
    if rest:
        yield rest


async def _first(count: int | None, response: httpx.Response) -> AsyncIterator[bytes]:
    """Hand on so many events, and don't wait for another."""
    if count and is_event_stream(response):
        async for event in _events(response):
            yield event
            count -= 1
            if count == 0:
                return


_EVENT = re.compile(rb".*?^data.*?(?:\n\n|\r\n\r\n)", re.DOTALL | re.MULTILINE)
"""An event with what comes before it: the service sends comments when it has nothing to say."""

_ANYTHING = re.compile(rb".+", re.DOTALL)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < float("inf")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and value >= 0


_ALLOWED: dict[str, Callable[[Any], bool]] = {
    "after": lambda value: value in ("accept", "request"),
    "after_bytes": lambda value: value is None or _is_count(value),
    "after_events": lambda value: value is None or _is_count(value),
    "bytes_per_packet": lambda value: _is_count(value) and value > 0,
    "code": lambda value: value in range(200, 600),
    "how": lambda value: value in ("reset", "close", "end"),
    "message": lambda value: isinstance(value, str),
    "retry_after": lambda value: str(value).isascii() and str(value).isprintable(),
    "seconds": _is_number,
    "tokens_per_second": lambda value: _is_number(value) and value > 0,
}
