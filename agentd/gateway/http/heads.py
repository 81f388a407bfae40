"""Heads that came before. Whoever talks to us sends the same one again and again, with another length and another body.

What the parser accepted once it accepts again, so a message that arrives whole behind a known head needs no parser.
Pure. Knows bytes and what they were read as; a head that is in any way unusual is never remembered.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar

from ..types import Headers, value
from .head import AnswerHead, RequestHead
from .limits import HttpLimits

__all__ = ["LARGEST", "Known", "KnownAnswers", "KnownHeads"]

T = TypeVar("T")

_MOST: Final = 512  # heads that are remembered
_LONGEST: Final = 4096  # bytes of one
LARGEST: Final = 64 * 1024  # bytes of a message that is looked for here
_LENGTHS: Final = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_LONGEST_LENGTH: Final = 9  # digits
# What makes a message end elsewhere than where its length says, or its connection go on otherwise.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_UNUSUAL_ANSWER: Final = _UNUSUAL | {b"connection", b"keep-alive"}
_BODILESS: Final = frozenset({204, 304})


@value
class Known(Generic[T]):
    """A message whose head came before. `raw` is the head with its empty line, `size` the bytes of the whole message.

    `head` is shared: not to be changed.
    """

    head: T
    raw: bytes
    size: int

    def is_all_of(self, data: bytes) -> bool:
        """Is `data` exactly one message with this head and length?"""
        return len(data) == self.size and data.startswith(self.raw)

    def body(self, data: bytes) -> bytes:
        """What follows the head in `data`."""
        return data[len(self.raw) :]


class _Memory(Generic[T]):
    """Heads by their bytes; and by their bytes without the digits of the length, for one with another length."""

    def __init__(self, with_length: Callable[[T, bytes], T]) -> None:
        self._with_length = with_length
        self._exact: dict[bytes, Known[T]] = {}
        self._alike: dict[bytes, T] = {}

    def find(self, data: bytes) -> Known[T] | None:
        """The message that `data` begins with, if its head is there and was accepted."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST)
        if end < 0:
            return None
        raw = data[: end + 4]
        exact = self._exact.get(raw)
        if exact is not None:
            return exact
        parts = _parts(raw)
        if parts is None:
            return None
        key, digits = parts
        alike = self._alike.get(key)
        return self._keep(raw, digits, self._with_length(alike, digits)) if alike is not None else None

    def learn(self, data: bytes, head: T, length: bytes | None, body: bytes) -> None:
        """The parser read `data` as one message with this head, length (as the head states it) and body."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST)
        raw = data[: end + 4]
        parts = _parts(raw) if end >= 0 else None
        if parts is None or length != parts[1] or int(length) != len(body) or data[end + 4 :] != body:
            return
        if len(self._alike) >= _MOST:
            self.clear()
        self._alike[parts[0]] = head
        self._keep(raw, length, head)

    def clear(self) -> None:
        self._exact.clear()
        self._alike.clear()

    def _keep(self, raw: bytes, digits: bytes, head: T) -> Known[T]:
        if len(self._exact) >= _MOST:
            self._exact.clear()
        known = self._exact[raw] = Known(head, raw, len(raw) + int(digits))
        return known


def _parts(raw: bytes) -> tuple[bytes, bytes] | None:
    """The head without its length's digits, and those; None for one of a message that is not looked for here.

    A head that was accepted has one length in it, on a line of its own, so two heads with equal parts differ in nothing
    but the length.
    """
    at = raw.find(_LENGTHS[0])
    if at < 0:
        at = raw.find(_LENGTHS[1])
        if at < 0:
            return None
    at += len(_LENGTHS[0])
    stop = raw.find(b"\r", at)
    digits = raw[at:stop]
    if not digits.isdigit() or len(digits) > _LONGEST_LENGTH or len(raw) + int(digits) > LARGEST:
        return None
    return raw[:at] + raw[stop:], digits


class KnownHeads:
    """The heads of requests to one server."""

    def __init__(self) -> None:
        self._memory = _Memory(_request_with_length)
        self._limits: HttpLimits | None = None

    def find(self, data: bytes, limits: HttpLimits) -> Known[RequestHead] | None:
        """The request that `data` begins with, if its head is there and was accepted under these limits."""
        return self._memory.find(data) if limits is self._limits else None

    def learn(self, data: bytes, head: RequestHead, body: bytes, limits: HttpLimits) -> None:
        """The parser read `data` as one request with this head and this body, accepted it, and keeps the connection."""
        if head.version != "1.1" or head.repeated or not _UNUSUAL.isdisjoint(head.fields):
            return
        if limits is not self._limits:
            self._memory.clear()
            self._limits = limits
        self._memory.learn(data, replace(head, kin=object()), head.fields.get(b"content-length"), body)


def _request_with_length(head: RequestHead, digits: bytes) -> RequestHead:
    headers = _headers_with_length(head.headers, digits)
    return replace(head, headers=headers, fields={**head.fields, b"content-length": digits})


class KnownAnswers:
    """The heads of one upstream's answers."""

    def __init__(self) -> None:
        self._memory = _Memory(_answer_with_length)

    def find(self, data: bytes) -> Known[AnswerHead] | None:
        """The answer that `data` begins with, if its head is there and was accepted."""
        return self._memory.find(data)

    def learn(self, data: bytes, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """The parser read `data` as one answer with this head and body, after which the connection is kept."""
        fields = dict(headers)
        usual = _UNUSUAL_ANSWER.isdisjoint(fields) and len(fields) == len(headers)
        if usual and status >= 200 and status not in _BODILESS and data.startswith(b"HTTP/1.1 "):
            self._memory.learn(data, AnswerHead(status, headers, object()), fields.get(b"content-length"), body)


def _answer_with_length(head: AnswerHead, digits: bytes) -> AnswerHead:
    return AnswerHead(head.status, _headers_with_length(head.headers, digits), head.kin)


def _headers_with_length(headers: Headers, digits: bytes) -> list[tuple[bytes, bytes]]:
    return [(name, digits) if name == b"content-length" else (name, value) for name, value in headers]
