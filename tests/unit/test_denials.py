"""What hosts denied, as the controller keeps it: replaced by newer words, bounded for a host and for all."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from controller.denials import DenialBook
from controller.wire.denials import MOST_DENIALS, Denial
from controller.wire.stream import Denials, agent_frame

START = datetime(2026, 1, 1, tzinfo=UTC)


def minute(number: int) -> datetime:
    return START + timedelta(minutes=number)


def denial(number: int, packets: int = 1, port: int = 1) -> Denial:
    return Denial(
        minute=minute(number),
        direction="in",
        source="fd77:7761:7264:1111:2222:3333:4444:5555",
        destination="fd77:7761:7264:1111:2222:3333:4444:6666",
        protocol="udplite",
        port=port,
        packets=packets,
    )


def test_a_newer_word_on_a_minute_replaces_the_older() -> None:
    book = DenialBook()
    book.heard("a", minute(0), (denial(0, 1),))
    book.heard("a", minute(0), (denial(0, 5), denial(0, 2, port=2)))
    assert [(item.node, item.packets) for item in book.newest()] == [("a", 5), ("a", 2)]


def test_the_newest_minute_comes_first_and_hosts_can_be_asked_alone() -> None:
    book = DenialBook()
    book.heard("a", minute(0), (denial(0),))
    book.heard("b", minute(2), (denial(2),))
    book.heard("a", minute(1), (denial(1),))
    assert [(item.node, item.minute) for item in book.newest()] == [
        ("b", minute(2)),
        ("a", minute(1)),
        ("a", minute(0)),
    ]
    assert [item.node for item in book.newest("b")] == ["b"]
    assert list(book.newest("c")) == []


def test_each_host_has_its_last_minutes() -> None:
    book = DenialBook(minutes=3)
    book.heard("quiet", minute(0), (denial(0),))
    for number in range(100):
        book.heard("loud", minute(number), (denial(number),))
    assert [item.minute for item in book.newest("loud")] == [minute(99), minute(98), minute(97)]
    assert len(list(book.newest("quiet"))) == 1


def test_all_hosts_together_are_bounded() -> None:
    book = DenialBook(denials=500)
    for host in range(100):
        for number in range(10):
            book.heard(str(host), minute(number), tuple(denial(number, port=port) for port in range(20)))
    assert len(list(book.newest())) == 500
    assert len(list(book.newest("99"))) == 200


def test_the_largest_frame_fits_into_the_stream() -> None:
    largest = tuple(denial(0, 10**9, 65535) for _ in range(MOST_DENIALS))
    text = Denials(minute=minute(0), denials=largest).model_dump_json()
    assert len(text) < 64 * 1024
    assert isinstance(agent_frame.validate_json(text), Denials)
    with pytest.raises(ValidationError):
        Denials(minute=minute(0), denials=(*largest, denial(0)))
