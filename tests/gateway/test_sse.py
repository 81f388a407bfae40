"""Events in a stream of bytes, cut anywhere, against a reading of the whole stream in the plainest way."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.sse import EventReader

PIECES = [
    b"data: x",
    b"data:",
    b"data",
    b"data:y:z",
    b"id: 7",
    b"id",
    b"id: a\0b",
    b"event: e",
    b"retry: 9",
    b": c",
    b":",
    b"zz",
]


def plainly(stream: bytes) -> list[tuple[bytes, bytes | None]]:
    """What the HTML standard dispatches: the data of each event, and the id that it sets."""
    text = stream.removeprefix(b"\xef\xbb\xbf")
    lines = re.split(rb"\r\n|\n|\r", text)[:-1]  # what follows the last end of line is no line yet
    events: list[tuple[bytes, bytes | None]] = []
    data: list[bytes] = []
    last_id = None
    for line in lines:
        if not line:
            if data:
                events.append((b"\n".join(data), last_id))
            data, last_id = [], None
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"id" and b"\0" not in value:
            last_id = value
    return events


def read(pieces: list[bytes]) -> tuple[list[tuple[bytes, bytes | None]], bytes, EventReader]:
    reader = EventReader(1 << 20)
    events = [event for piece in pieces for event in reader.feed(piece)]
    raw = b"".join(event.raw for event in events) + reader.rest()
    return [(event.data, event.last_id) for event in events if event.data is not None], raw, reader


streams = st.lists(st.tuples(st.sampled_from([*PIECES, b""]), st.sampled_from([b"\n", b"\r\n", b"\r"]))).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


@given(streams, st.booleans(), st.lists(st.integers(0, 200)))
def test_any_stream_cut_anywhere_is_read_as_the_standard_says(stream: bytes, mark: bool, cuts: list[int]) -> None:
    if mark:
        stream = b"\xef\xbb\xbf" + stream
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[start:end] for start, end in pairwise(places)]
    events, raw, _ = read(pieces)
    assert events == plainly(stream)
    assert raw == stream


@given(st.binary(max_size=300), st.integers(1, 7))
def test_any_bytes_come_out_as_they_went_in(stream: bytes, size: int) -> None:
    _, raw, _ = read([stream[start : start + size] for start in range(0, len(stream), size)])
    assert raw == stream


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_between_is_true_exactly_between_events(end: bytes) -> None:
    stream = (b"data: x" + end + end) * 2
    reader = EventReader(1000)
    for position, byte in enumerate(stream, 1):
        reader.feed(bytes([byte]))
        whole = len(plainly(stream[:position])) * len(b"data: x" + end + end)
        # after CR CR a LF may still come that belongs to the last CR; nothing of the next event has come then
        assert reader.between == (position in {whole, whole - len(end) + 1} and position >= whole - 1 and whole > 0)


def test_an_event_that_is_too_large_has_no_data_and_the_next_one_does() -> None:
    reader = EventReader(100)
    assert reader.feed(b"data: " + b"x" * 200) == []
    assert reader.oversize
    assert not reader.between
    events = reader.feed(b"\n\ndata: y\n\n")
    assert [event.data for event in events] == [None, b"y"]
    assert not reader.oversize


def test_a_large_event_of_many_lines_is_bounded_too() -> None:
    reader = EventReader(100)
    for _ in range(1000):
        reader.feed(b"data: 0123456789\n")
    assert len(reader.rest()) <= 200
    assert [event.data for event in reader.feed(b"\n")] == [None]
