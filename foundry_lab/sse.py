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
LONGEST_NUMBER = 18  # digits of a reconnection time, which is in milliseconds


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a stream."""

    data: str
    event: str = "message"
    id: str = ""
    """The last id the stream has given so far."""
    retry: int | None = None
    """The reconnection time that came with this event, in milliseconds."""


class Decoder:
    """Decode one stream. Feed it every packet in turn; at the end, forget it.

    An event is complete at its blank line. What is unfinished when the stream ends is dropped, as
    the standard says: it may be half of something.
    """

    def __init__(self) -> None:
        self._line = bytearray()  # the unfinished line
        self._after_cr = False  # the last packet ended in CR: an LF now belongs to it
        self._at_start = True  # no byte of a first line has been interpreted: a BOM may come
        self._data: list[bytes] = []
        self._size = 0
        self._event = ""
        self._id = ""
        self._retry: int | None = None

    def feed(self, packet: bytes) -> list[Event]:
        """Take the next bytes, return the events that are complete now.

        Raises:
            InvalidResponse: An event is longer than `MAX_EVENT`.
        """
        events: list[Event] = []
        for line in self._lines(packet):
            if line:
                self._field(line)
            else:
                events += self._dispatch()
        if self._size + len(self._line) > MAX_EVENT:
            raise InvalidResponse(
                f"One event of the stream is longer than {MAX_EVENT:,} bytes.",
                fix="Check that the endpoint is a Foundry Local service.",
            )
        return events

    def _lines(self, packet: bytes) -> list[bytes]:
        """Cut at LF, CRLF and CR, and only there; keep the unfinished rest."""
        if self._after_cr and packet:
            packet = packet.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in packet:
            self._after_cr = packet.endswith(b"\r")
            packet = packet.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._line += packet
        if b"\n" not in packet:
            return []
        *lines, rest = bytes(self._line).split(b"\n")
        self._line = bytearray(rest)
        if self._at_start:
            self._at_start = False
            lines[0] = lines[0].removeprefix(BOM)
        return lines

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
            self._size += len(value) + 1
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id" and b"\0" not in value:
            self._id = value.decode("utf-8", "replace")
        elif name == b"retry" and value.isdigit() and len(value) <= LONGEST_NUMBER:
            self._retry = int(value)

    def _dispatch(self) -> list[Event]:
        data, event, retry = self._data, self._event, self._retry
        self._data, self._size, self._event, self._retry = [], 0, "", None
        if not data:
            return []
        text = b"\n".join(data).decode("utf-8", "replace")
        return [Event(text, event or "message", self._id, retry)]
