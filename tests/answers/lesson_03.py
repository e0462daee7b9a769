"""Answers to the exercises of lesson 03: other right ones, and typical wrong ones."""

import codecs
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import pairwise
from typing import Any

import httpx
import httpx_sse

import foundry_lab as lab
from answers import Answers

CHAT = "/v1/chat/completions"
END = re.compile(rb"\r\n|\n|\r")
LATE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")


# 03-1

EURO = [b"data: \xe2", b"\x82\xac\n\n"]
NEXT_LINE = ["data: a\x85b\n\n".encode()]
CR_LF = [b"data: a\r", b"\ndata: b\r\n\r\n"]


# 03-2


def _bytewise(packets: Iterable[bytes]) -> Iterator[str]:
    """A state machine over single bytes."""
    line, data, after_cr = bytearray(), list[bytes](), False
    for byte in (byte for packet in packets for byte in packet):
        if not (after_cr and byte == ord("\n")):
            if byte not in b"\r\n":
                line.append(byte)
            elif not line:
                if data:
                    yield b"\n".join(data).decode()
                data.clear()
            else:
                name, _, value = bytes(line).partition(b":")
                if name == b"data":
                    data.append(value.removeprefix(b" "))
                line.clear()
        after_cr = byte == ord("\r")


def _every_blank_line(packets: Iterable[bytes]) -> Iterator[str]:
    """An event for each blank line, with data or without."""
    data = list[str]()
    for line in _lines(packets):
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line:
            yield "\n".join(data)
            data.clear()


def _lines(packets: Iterable[bytes]) -> list[str]:
    return re.split(r"\r\n|\n|\r", b"".join(packets).decode())[:-1]


def _packaged(packets: Iterable[bytes]) -> Iterator[str]:
    decoder = lab.Decoder()
    for packet in packets:
        yield from (event.data for event in decoder.feed(packet))


def _data_in(lines: Iterable[str], one_space: bool = True) -> Iterator[str]:
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "data":
            data.append(value.removeprefix(" ") if one_space else value.strip())
        elif not line and data:
            yield "\n".join(data)
            data = []


def _from_lines(
    end: re.Pattern[bytes], *, flush: bool = False
) -> Callable[[Iterable[bytes]], Iterator[str]]:
    def events(packets: Iterable[bytes]) -> Iterator[str]:
        def lines() -> Iterator[str]:
            rest = b""
            for packet in packets:
                *whole, rest = end.split(rest + packet)
                yield from (line.decode() for line in whole)
            if flush:
                yield from (line.decode() for line in END.split(rest)[:-1])

        return _data_in(lines())

    return events


def _split_lines(packets: Iterable[bytes]) -> Iterator[str]:
    return _data_in(b"".join(packets).decode().splitlines())


def _each_packet_decoded(packets: Iterable[bytes]) -> Iterator[str]:
    text = "".join(packet.decode(errors="replace") for packet in packets)
    return _data_in(re.split(r"\r\n|\n|\r", text)[:-1])


def _stripped(packets: Iterable[bytes]) -> Iterator[str]:
    lines = re.split(r"\r\n|\n|\r", b"".join(packets).decode())[:-1]
    return _data_in(lines, one_space=False)


def _unfinished_too(packets: Iterable[bytes]) -> Iterator[str]:
    lines = re.split(r"\r\n|\n|\r", b"".join(packets).decode())
    return _data_in([*lines, ""])


# 03-3


def _with_library(client: httpx.Client, body: dict[str, Any]) -> tuple[str, str]:
    """httpx-sse for the events, a match for their meaning."""
    text, ends = "", {"length": "length"}
    finish = "stop"
    try:
        with httpx_sse.connect_sse(client, "POST", CHAT, json=body) as source:
            source.response.raise_for_status()
            for event in source.iter_sse():
                if event.data == "[DONE]":
                    return text, ends.get(finish, "whole")
                match json.loads(event.data):
                    case {"error": _}:
                        return text, "error"
                    case {"choices": [{"delta": delta, "finish_reason": reason}]}:
                        text += delta.get("content") or ""
                        finish = reason or finish
    except httpx.HTTPStatusError:
        return "", "error"
    except (httpx.HTTPError, ValueError):
        pass
    return text, "broken"


def _ask(
    *,
    done: bool = True,
    usage: bool = True,
    errors: Container[int] = range(400, 600),
    catch: tuple[type[Exception], ...] = (httpx.TransportError,),
    skip: bool = False,
    null: bool = True,
    keep: bool = True,
    lines: bool = False,
    space: bool = True,
    length: bool = True,
    error: bool = True,
    by_finish: bool = False,
) -> Any:
    """A correct `ask`, but for what is changed."""

    def datas(answer: httpx.Response) -> Iterator[str]:
        if lines:
            yield from _data_in(answer.iter_lines())
        elif not space:
            rest = ""
            for packet in answer.iter_text():
                *whole, rest = (rest + packet).split("\n")
                yield from (line[6:] for line in whole if line.startswith("data: "))
        else:
            yield from _packaged(answer.iter_bytes())

    def ask(client: httpx.Client, body: dict[str, Any]) -> tuple[str, str]:
        text, finish = "", None
        try:
            with client.stream("POST", CHAT, json=body) as answer:
                if answer.status_code in errors:
                    return "", "error"
                for data in datas(answer):
                    if data == "[DONE]":
                        return text, "length" if length and finish == "length" else "whole"
                    try:
                        chunk = json.loads(data)
                    except json.JSONDecodeError:
                        if skip:
                            continue
                        return text, "broken"
                    if error and "error" in chunk:
                        return text, "error"
                    choices = chunk["choices"] if usage else [chunk["choices"][0]]
                    for choice in choices:
                        piece = choice["delta"].get("content", "")
                        text += piece or "" if null else piece
                        finish = choice["finish_reason"] or finish
                    if by_finish and finish:
                        return text, "length" if finish == "length" else "whole"
        except catch:
            return text if keep else "", "broken"
        return text, "broken" if done else "whole"

    return ask


# 03-4


def _by_hand(packets: list[tuple[float, bytes]]) -> list[float | None]:
    """No decoder: the end of each event is looked up in all bytes."""
    whole, ends, so_far = b"".join(packet for _, packet in packets), list[tuple[int, float]](), 0
    for at, packet in packets:
        so_far += len(packet)
        ends.append((so_far, at))
    times, tokens = list[float](), 0
    for found in re.finditer(rb"^data: (\{.*\})\n\n", whole, re.MULTILINE):
        chunk, came = json.loads(found[1]), next(at for end, at in ends if end >= found.end())
        if any(choice["delta"].get("content") for choice in chunk["choices"]):
            times.append(came)
        tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
    gaps = [b - a for a, b in pairwise(times)]
    took = max(times) - min(times)
    return [min(times), max(gaps) if gaps else None, (tokens - 1) / took if took > 0 else None]


def _slip(
    *, role: bool = False, pieces: bool = False, prompt: bool = False, whole: bool = False
) -> Any:
    def speed(packets: list[tuple[float, bytes]]) -> tuple[float, float | None, float | None]:
        decoder, times, tokens = lab.ChunkDecoder(), list[float](), 0
        for at, packet in packets:
            for chunk in decoder.feed(packet):
                if chunk.content or (role and not chunk.finish_reason and not chunk.usage):
                    times.append(at)
                if chunk.usage:
                    tokens = chunk.usage.total_tokens if prompt else chunk.usage.completion_tokens
        took = times[-1] - times[0]
        pauses = [b - a for a, b in pairwise(times)]
        count = len(times) if pieces else tokens
        rate = (tokens / times[-1] if whole else (count - 1) / took) if took else None
        return times[0], max(pauses, default=None), rate

    return speed


def _each_packet_alone(packets: list[tuple[float, bytes]]) -> tuple[float, float, float]:
    times, tokens = [], 0
    for at, packet in packets:
        for line in packet.decode().split("\n"):
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                times += [at] * any(c["delta"].get("content") for c in chunk["choices"])
                tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
    took = times[-1] - times[0]
    return times[0], max(b - a for a, b in pairwise(times)), (tokens - 1) / took


def _always_divided(packets: list[tuple[float, bytes]]) -> tuple[float, float | None, float]:
    ttft, pause, rate = _slip()(packets)
    return ttft, pause, 0.0 if rate is None else rate


# 03-5


async def _generator_closed(client: httpx.AsyncClient, body: dict[str, Any], mark: str) -> str:
    """`send` and a `finally`, incremental decoding by the standard library."""
    request = client.build_request("POST", CHAT, json=body)
    answer = await client.send(request, stream=True)
    text, rest, utf8 = "", "", codecs.getincrementaldecoder("utf-8")()
    try:
        async for packet in answer.aiter_raw():
            *events, rest = (rest + utf8.decode(packet)).split("\n\n")
            for data in (event.partition("data: ")[2] for event in events):
                if data == "[DONE]":
                    return text
                for choice in json.loads(data)["choices"]:
                    text += choice["delta"].get("content") or ""
                before, found, _ = text.partition(mark)
                if found:
                    return before + mark
        raise EOFError(text)
    finally:
        await answer.aclose()


async def _piece_by_piece(client: httpx.AsyncClient, body: dict[str, Any], mark: str) -> str:
    text, decoder = "", lab.ChunkDecoder()
    async with client.stream("POST", CHAT, json=body) as answer:
        async for packet in answer.aiter_bytes():
            for chunk in decoder.feed(packet):
                text += chunk.content
                if mark in chunk.content:
                    return text[: text.index(mark) + len(mark)]
    return text


def _read(*, cut: bool = True, ended: bool = True) -> Any:
    async def read_until(client: httpx.AsyncClient, body: dict[str, Any], mark: str) -> str:
        text, decoder = "", lab.ChunkDecoder()
        async with client.stream("POST", CHAT, json=body) as answer:
            async for packet in answer.aiter_bytes():
                for chunk in decoder.feed(packet):
                    text += chunk.content
                    if mark in text:
                        return text[: text.index(mark) + len(mark)] if cut else text
        if ended and not decoder.over:
            raise EOFError
        return text

    return read_until


async def _post(client: httpx.AsyncClient, body: dict[str, Any], mark: str) -> str:
    """Waits for all of it, and cuts then."""
    answer, decoder = await client.post(CHAT, json=body), lab.ChunkDecoder()
    text = "".join(chunk.content for chunk in decoder.feed(answer.content))
    if mark not in text and not decoder.over:
        raise EOFError
    before, found, _ = text.partition(mark)
    return before + found


_open = list[Any]()


async def _left_open(client: httpx.AsyncClient, body: dict[str, Any], mark: str) -> str:
    """Leaves the loop, and somebody still holds the stream."""
    answer = await client.send(client.build_request("POST", CHAT, json=body), stream=True)
    text, decoder, packets = "", lab.ChunkDecoder(), answer.aiter_bytes()
    _open[:] = [packets]
    async for packet in packets:
        for chunk in decoder.feed(packet):
            text += chunk.content
            if mark in text:
                return text[: text.index(mark) + len(mark)]
    if not decoder.over:
        raise EOFError
    return text


async def _printed(client: httpx.AsyncClient, body: dict[str, Any], mark: str) -> None:
    print(await _read()(client, body, mark))


ANSWERS = {
    "03-1": Answers(
        right=[
            (EURO, NEXT_LINE, CR_LF),
            [["data: é\n\n".encode()[:7], b"\xa9\n\n"], NEXT_LINE, CR_LF],
        ],
        wrong={
            "no flaw met": ([[b"data: ", b"one\n\n"], NEXT_LINE, CR_LF], "it read just that"),
            "half a character": ([[b"data: \xe2", b"\n\n"], NEXT_LINE, CR_LF], "are no UTF-8"),
            "no whole event": ([[b"data: \xe2", b"\x82\xac\n"], NEXT_LINE, CR_LF], "there is none"),
            "wrong in one packet, too": (
                [[b"\xef\xbb\xbfdata: o", b"ne\n\n"], NEXT_LINE, CR_LF],
                "there, too",
            ),
            "A only": ([EURO, ..., ...], "look at packets_b"),
            "text": ([EURO, ["data: a\u2028b\n\n"], CR_LF], "each of them bytes"),
        },
    ),
    "03-2": Answers(
        right=[_bytewise, _packaged],
        wrong={
            "splitlines": (_split_lines, "which characters end a line"),
            "packets decoded": (_each_packet_decoded, "before or after they are cut into lines"),
            "CR and LF apart": (_from_lines(END), "the LF that comes after a CR"),
            "CR waits": (_from_lines(LATE_END), "a CR that is the last byte so far"),
            "CR waits for a packet": (
                _from_lines(LATE_END, flush=True),
                "it ends its line at once",
            ),
            "strip": (_stripped, "what belongs to a value"),
            "empty events": (_every_blank_line, "what ends an event"),
            "unfinished events": (_unfinished_too, "what is left when the packets are over"),
            "a list": (
                lambda packets: list(_packaged(packets)),
                "only after the second packet",
            ),
        },
    ),
    "03-3": Answers(
        right=[_with_library, _ask()],
        wrong={
            "no usage chunk": (_ask(usage=False), "IndexError"),
            "never length": (_ask(length=False), "which finish_reason"),
            "[DONE] not asked for": (_ask(done=False), "all was said; section 5"),
            "raises": (_ask(catch=()), "RemoteProtocolError"),
            "a reset raises": (
                _ask(catch=(httpx.RemoteProtocolError, httpx.TimeoutException)),
                "a connection that is reset",
            ),
            "silence raises": (
                _ask(catch=(httpx.RemoteProtocolError, httpx.NetworkError)),
                "ReadTimeout",
            ),
            "text lost": (_ask(keep=False), "what becomes of the text when"),
            "no error event": (_ask(error=False), "KeyError"),
            "status not seen": (_ask(errors=()), "whether anybody looks at the status"),
            "503 only": (_ask(errors=[503]), "status 429"),
            "bad JSON skipped": (_ask(skip=True), "an event that can't be read"),
            "space wanted": (_ask(space=False), "the space after the colon"),
            "iter_lines": (_ask(lines=True), "who cuts the lines"),
            "null": (_ask(null=False), "what .get gives"),
            "finish_reason is enough": (_ask(by_finish=True), "who says which"),
        },
    ),
    "03-4": Answers(
        right=[_by_hand, lambda packets: [one and round(one, 3) for one in _by_hand(packets)]],
        wrong={
            "the role counts": (_slip(role=True), "is the role a token"),
            "pieces are tokens": (_slip(pieces=True), "who counts tokens"),
            "the prompt counts": (_slip(prompt=True), "whether the prompt belongs"),
            "the TTFT counts": (_slip(whole=True), "the TTFT is no decoding"),
            "each packet alone": (_each_packet_alone, "JSONDecodeError"),
            "0 where there is none": (_always_divided, "when no time passed"),
            "prints": (lambda packets: print(*_slip()(packets)), "printing is not returning"),
        },
    ),
    "03-5": Answers(
        right=[_generator_closed],
        wrong={
            "in one piece only": (_piece_by_piece, "it gave 'One. Two, three'"),
            "too much": (_read(cut=False), "it gave 'One. Two. Th'"),
            "half is taken for whole": (_read(ended=False), "it gave 'One'"),
            "reads on": (_post, "it read on to the last token"),
            "left open": (_left_open, "left the stream open"),
            "prints": (_printed, "it gave None"),
        },
    ),
}
