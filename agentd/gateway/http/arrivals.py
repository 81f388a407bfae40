"""What arrives on one connection while no request is unfinished: requests behind known heads, and bytes for the parser.

Many clients send a head and its body apart, and a tunnel cuts what is longer than its packets. Pure; when the wait for
the rest has been long enough is known elsewhere.
"""

from .head import RequestHead
from .heads import LARGEST, Known, KnownHeads
from .limits import HttpLimits

__all__ = ["Arrivals"]


class Arrivals:
    """The pieces of one request, until it is whole or turns out to be the parser's."""

    __slots__ = ("_expected", "_heads", "_last", "_limits", "_missing", "_parsed", "_pieces")

    def __init__(self, heads: KnownHeads, limits: HttpLimits) -> None:
        self._heads = heads
        self._limits = limits
        self._last: Known[RequestHead] | None = None  # on this connection: the next is most often like it
        self._expected: Known[RequestHead] | None = None  # whose pieces came
        self._pieces: list[bytes] = []
        self._missing = 0  # bytes of it
        self._parsed = b""  # of a request that is the parser's, as far as it may be remembered

    @property
    def unfinished(self) -> bool:
        """Has a known head come whose body has not?"""
        return self._expected is not None

    def take(self, data: bytes) -> tuple[RequestHead, bytes] | bytes | None:
        """The request that is whole now, its head (shared: not to be changed) and its body; or what is for the parser.

        None: the rest is to come.
        """
        known = self._last
        if (
            known is None
            or self._expected is not None
            or known.size != len(data)  # as `is_all_of`, without a call for every request
            or not data.startswith(known.raw)
        ):
            if self._expected is not None:
                return self._put_together(data)
            known = self._heads.find(data, self._limits)
            if known is None or known.size < len(data):
                return data
            self._last = known
            if known.size > len(data):
                self._expected, self._missing = known, known.size - len(data)
                self._pieces.append(data)
                return None
        return known.head, known.body(data)

    def _put_together(self, data: bytes) -> tuple[RequestHead, bytes] | bytes | None:
        self._pieces.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return None
        known, whole = self._expected, self.release()
        return (known.head, known.body(whole)) if known is not None and self._missing == 0 else whole

    def parsed(self, data: bytes, *, anew: bool) -> None:
        """The parser is fed this. `anew`: it begins a request."""
        if anew:
            self._parsed = data
        elif self._parsed:
            self._parsed = self._parsed + data if len(self._parsed) < LARGEST else b""

    def learn(self, head: RequestHead, body: bytes) -> None:
        """The parser has read one request in what it was fed, and the connection is kept."""
        data, self._parsed = self._parsed, b""
        self._heads.learn(data, head, body, self._limits)

    def release(self) -> bytes:
        """What came of a request that is not whole: somebody else is to wait for the rest."""
        whole = b"".join(self._pieces)
        self._pieces.clear()
        self._expected = None
        return whole
