"""What a stream writes goes to TLS in pieces, whole and in order; all else is the transport's own affair."""

import asyncio

import pytest

from controller.transport import PIECE, InPieces


class Recording(asyncio.Transport):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 5)})
        self.written: list[bytes] = []
        self.called: list[str] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return "close" in self.called

    def close(self) -> None:
        self.called.append("close")

    def abort(self) -> None:
        self.called.append("abort")

    def pause_reading(self) -> None:
        self.called.append("pause_reading")

    def resume_reading(self) -> None:
        self.called.append("resume_reading")


@pytest.fixture
def inner() -> Recording:
    return Recording()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 1_000_003])
def test_no_write_is_larger_than_a_piece_and_nothing_is_lost(inner: Recording, size: int) -> None:
    frame = bytes(number % 251 for number in range(size))
    InPieces(inner).write(frame)
    assert b"".join(inner.written) == frame
    assert all(len(piece) <= PIECE for piece in inner.written)


def test_the_rest_of_it_is_the_transport_within(inner: Recording) -> None:
    transport = InPieces(inner)
    assert transport.get_extra_info("peername") == ("192.0.2.1", 5)
    assert not transport.is_closing()
    transport.pause_reading()
    transport.resume_reading()
    transport.close()
    transport.abort()
    assert transport.is_closing()
    assert inner.called == ["pause_reading", "resume_reading", "close", "abort"]
