"""Server-sent events, read from a stream of bytes that is cut anywhere. Pure.

Reads as the HTML standard says (section 9.2.6): lines end with CRLF, LF or CR, a blank line ends an event, a byte order
mark at the start is no part of the stream. Every byte that goes in comes out again as part of exactly one event, unless
that event is too large to be kept.
"""

from dataclasses import dataclass
from typing import Final

__all__ = ["Event", "EventReader", "event"]

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event, or a run of lines that dispatches none (comments, a lone `id`). `data` None: nothing is dispatched.

    `raw` is exactly what came, with the blank line. `last_id` None: the event sets none.
    """

    raw: bytes
    data: bytes | None
    last_id: bytes | None


def event(data: bytes) -> bytes:
    """The event that carries a message of one line."""
    return b"event: message\r\ndata: %b\r\n\r\n" % data


class EventReader:
    """Splits a stream into events. `largest`: bytes of one event that are kept; a larger one has no data."""

    __slots__ = ("_after_cr", "_bytes", "_line", "_lines", "_started", "largest", "oversize")

    def __init__(self, largest: int) -> None:
        self.largest = largest
        self.oversize = False  # the present event is too large to be kept
        self._line = b""  # the line that has not ended
        self._lines: list[bytes] = []  # lines of the present event, with their ends
        self._bytes = 0
        self._after_cr = False  # a LF that comes next belongs to the line that ended
        self._started = False

    @property
    def between(self) -> bool:
        """Nothing of an event has come, so that something may be put in between."""
        return not self._line and not self._lines and not self.oversize

    def feed(self, data: bytes) -> list[Event]:
        """The events that end in `data`."""
        events: list[Event] = []
        if self._after_cr and data:
            self._after_cr = False
            if data[:1] == b"\n":
                # The line had ended with the CR. Its LF goes with the event, or alone if that has gone already.
                if self._lines:
                    self._lines[-1] += b"\n"
                else:
                    events.append(Event(b"\n", None, None))
                data = data[1:]
        lines = (self._line + data).splitlines(keepends=True)
        self._line = b""
        if lines and lines[-1][-1:] not in {b"\n", b"\r"}:
            self._line = lines.pop()
        for line in lines:
            self._take(line, events)
        if lines and not self._line and lines[-1][-1:] == b"\r":
            self._after_cr = True
        self._bound()
        return events

    def rest(self) -> bytes:
        """What came after the last event."""
        return b"".join(self._lines) + self._line

    def _take(self, line: bytes, events: list[Event]) -> None:
        self._lines.append(line)
        self._bytes += len(line)
        if line in {b"\n", b"\r", b"\r\n"}:
            events.append(self._end())

    def _end(self) -> Event:
        lines, self._lines = self._lines, []
        self._bytes = 0
        raw = b"".join(lines)
        if self.oversize:
            self.oversize = False
            return Event(raw, None, None)
        data: list[bytes] = []
        last_id = None
        for line in lines:
            text = line.rstrip(b"\r\n")
            if not self._started:
                self._started = True
                text = text.removeprefix(_BOM)
            field, colon, value = text.partition(b":")
            if colon and value[:1] == b" ":
                value = value[1:]
            if field == b"data":
                data.append(value)
            elif field == b"id" and b"\0" not in value:
                last_id = value
        return Event(raw, b"\n".join(data) if data else None, last_id)

    def _bound(self) -> None:
        """Forget the bytes of an event that became too large; only its end matters then."""
        if self._bytes + len(self._line) > self.largest:
            self.oversize = True
            self._lines = []
            self._bytes = 0
            if len(self._line) > self.largest:
                self._line = b"x"  # not blank: the line's end must not be taken for the event's
