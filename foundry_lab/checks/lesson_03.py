"""Graders for the exercises of lesson 03: streaming."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import islice, pairwise
from typing import Any

import httpx

import foundry_lab as lab
from foundry_lab.checks.bench import (
    Wrong,
    attempt,
    expect,
    expect_written,
    is_number,
    service,
    value_of,
)
from foundry_lab.faults import (
    BrokenJson,
    CutBody,
    ErrorEvent,
    Fault,
    Pace,
    Reset,
    Script,
    Stall,
    Status,
)

__all__ = ["GRADERS"]

CHAT = "/v1/chat/completions"
ANY_END = r"\r\n|\n|\r"


# 03-1


def _data_of(lines: Iterable[str]) -> list[str]:
    found, data = list[str](), list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" "))
        elif not line and data:
            found.append("\n".join(data))
            data = []
    return found


def _decoder_a(packets: list[bytes]) -> list[str]:
    text = "".join(packet.decode(errors="replace") for packet in packets)
    return _data_of(re.split(ANY_END, text)[:-1])


def _decoder_b(packets: list[bytes]) -> list[str]:
    return _data_of(b"".join(packets).decode("utf-8-sig").splitlines())


def _decoder_c(packets: list[bytes]) -> list[str]:
    lines, rest = list[str](), b""
    for packet in packets:
        *whole, rest = re.split(ANY_END.encode(), rest + packet)
        lines += [line.decode() for line in whole]
    return _data_of(lines)


def _by_standard(packets: Iterable[bytes]) -> list[str]:
    decoder = lab.Decoder()
    return [event.data for packet in packets for event in decoder.feed(packet)]


def break_decoders(answer: Any) -> None:
    """03-1: packets that each of three decoders reads wrongly."""
    three = isinstance(answer, (list, tuple)) and len(answer) == 3
    expect(
        three,
        tried="look at your three lists of packets",
        expected="packets_a, packets_b and packets_c",
        happened=f"they are {answer!r}",
        look="the cell above: write the packets there, run it, and then run the check again",
    )
    decoders = {"A": _decoder_a, "B": _decoder_b, "C": _decoder_c}
    for (name, decoder), packets in zip(decoders.items(), answer, strict=True):
        expect_written(
            packets,
            tried=f"look at packets_{name.lower()}",
            expected="a list of packets in place of `...`",
        )
        _breaks(name, decoder, packets, cut_matters=name != "B")


def _breaks(
    name: str, decoder: Callable[[list[bytes]], list[str]], given: Any, *, cut_matters: bool
) -> None:
    tried = f"decoder {name} on packets_{name.lower()}"
    packets = list(given) if isinstance(given, (list, tuple)) else []
    expect(
        packets and all(isinstance(packet, bytes) for packet in packets),
        tried=tried,
        expected="a list of packets, each of them bytes",
        happened=f"it is {given!r}",
        look='how bytes are written: b"…", or "…".encode() for what is not ASCII',
    )
    whole = b"".join(packets)
    try:
        whole.decode()
    except UnicodeDecodeError as error:
        raise Wrong(
            tried=tried,
            expected="a stream in UTF-8, as the standard allows no other",
            happened=f"put together, the bytes are no UTF-8: {error.reason} at byte {error.start}",
            look="where a character may be cut, and where it may not: all its bytes must come",
        ) from None
    truth = _by_standard(packets)
    expect(
        truth,
        tried=tried,
        expected="at least one whole event",
        happened=f"by the standard there is none in {whole!r}",
        look="what ends an event; section 3 of the lesson",
    )
    expect(
        decoder(packets) != truth,
        tried=tried,
        expected=f"that it reads something else than the standard's {truth}",
        happened="it read just that",
        look="the first thing that this decoder does with the bytes, and what it does not wait for",
    )
    if cut_matters:
        expect(
            decoder([whole]) == truth,
            tried=f"decoder {name} on the same bytes in one packet",
            expected=f"{truth}, so that only the cut makes the difference",
            happened=f"it read {decoder([whole])} there, too",
            look="a good stream first; then find a cut that does harm",
        )


# 03-2

STREAMS = {
    "lines that end with LF": (
        b": hm\n\nid: 6\n\ndata: one\ndata:two\nid: 7\n\ndata:  3\n\n",
        ["one\ntwo", " 3"],
        "what belongs to a value, and what ends an event",
    ),
    "lines that end with CR LF": (
        b"data: one\r\ndata: two\r\n\r\ndata: three\r\n\r\n",
        ["one\ntwo", "three"],
        "the LF that comes after a CR, in the same packet or in the next",
    ),
    "lines that end with CR": (
        b"data: one\rdata: two\r\rdata: three\r\r",
        ["one\ntwo", "three"],
        "a CR that is the last byte so far: does it end the line?",
    ),
    "characters of two to four bytes": (
        "data: naïve €\n\ndata: 😀\n\n".encode(),
        ["naïve €", "😀"],
        "when the bytes are decoded: before or after they are cut into lines",
    ),
    "U+2028 and U+0085 inside a line": (
        "data: one\u2028two\x85three\n\n".encode(),
        ["one\u2028two\x85three"],
        "which characters end a line; section 2 of the lesson",
    ),
    "an event that never ended": (
        b"data: one\n\ndata: tw\n",
        ["one"],
        "what is done with what is left when the packets are over",
    ),
}


def read_events(events: Callable[..., Any]) -> None:
    """03-2: the data of each event, for every cut, at once."""

    def read(packets: list[bytes]) -> list[str]:
        return list(islice(events(iter(packets)), 100))  # it may never end

    for name, (stream, expected, look) in STREAMS.items():
        cuts = [(stream[:at], stream[at:]) for at in range(1, len(stream))]
        single = [stream[at : at + 1] for at in range(len(stream))]
        for packets in ([stream], *map(list, cuts), single):
            if len(packets) > 2:
                how = "each byte a packet"
            else:
                how = "cut as " + " | ".join(map(repr, packets)) if packets[1:] else repr(stream)
            tried = f"{name}: {how}"
            happened = value_of(read, packets, tried=tried)
            expect(
                happened == expected,
                tried=tried,
                expected=f"{expected}",
                happened=f"it gave {happened}",
                look=look,
            )
    for first, then in AT_ONCE:
        _come_at_once(events, first, then)


AT_ONCE = (
    (b"data: one\n\n", b"data: two\n\n"),
    (b"data: one\r\n\r\n", b"data: two\r\n\r\n"),
    (b"data: one\r\r", b"data: two\r\r"),
    (b"data: one\r\n\r", b"\ndata: two\r\n\r\n"),
)
"""Two packets, the first of which completes an event."""


def _come_at_once(events: Callable[..., Any], first: bytes, then: bytes) -> None:
    taken = list[bytes]()

    def packets() -> Iterator[bytes]:
        for packet in (first, then):
            taken.append(packet)
            yield packet

    tried = f"take the first event of {first!r} | {then!r}: the first packet completes it"
    value_of(lambda: next(iter(events(packets()))), tried=tried)
    expect(
        len(taken) == 1,
        tried=tried,
        expected="the event as soon as its packet is there",
        happened="it came only after the second packet",
        look="a CR that is the last byte so far: it ends its line at once"
        if first.endswith(b"\r")
        else "the difference between a list that is returned and a generator that yields",
    )


# 03-3


def _body(max_tokens: int, **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": "Count from 1 to 300."}]
    body = {"model": service().model_id, "messages": asked, "max_tokens": max_tokens}
    return {**body, "temperature": 0, "stream": True, **more}


SHORT = {"response_format": {"type": "json_schema", "json_schema": {"type": "boolean"}}}
"""An answer that every model brings to its end: ``true`` or ``false``."""


SCENES = {
    "a whole answer": "what happens on a good day",
    "a whole answer, and its usage asked for": "the event with the usage: how many choices has it?",
    "12 tokens of a longer answer": "which finish_reason the model gave",
    "a stream that ends after 4 events, as HTTP wants": "who says that all was said; section 5",
    "a stream without [DONE], all else is there": "finish_reason and [DONE]: who says which?",
    "a connection that is closed after 4 events": "what becomes of the text when httpx raises",
    "an error event after 4 events": "an event that has no choices; what does it have?",
    "more tokens than any model has room for": "how that is reported: status 200, and one event",
    "status 503": "whether anybody looks at the status",
    "status 429": "whether anybody looks at the status",
    "a connection that is reset before there is an answer": "which errors httpx has for that",
    "silence after 4 events": "which errors httpx has for that, and what becomes of the text",
    "events with broken JSON, then [DONE]": "what becomes of an event that can't be read",
}


def tell_the_end(ask: Callable[..., Any]) -> None:
    """03-3: the text, and how it ended."""
    usage = {"stream_options": {"include_usage": True}}
    plain, long = _body(40, **SHORT), _body(12)
    with (
        lab.FaultProxy(service().url, only=CHAT) as proxy,
        httpx.Client(base_url=proxy.url, timeout=5) as client,
    ):
        stream = client.post(CHAT, json=plain).content
        events = re.findall(rb".+?\n\n", client.post(CHAT, json=long).content, re.DOTALL)
        whole, some, all_of_it = _text(stream), _text(events[:4]), _text(events)
        cases: list[tuple[dict[str, Any], Fault | None, str, str]] = [
            (plain, None, whole, "whole"),
            (plain | usage, None, whole, "whole"),
            (long, None, all_of_it, "length"),
            (long, CutBody(after_events=4, how="end"), some, "broken"),
            (long, CutBody(after_events=len(events) - 1, how="end"), all_of_it, "broken"),
            (long, CutBody(after_events=4, how="close"), some, "broken"),
            (long, ErrorEvent(after_events=4), some, "error"),
            (_body(1_000_000), None, "", "error"),
            (long, Status(503), "", "error"),
            (long, Status(429), "", "error"),
            (long, Reset(), "", "broken"),
            (long, Stall(after_events=4), some, "broken"),
            (long, BrokenJson(after_events=4), some, "broken"),
        ]
        for (name, look), (body, fault, *expected) in zip(SCENES.items(), cases, strict=True):
            proxy.plan = Script([fault] if fault else [])
            client.timeout = 1 if isinstance(fault, Stall) else 5
            _asked(ask, client, body, name, tuple(expected), look)
    _odd_streams(ask, plain, stream)


def _odd_streams(ask: Callable[..., Any], body: dict[str, Any], stream: bytes) -> None:
    """What the standard allows and Foundry Local does not do: replayed, from its own bytes."""
    last = stream.rindex(b'"content":"')
    note = "a\u2028b"
    first = stream.index(b'"content":"', stream.index(b"\n\n")) + len(b'"content":"')
    noted = stream[:first] + note.encode() + stream[first:]
    null = stream[:last] + b'"content":null' + stream[stream.index(b'"', last + 11) + 1 :]
    odd = {
        "no space after the colon": (
            stream.replace(b"data: ", b"data:"),
            "what the standard says about the space after the colon",
        ),
        "U+2028 inside a text": (noted, "who cuts the lines, and at which characters; section 2"),
        "an event whose content is null": (null, "what .get gives where the key is there"),
    }
    for name, (sent, look) in odd.items():
        kind = {"content-type": "text/event-stream"}
        answer = httpx.MockTransport(
            lambda _, sent=sent, kind=kind: httpx.Response(200, headers=kind, content=iter([sent]))
        )
        with httpx.Client(base_url="http://127.0.0.1", transport=answer) as client:
            _asked(ask, client, body, name, (_text(sent), "whole"), look)


def _asked(
    ask: Callable[..., Any],
    client: httpx.Client,
    body: dict[str, Any],
    name: str,
    expected: tuple[str, ...],
    look: str,
) -> None:
    outcome = attempt(ask, client, body, tried=name)
    pair = outcome.value
    good = isinstance(pair, (tuple, list)) and tuple(pair) == expected
    expect(
        outcome.error is None and good,
        tried=name,
        expected=f"{expected}",
        happened=f"it {outcome.told}",
        look=look,
    )


def _text(packets: Iterable[bytes] | bytes) -> str:
    decoder = lab.ChunkDecoder()
    given = [packets] if isinstance(packets, bytes) else packets
    return "".join(chunk.content for packet in given for chunk in decoder.feed(packet))


# 03-4


def _event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [], **chunk}).encode() + b"\n\n"


def _piece(text: str) -> bytes:
    return _event(choices=[{"delta": {"content": text}, "finish_reason": None}])


def _end(tokens: int) -> bytes:
    usage = {"prompt_tokens": 9, "completion_tokens": tokens, "total_tokens": tokens + 9}
    done = [{"delta": {}, "finish_reason": "stop"}]
    return _event(choices=done) + _event(usage=usage) + b"data: [DONE]\n\n"


ROLE = _event(choices=[{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

RECORDINGS: dict[str, list[tuple[float, bytes]]] = {
    "a piece in each packet": [
        (0.05, ROLE),
        (0.30, _piece("one")),
        (0.40, _piece(" two")),
        (0.70, _piece(" three")),
        (0.80, _end(7)),
    ],
    "a pause with keep-alive comments, then three pieces in one packet": [
        (0.25, b": keep-alive\n\n"),
        (0.30, ROLE),
        (0.50, _piece("one")),
        (0.75, b": keep-alive\n\n"),
        (1.00, b": keep-alive\n\n"),
        (1.10, _piece(" two") + _piece(" three") + _piece(" four")),
        (1.20, _piece(" five") + _end(6)),
    ],
    "events that are cut in two": [
        (0.10, ROLE + _piece("one")[:30]),
        (0.40, _piece("one")[30:] + _piece(" two €")[:-9]),
        (0.90, _piece(" two €")[-9:] + _piece(" three")),
        (1.10, _piece(" four")),
        (1.20, _end(4)),
    ],
    "a single piece": [(0.05, ROLE), (0.30, _piece("one")), (0.50, _end(1))],
    "two pieces in one packet": [(0.3, ROLE + _piece("one") + _piece(" two")), (0.4, _end(2))],
}


def measure_speed(speed: Callable[..., Any]) -> None:
    """03-4: TTFT, the longest pause and the decoding speed of a recorded stream."""
    for name, packets in RECORDINGS.items():
        tried = f"{name}, packets at {', '.join(f'{at:g}' for at, _ in packets)} s"
        told = value_of(speed, list(packets), tried=tried)
        expect(
            isinstance(told, (tuple, list)) and len(told) == 3,
            tried=tried,
            expected="three numbers: TTFT, longest pause, speed",
            happened=f"it gave {told!r}",
            look="what the function returns; printing is not returning",
        )
        for what, got, (value, look) in zip(
            ("a TTFT", "a longest pause", "a speed"), told, _speeds(packets, told), strict=True
        ):
            unit = "tokens per second" if what == "a speed" else "s"
            expect(
                _same(got, value),
                tried=tried,
                expected=f"{what} of {_number(value, unit)}",
                happened=f"it gave {_number(got, unit)}",
                look=look,
            )


def _speeds(packets: list[tuple[float, bytes]], told: Any) -> Iterator[tuple[float | None, str]]:
    decoder, times, tokens, total = lab.ChunkDecoder(), list[float](), 0, 0
    for at, packet in packets:
        for chunk in decoder.feed(packet):
            times += [at] * bool(chunk.content)
            if chunk.usage:
                tokens, total = chunk.usage.completion_tokens, chunk.usage.total_tokens
    took = times[-1] - times[0]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    yield times[0], "which event is the first with text: is the role a token, or a comment?"
    yield max(pauses, default=None), "between which moments a reader sees nothing new"
    look = "the formula of the task, and what it says when no time passed"
    if took:
        slips = {
            "a piece is not a token: who counts tokens?": (len(times) - 1) / took,
            "whether the prompt belongs to the speed of the answer": (total - 1) / took,
            "which time is divided by: the TTFT is no decoding": tokens / times[-1],
            "how many tokens were made between the first piece and the last": tokens / took,
        }
        look = next((slip for slip, rate in slips.items() if _same(told[2], rate)), look)
    yield (tokens - 1) / took if took else None, look


def _same(one: Any, other: float | None) -> bool:
    if other is None or not is_number(one):
        return one is other
    return abs(one - other) <= 0.01 * abs(other)  # who rounds is right, too


def _number(value: Any, unit: str) -> str:
    return f"{value:.4g} {unit}" if is_number(value) else repr(value)


# 03-5

PIECES = {
    "text behind the mark in the same piece": ["On", "e. Two. Th", "ree"],
    "the mark in two pieces": ["One", ". ", "Two, three"],
}


def read_and_leave(read_until: Callable[..., Any]) -> None:
    """03-5: the text up to a mark, and a stream that is closed."""
    body = _body(200)
    for name, pieces in PIECES.items():
        stream = [ROLE, *map(_piece, pieces), _end(9)]
        told = value_of(_over, read_until, stream, body, ". T", tried=name)
        _is_text(told, "One. T", name, "all the text so far, and the place of the mark in it")
    never = value_of(_over, read_until, [ROLE, _piece("One"), _end(1)], body, "?", tried="no mark")
    _is_text(never, "One", "a whole answer that has no mark", "what comes when the loop is over")
    cut = attempt(
        _over, read_until, [ROLE, _piece("One")], body, "?", tried="a stream that breaks off"
    )
    expect(
        isinstance(cut.error, EOFError),
        tried="a stream that ends before the mark, without [DONE]",
        expected="EOFError",
        happened=f"it {cut.told}",
        look="what a whole answer has at its end, and this one has not",
    )
    with lab.FaultProxy(service().url, Script([Pace(200)] * 9), only=CHAT) as proxy:
        _leaves(read_until, proxy, body)


async def _over(
    read_until: Callable[..., Any], stream: list[bytes], body: dict[str, Any], mark: str
) -> Any:
    async def packets() -> AsyncIterator[bytes]:
        for packet in stream:
            yield packet

    sent = {"content-type": "text/event-stream"}
    answer = httpx.MockTransport(lambda _: httpx.Response(200, headers=sent, content=packets()))
    async with httpx.AsyncClient(base_url="http://127.0.0.1", transport=answer) as client:
        return await read_until(client, body, mark)


def _is_text(told: Any, expected: str, tried: str, look: str) -> None:
    expect(
        told == expected,
        tried=tried,
        expected=f"{expected!r}",
        happened=f"it gave {told!r}",
        look=look,
    )


def _leaves(read_until: Callable[..., Any], proxy: lab.FaultProxy, body: dict[str, Any]) -> None:
    tried = "an answer of 200 tokens in a second; the mark is near its beginning"
    begin = _text(httpx.post(service().url + CHAT, json=body | {"max_tokens": 12}).content)
    mark = begin[2:6]

    async def work() -> tuple[Any, str, bool]:
        async with httpx.AsyncClient(base_url=proxy.url, timeout=5) as client:
            text = await read_until(client, body, mark)
            early = any(not seen.outcome for seen in proxy.seen)
            for _ in range(200):  # the news of a closed connection takes a moment
                if all(seen.outcome for seen in proxy.seen):
                    break
                await asyncio.sleep(0.01)
            return text, " ".join(seen.outcome for seen in proxy.seen), early

    text, outcome, early = value_of(work, tried=tried, seconds=20)
    look = "where the mark is for the first time"
    _is_text(text, begin[: begin.index(mark) + len(mark)], tried, look)
    expect(
        outcome == "client left",
        tried=tried,
        expected="a stream that is closed when the function returns",
        happened="it returned and left the stream open: the service worked on"
        if early
        else "it read on to the last token before it returned",
        look="what ends the work of the service; section 8 of the lesson",
    )


GRADERS: dict[str, Callable[[Any], None]] = {
    "03-1": break_decoders,
    "03-2": read_events,
    "03-3": tell_the_end,
    "03-4": measure_speed,
    "03-5": read_and_leave,
}
