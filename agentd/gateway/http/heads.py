"""Heads that came before. Whoever talks to us sends the same one again and again, with another length and another body.

What the parser accepted once it accepts again, so a message that arrives whole behind a known head needs no parser.
Pure. Knows bytes and what they were read as; a head that is in any way unusual is never remembered.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Generic, TypeVar

from ..types import Headers
from .head import AnswerHead, RequestHead
from .limits import HttpLimits

__all__ = ["KnownAnswers", "KnownHeads"]

T = TypeVar("T")

_MOST: Final = 512  # heads that are remembered
_LONGEST: Final = 4096  # bytes of one
_LARGEST: Final = 64 * 1024  # bytes of a message that is looked for here
_LENGTHS: Final = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_LONGEST_LENGTH: Final = 9  # digits
# What makes a message end elsewhere than where its length says, or its connection go on otherwise.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})
_UNUSUAL_ANSWER: Final = _UNUSUAL | {b"connection", b"keep-alive"}
_BODILESS: Final = frozenset({204, 304})


class _Memory(Generic[T]):
    """Heads by their bytes; and by their bytes without the digits of the length, for one with another length."""

    def __init__(self, with_length: Callable[[T, bytes], T]) -> None:
        self._with_length = with_length
        self._exact: dict[bytes, tuple[T, int]] = {}
        self._alike: dict[bytes, T] = {}

    def find(self, data: bytes) -> tuple[T, int] | None:
        """The head of `data` and where its body starts, if it is exactly one message whose head was accepted."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST)
        if end < 0:
            return None
        exact = self._exact.get(data[:end])
        if exact is not None and exact[1] == len(data):
            return exact[0], end + 4
        parts = _parts(data, end)
        if parts is None:
            return None
        key, digits = parts
        alike = self._alike.get(key)
        if alike is None:
            return None
        head = self._with_length(alike, digits)
        self._keep(data, end, head)
        return head, end + 4

    def learn(self, data: bytes, head: T, length: bytes | None, body: bytes) -> None:
        """The parser read `data` as one message with this head, length (as the head states it) and body."""
        end = data.find(b"\r\n\r\n", 0, _LONGEST)
        parts = _parts(data, end) if end >= 0 else None
        if parts is None or length != parts[1] or data[end + 4 :] != body:
            return
        if len(self._alike) >= _MOST:
            self.clear()
        self._alike[parts[0]] = head
        self._keep(data, end, head)

    def clear(self) -> None:
        self._exact.clear()
        self._alike.clear()

    def _keep(self, data: bytes, end: int, head: T) -> None:
        if len(self._exact) >= _MOST:
            self._exact.clear()
        self._exact[data[:end]] = head, len(data)


def _parts(data: bytes, end: int) -> tuple[bytes, bytes] | None:
    """The head that ends at `end` without its length's digits, and those; None unless they say where `data` ends.

    A head that was accepted has one length in it, on a line of its own, so two heads with equal parts differ in nothing
    but the length.
    """
    if len(data) > _LARGEST:
        return None
    at = data.find(_LENGTHS[0], 0, end)
    if at < 0:
        at = data.find(_LENGTHS[1], 0, end)
        if at < 0:
            return None
    at += len(_LENGTHS[0])
    stop = data.find(b"\r", at, end + 1)
    digits = data[at:stop]
    if not digits.isdigit() or len(digits) > _LONGEST_LENGTH or int(digits) != len(data) - end - 4:
        return None
    return data[:at] + data[stop:end], digits


class KnownHeads:
    """The heads of requests to one server."""

    def __init__(self) -> None:
        self._memory = _Memory(_request_with_length)
        self._limits: HttpLimits | None = None

    def find(self, data: bytes, limits: HttpLimits) -> tuple[RequestHead, int] | None:
        """The head and where the body starts, if `data` is one request whose head was accepted under these limits.

        Its head is shared: not to be changed.
        """
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

    def find(self, data: bytes) -> tuple[AnswerHead, int] | None:
        """The head and where the body starts, if `data` is one answer whose head was accepted before."""
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
