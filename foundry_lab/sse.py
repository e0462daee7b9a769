"""Server-sent events: bytes in, events out, whatever the packets look like.

The rules are WHATWG HTML, section 9.2.6, "Interpreting an event stream":
https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

from dataclasses import dataclass

from foundry_lab.errors import InvalidResponse

__all__ = ["MAX_EVENT", "Decoder", "Event"]

MAX_EVENT = 1_000_000
"""Bytes of one event at most, its unfinished line included: a server must not fill our memory."""

BOM = b"\xef\xbb\xbf"
CR = ord("\r")
LONGEST_NUMBER = 18  # digits of a reconnection time, which is in milliseconds


@dataclass(slots=True)  # not frozen, which takes four times as long to make: one for every token
class Event:
    """One event of a stream."""

    data: str
    event: str = "message"
    id: str = ""
    """The last id the stream has given so far."""
    retry: int | None = None
    """The last reconnection time the stream has asked for, in milliseconds."""


class Decoder:
    """Decode one stream. Feed it every packet in turn; at the end, forget it.

    An event is complete at its blank line. What is unfinished when the stream ends is dropped, as
    the standard says: it may be half of something.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the unfinished line
        self._after_cr = False  # the last packet ended in CR: an LF now belongs to it
        self._at_start = True  # no byte of a first line has been interpreted: a BOM may come
        self._data: list[bytes] = []  # the lines of data of the unfinished event
        self._room = MAX_EVENT  # bytes that it may still grow by
        self._event = ""
        self._id = ""
        self._retry: int | None = None

    def feed(self, packet: bytes) -> list[Event]:
        """Take the next bytes, return the events that are complete now.

        Raises:
            InvalidResponse: An event is longer than `MAX_EVENT`.
        """
        events: list[Event] = []
        data, room = self._data, self._room
        near_limit = len(packet) + len(self._line) > room
        for line in self._lines(packet):
            if near_limit and len(line) > room:
                raise _too_long()
            if line:
                name, _, value = line.partition(b": ")
                if name == b"data":  # nearly every line
                    data.append(value)
                    room -= len(line)
                elif line.startswith(b"data:"):  # no space follows
                    data.append(line[5:])
                    room -= len(line)
                else:
                    self._field(line)
            else:
                if data:
                    try:
                        text = b"\n".join(data).decode()
                    except UnicodeDecodeError:  # rare, and to allow for it each time is slower
                        text = b"\n".join(data).decode("utf-8", "replace")
                    events.append(Event(text, self._event or "message", self._id, self._retry))
                    data.clear()
                    room = MAX_EVENT
                self._event = ""
        if near_limit and len(self._line) > room:
            raise _too_long()
        self._room = room
        return events

    def _lines(self, packet: bytes) -> list[bytes]:
        """Cut at LF, CRLF and CR, and only there; keep the unfinished rest."""
        if self._after_cr and packet:
            packet = packet.removeprefix(b"\n")
            self._after_cr = False
        if CR in packet:
            self._after_cr = packet.endswith(b"\r")
            packet = packet.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = packet.split(b"\n")
        rest = lines.pop()
        if lines and (self._line or self._at_start):
            lines[0] = self._first_line(lines[0])
        if rest:
            self._line += rest
        return lines

    def _first_line(self, end: bytes) -> bytes:
        """Complete the line that earlier packets have begun."""
        line = bytes(self._line) + end
        self._line.clear()
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(BOM)
        return line

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= LONGEST_NUMBER:
            self._retry = int(value)


def _too_long() -> InvalidResponse:
    return InvalidResponse(
        f"One event of the stream is longer than {MAX_EVENT:,} bytes.",
        fix="Check that the endpoint is a Foundry Local service.",
    )
