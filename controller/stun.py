"""The STUN server: tells whoever asks from where it was seen, so that a host behind a NAT learns its place outside.

Stateless but for the rate limit. It answers Binding requests and nothing else, once each, to where they came from.
Knows nothing of the mesh: it needs no key, because it tells a stranger only what the stranger's packet said.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from controller.settings import Listen, SettingsError
from controller.wire.base import format_endpoint
from controller.wire.stun import Binding, StunError, decode, encode

__all__ = ["RateLimit", "StunServer", "answer", "listen"]

_log = logging.getLogger(__name__)
_RATE: Final = 10.0  # answers a second to one source; an agent asks a few times in a minute
_BURST: Final = 40.0  # many hosts behind one NAT that start at once
_SOURCES: Final = 4096
_AT_ONCE: Final = 64  # datagrams between two looks at everything else that the controller does


class RateLimit:
    """A token bucket for each source: an IPv4 address, or the /64 that one IPv6 host has. Bounded in memory."""

    def __init__(self, rate: float = _RATE, burst: float = _BURST, sources: int = _SOURCES) -> None:
        self._rate, self._burst, self._sources = rate, burst, sources
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, and when they were counted

    def allows(self, address: str, now: float) -> bool:
        """True when this source may have one more answer, at `now` (seconds of any clock that only goes forward)."""
        source = _source(address)
        tokens, since = self._buckets.pop(source, (self._burst, now))
        tokens = min(self._burst, tokens + (now - since) * self._rate)
        allowed = tokens >= 1
        self._buckets[source] = (tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > self._sources:
            self._buckets.popitem(last=False)  # who was silent longest
        return allowed


def _source(address: str) -> str:
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def answer(data: bytes, address: str, port: int) -> tuple[bytes, int] | None:
    """The answer to a datagram from there, and the port of that address for it; None for what is no Binding request.

    It goes to another port when the request says so (RFC 5780 section 7.5): to the same host, and no longer than it.
    """
    try:
        request = decode(data)
    except StunError:
        return None
    if request.kind != "request":
        return None
    reply = encode(Binding("answer", request.transaction, mapped=format_endpoint(address, port)))
    if request.response_port is not None and len(reply) > len(data):
        return None
    return reply, request.response_port or port


class StunServer:
    """Answers on one socket from `start` to `close`."""

    def __init__(self, listening: socket.socket, clock: Callable[[], float] | None = None) -> None:
        self._socket = listening
        self._clock = clock
        self._limit = RateLimit()

    @property
    def port(self) -> int:
        """The UDP port that it listens on."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Answer from now on, on the running event loop."""
        loop = asyncio.get_running_loop()
        self._clock = self._clock or loop.time
        loop.add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Stop."""
        if self._clock is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        assert self._clock is not None
        for _ in range(_AT_ONCE):
            try:
                data, source = self._socket.recvfrom(2048)
            except BlockingIOError:
                return
            except OSError as error:
                _log.debug("STUN: %s", error)  # an earlier answer came to nobody
                continue
            address = _plain(source[0])
            if not source[1] or not self._limit.allows(address, self._clock()):
                continue
            reply = answer(data, address, source[1])
            if reply is not None:
                try:
                    self._socket.sendto(reply[0], (source[0], reply[1], *source[2:]))
                except OSError as error:
                    _log.debug("STUN: no answer to %s: %s", address, error)  # it asks again


def _plain(address: str) -> str:
    """The address as the other end has it: a socket of both families shows IPv4 as ::ffff:192.0.2.1."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return str(parsed)


def listen(where: Listen) -> list[StunServer]:
    """Servers on this port and on the next: two answers tell a host whether its NAT maps both alike.

    Port 0 takes free ones. Raises SettingsError.
    """
    sockets: list[socket.socket] = []
    try:
        for offset in (0, 1):
            sockets.append(_bind(where.host, where.port + offset if where.port else 0))
    except OSError as error:
        for each in sockets:
            each.close()
        reasons = {
            errno.EADDRINUSE: "another program listens there",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise SettingsError(
            f"cannot listen for STUN on {where} (UDP) and the port after it: {reason}; choose with --stun-listen "
            f"ADDRESS:PORT, or do without: --stun-listen off"
        ) from error
    return [StunServer(each) for each in sockets]


def _bind(host: str, port: int) -> socket.socket:
    six = ":" in host
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        made.setblocking(False)
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, host != "::")
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made
