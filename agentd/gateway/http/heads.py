"""Heads that came before. A client sends the same one call after call, with another length and another body.

What the parser accepted once it accepts again, so a request that arrives whole behind a known head needs no parser.
Pure. Knows bytes and what they were read as; a head that is in any way unusual is never remembered.
"""

from dataclasses import replace
from typing import Final

from .head import RequestHead
from .limits import HttpLimits

__all__ = ["KnownHeads"]

_MOST: Final = 512  # heads that are remembered
_LONGEST: Final = 4096  # bytes of one
_LARGEST: Final = 64 * 1024  # bytes of a request that is looked for here
_LENGTHS: Final = (b"\r\ncontent-length: ", b"\r\nContent-Length: ")
_LONGEST_LENGTH: Final = 9  # digits
_NONE: Final[frozenset[bytes]] = frozenset()
# What makes a message end elsewhere than where its length says, or its connection go on otherwise.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade"})


class KnownHeads:
    """The heads of one server, by their bytes without the digits of the length."""

    def __init__(self) -> None:
        self._heads: dict[bytes, RequestHead] = {}
        self._limits: HttpLimits | None = None

    def find(self, data: bytes, limits: HttpLimits) -> tuple[RequestHead, bytes] | None:
        """The head and the body of `data`, if it is exactly one request whose head was accepted under these limits."""
        parts = _parts(data) if limits is self._limits else None
        if parts is None:
            return None
        key, digits, body = parts
        known = self._heads.get(key)
        if known is None:
            return None
        headers, fields = known.headers, known.fields
        if fields[b"content-length"] != digits:
            headers = [(name, digits) if name == b"content-length" else (name, value) for name, value in headers]
            fields = {**fields, b"content-length": digits}
        # whether its connection is kept is each request's own
        head = RequestHead(known.method, known.target, known.version, True, headers, fields, _NONE, known.passed)
        return head, data[body:]

    def learn(self, data: bytes, head: RequestHead, body: bytes, limits: HttpLimits) -> None:
        """The parser read `data` as one request with this head and this body, and it was accepted."""
        parts = _parts(data)
        if parts is None or not head.keep_alive or head.version != "1.1" or not _UNUSUAL.isdisjoint(head.fields):
            return
        key, digits, start = parts
        if data[start:] != body or head.fields.get(b"content-length") != digits or head.repeated:
            return
        if limits is not self._limits or len(self._heads) >= _MOST:
            self._heads.clear()
            self._limits = limits
        self._heads[key] = replace(head, passed={})


def _parts(data: bytes) -> tuple[bytes, bytes, int] | None:
    """The head without its length's digits, those digits, and where the body starts; None unless that is all there is.

    A head that was accepted has one length in it, on a line of its own, so two heads with equal parts differ in nothing
    but the length.
    """
    if len(data) > _LARGEST:
        return None
    end = data.find(b"\r\n\r\n", 0, _LONGEST)
    if end < 0:
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
    return data[:at] + data[stop:end], digits, end + 4
