"""The decoder of server-sent events against the standard: its examples, and its words as code."""

import re
import tracemalloc
from collections.abc import Iterable
from itertools import pairwise, repeat

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from foundry_lab import sse
from foundry_lab.errors import InvalidResponse
from foundry_lab.sse import MAX_EVENT, Decoder, Event

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

BLOCKS = [
    ": test stream",
    "data: first event\nid: 1",
    "data:second event\nid",
    "data:  third event",
]
STANDARD = {
    "stock ticker": (
        "data: YHOO\ndata: +2\ndata: 10\n\n",
        [Event("YHOO\n+2\n10")],
    ),
    "four blocks": (
        "\n\n".join(BLOCKS) + "\n\n",
        [Event("first event", id="1"), Event("second event"), Event(" third event")],
    ),
    "four blocks, cut off": (
        "\n\n".join(BLOCKS) + "\n",
        [Event("first event", id="1"), Event("second event")],
    ),
    "empty data": (
        "data\n\ndata\ndata\n\ndata:",
        [Event(""), Event("\n")],
    ),
    "space after the colon": (
        "data:test\n\ndata: test\n\n",
        [Event("test"), Event("test")],
    ),
    "events with types": (
        "event: add\ndata: 73857293\n\nevent: remove\ndata: 2153\n\n",
        [Event("73857293", "add"), Event("2153", "remove")],
    ),
}
"""The streams of the standard's sections 9.2.1 and 9.2.6, and what it says they fire."""


def decode(packets: Iterable[bytes]) -> list[Event]:
    decoder = Decoder()
    return [event for packet in packets for event in decoder.feed(packet)]


def cut(stream: bytes, size: int) -> list[bytes]:
    return [stream[at : at + size] for at in range(0, len(stream), size)]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize("name", STANDARD)
def test_the_examples_of_the_standard(name: str, newline: str) -> None:
    """Each fires what the standard says, with each end of line, in packets of every size."""
    text, events = STANDARD[name]
    stream = text.replace("\n", newline).encode()
    for size in range(1, len(stream) + 1):
        assert decode(cut(stream, size)) == events, f"in packets of {size}"


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("\ufeffdata: x\n\n", [Event("x")]),
        ("\ufeff\ufeffdata: x\n\n", []),
        ("data: 1\n\n\ufeffdata: x\n\n", [Event("1")]),
        ("data: a\u2028b\x85c\x0cd\x1ce\n\n", [Event("a\u2028b\x85c\x0cd\x1ce")]),
        ("data: ä€😀\n\n", [Event("ä€😀")]),
        ("id: 1\n\ndata: x\n\n", [Event("x", id="1")]),
        ("id: 1\nid: a\0b\ndata: x\n\n", [Event("x", id="1")]),
        ("id: 1\ndata: x\n\nid\ndata: y\n\n", [Event("x", id="1"), Event("y")]),
        ("event: ping\n\ndata: x\n\n", [Event("x")]),
        (":\n: data: no\ndata: x\n:\n\n", [Event("x")]),
        ("Data: x\n data: x\ndata : x\n\n", []),
        ("data: a:b: c\n\n", [Event("a:b: c")]),
        ("data:\tx\n\n", [Event("\tx")]),
        ("\n\n\n", []),
    ],
    ids=[
        "a BOM at the start is skipped",
        "only one",
        "and only at the start",
        "lines end nowhere else",
        "characters of two to four bytes",
        "an id counts for later events",
        "an id with NUL is ignored",
        "an empty id resets it",
        "a type without data is forgotten",
        "comments are no part of an event",
        "names are matched as they are",
        "only the first colon splits",
        "only a space is dropped",
        "nothing but blank lines",
    ],
)
def test_the_small_print(text: str, events: list[Event]) -> None:
    """Whatever the packets, the rules that are easily forgotten hold."""
    for size in range(1, len(text.encode()) + 1):
        assert decode(cut(text.encode(), size)) == events, f"in packets of {size}"


@pytest.mark.parametrize(
    ("value", "retry"),
    [("3000", 3000), ("0", 0), ("007", 7)]
    + [(odd, 5) for odd in ("", "-1", "+1", "1.5", "1e3", " 3", "3 ", "²", "٣", "x", "9" * 5000)],
    ids=lambda value: ascii(value)[:20],
)
def test_only_digits_are_a_reconnection_time(value: str, retry: int) -> None:
    """Whole numbers are taken, also without data beside them; anything else changes nothing."""
    [event] = decode([f"retry: 5\n\nretry: {value}\n\ndata: x\n\n".encode()])
    assert event.retry == retry


def reference(stream: bytes) -> list[Event]:
    """Decode as section 9.2.6 is worded: decode UTF-8, split into lines, go through them."""
    text = stream.decode("utf-8", "replace").removeprefix("\ufeff")
    *lines, _unfinished = re.split("\r\n|\n|\r", text)
    events, data, kind, last_id = list[Event](), "", "", ""
    retry: int | None = None
    for line in lines:
        field, colon, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                events.append(Event(data.removesuffix("\n"), kind or "message", last_id, retry))
            data = kind = ""
        elif colon and not field:
            pass  # a comment
        elif field == "data":
            data += value + "\n"
        elif field == "event":
            kind = value
        elif field == "id" and "\0" not in value:
            last_id = value
        elif field == "retry" and re.fullmatch("[0-9]{1,18}", value):
            retry = int(value)
    return events


PIECES = [
    *(b"data:", b"data", b"event: e", b"id:", b"id: 7", b"retry: ", b"30", b": comment", b":"),
    *(b"\n", b"\n\n", b"\r", b"\r\n", b"\r\n\r\n", b" ", b"x", b"\0"),
    *(b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xbf", b"\xff", b"\xf0\x9f", b"\x98\x80"),
    *("\u2028".encode(), "\x85".encode(), b"\x85", b"\x0b", b"\x0c", "²".encode()),
]
STREAMS = st.lists(st.sampled_from(PIECES) | st.binary(max_size=3)).map(b"".join)


@st.composite
def cut_anywhere(draw: st.DrawFn, streams: st.SearchStrategy[bytes] = STREAMS) -> list[bytes]:
    stream = draw(streams)
    cuts = sorted(draw(st.lists(st.integers(0, len(stream)))))
    return [stream[start:end] for start, end in pairwise([0, *cuts, len(stream)])]


@unhurried
@given(cut_anywhere())
@example([b"\xef", b"\xbb\xbfdata: x\n\n"])
@example([b"data: x\r", b"", b"\ndata: y\n\r", b"\n"])
@example([b"data: \xe2\x82", b"\xac\n\n"])
@example([b"data: \xe2\x82\ndata: \xac\n\n"])
def test_packets_make_no_difference(stream: list[bytes]) -> None:
    """For any bytes in any packets the events are those of the slow, obvious decoder."""
    assert decode(stream) == reference(b"".join(stream))


def bounded(stream: list[bytes]) -> list[Event] | None:
    try:
        return decode(stream)
    except InvalidResponse:
        return None


@unhurried
@given(cut_anywhere(STREAMS.map(lambda stream: stream.lstrip(b"\xef\xbb\xbf"))), st.integers(1, 30))
def test_packets_make_no_difference_to_the_bound(stream: list[bytes], limit: int) -> None:
    """What is too long in one packet is too long in many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sse, "MAX_EVENT", limit)
        assert bounded(stream) == bounded([b"".join(stream)])


@pytest.mark.parametrize("size", [1000, 65_536, 9 * MAX_EVENT], ids=["small", "large", "one"])
@pytest.mark.parametrize(
    "piece",
    [b"x", b"data: x", b": x", b"data\n", b"data:x\n", b"data: words\r\n", b"data: x\nid: 1\n:\n"],
    ids=["a line", "a data line", "a comment", "empty data", "no space", "data", "all fields"],
)
def test_an_event_without_end_is_refused(piece: bytes, size: int) -> None:
    """However it is made and cut, what makes an event too long is refused, not kept."""
    packet = piece * (size // len(piece))
    packets = repeat(packet, 9 * MAX_EVENT // len(packet) + 1)
    with pytest.raises(InvalidResponse, match="longer than 1,000,000 bytes"):
        decode(packets)


@pytest.mark.parametrize("size", [1000, 2 * MAX_EVENT], ids=["small packets", "one packet"])
def test_the_longest_event_is_decoded(size: int) -> None:
    """One byte less than too long is all right, and the next event starts from zero again."""
    data = b"x" * (MAX_EVENT - len(b"data:"))
    longest = b"data:" + data + b"\n\n"
    assert decode(cut(longest * 2, size)) == [Event(data.decode())] * 2
    with pytest.raises(InvalidResponse):
        decode(cut(longest.replace(b"data:", b"data: "), size))


@pytest.mark.parametrize("name", [b"", b"id", b"event", b"retry", b"strange"])
def test_endless_fields_take_no_memory(name: bytes) -> None:
    """Comments and fields that make no event may go on for ever: nothing of them is kept."""
    packet = (name + b": 12345" + b"0" * 500 + b"\n") * 100
    decoder = Decoder()
    decoder.feed(packet)
    tracemalloc.start()
    for _ in range(100):
        assert decoder.feed(packet) == []
    current, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert current < 10_000
