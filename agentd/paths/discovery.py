"""From where this host is seen, by what STUN servers answer: its endpoint behind a NAT, and what kind of NAT. Pure.

Two ports of one server are asked: a NAT that maps both alike maps every peer alike, and one endpoint is good for all
(RFC 4787 section 4.1). One that tells addresses apart but not ports is not seen by this; such are rare.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from controller.wire.base import Endpoint, split_endpoint
from controller.wire.netcheck import NatKind

__all__ = ["Discovery", "Question", "ServerView"]

_QUICK: Final = (0.5, 1.0, 2.0, 4.0)  # seconds until the next question, RFC 8489 section 6.2.1
_KEEP: Final = 25.0  # behind a NAT: nobody but the servers tells when it gives this host another endpoint
_LOOK: Final = 3600.0  # without a NAT: this host's own addresses tell of themselves when they change
_AWAY: Final = 300.0  # a server that does not answer


@dataclass(frozen=True, slots=True)
class Question:
    """Ask this server now."""

    server: Endpoint
    transaction: bytes


@dataclass(frozen=True, slots=True)
class ServerView:
    """A server, for people. `rtt` in seconds; `mapped`: from where it sees this host, None without an answer."""

    server: Endpoint
    mapped: Endpoint | None
    rtt: float | None


@dataclass(slots=True)
class _Server:
    due: float
    tries: int = 0
    transaction: bytes = b""
    sent: float = 0.0
    mapped: Endpoint | None = None
    rtt: float | None = None


class Discovery:
    """The questions of one host. `own` are its endpoints without any NAT. Times as in `Checks`."""

    def __init__(self) -> None:
        self._servers: dict[Endpoint, _Server] = {}
        self._own: frozenset[Endpoint] = frozenset()
        self.forwarded: Endpoint | None = None  # the port of a router that leads here

    def ask_all(self, servers: Iterable[Endpoint], own: Iterable[Endpoint], now: float) -> None:
        """Begin anew. What was learned is kept, unless this host's own endpoints are others now."""
        before = self._servers if frozenset(own) == self._own else {}
        self._own = frozenset(own)
        self._servers = {server: _Server(now) for server in servers}
        for server, fresh in self._servers.items():
            if server in before:
                fresh.mapped, fresh.rtt = before[server].mapped, before[server].rtt

    def due(self, transactions: Iterator[bytes], now: float) -> list[Question]:
        """Whom to ask now."""
        asked = []
        for endpoint, server in self._servers.items():
            if server.due > now:
                continue
            if server.tries >= len(_QUICK):  # none of these was answered
                server.mapped = server.rtt = None
                server.tries = 0
                server.due = now + _AWAY
                continue
            server.transaction, server.sent = next(transactions), now
            server.due = now + _QUICK[server.tries]
            server.tries += 1
            asked.append(Question(endpoint, server.transaction))
        return asked

    def answered(self, transaction: bytes, source: Endpoint, mapped: Endpoint | None, now: float) -> bool:
        """True when this was the answer to a question of ours."""
        server = self._servers.get(source)
        if server is None or mapped is None or not server.transaction or server.transaction != transaction:
            return False
        server.mapped, server.rtt, server.transaction, server.tries = mapped, now - server.sent, b"", 0
        server.due = now + (_LOOK if mapped in self._own else _KEEP)
        return True

    def wake_at(self) -> float | None:
        """When somebody is to be asked."""
        return min((server.due for server in self._servers.values()), default=None)

    @property
    def reflexive(self) -> tuple[Endpoint, ...]:
        """Where this host is seen, if that is none of its own endpoints: of each family, what the first server says.

        And a router's port that leads here; one at an address that no server sees is inside of a further NAT.
        """
        found: dict[bool, Endpoint] = {}
        for server in self._servers.values():
            if server.mapped is not None:
                found.setdefault(_is_six(server.mapped), server.mapped)
        seen = dict.fromkeys(mapped for mapped in found.values() if mapped not in self._own)
        outside = {split_endpoint(endpoint)[0] for endpoint in seen}
        if self.forwarded is not None and split_endpoint(self.forwarded)[0] in outside:
            seen[self.forwarded] = None
        return tuple(seen)

    @property
    def translated_by(self) -> Endpoint | None:
        """The first server that a NAT is in between, of IPv4 before IPv6; None without a NAT."""
        found = [
            endpoint
            for endpoint, server in self._servers.items()
            if server.mapped is not None and server.mapped not in self._own
        ]
        return min(found, key=_is_six, default=None)

    @property
    def is_four_translated(self) -> bool:
        """True when a NAT is in between for IPv4, the only family whose routers are asked for ports."""
        return self.translated_by is not None and not _is_six(self.translated_by)

    @property
    def nat(self) -> NatKind:
        """What is between this host and the servers, for IPv4 (for IPv6 where there is no IPv4)."""
        mapped = [server.mapped for server in self._servers.values() if server.mapped is not None]
        seen = [each for each in mapped if not _is_six(each)] or mapped
        if not seen:
            return "unknown"
        if all(each in self._own for each in seen):
            return "none"
        if len(seen) < 2:
            return "unknown"
        return "endpoint-independent" if len(set(seen)) == 1 else "endpoint-dependent"

    @property
    def views(self) -> tuple[ServerView, ...]:
        """All servers."""
        return tuple(ServerView(endpoint, server.mapped, server.rtt) for endpoint, server in self._servers.items())


def _is_six(endpoint: Endpoint) -> bool:
    return ":" in split_endpoint(endpoint)[0]
