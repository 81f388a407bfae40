"""Measures how long a NAT or firewall remembers a silent UDP flow (RFC 5780 section 4.6), with a STUN server's help.

A flow is opened and left alone; then another asks the server to answer to the first one's port outside (RESPONSE-PORT).
What the answer comes through is still remembered. On sockets of its own: WireGuard's port is never silent.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from controller.wire.base import Endpoint, split_endpoint
from controller.wire.stun import LARGEST, Binding, StunError, decode, encode

from .paths.lifetime import LIFETIMES, USUAL_KEEPALIVE, keepalive, longest

__all__ = ["Keeping", "lifetime"]

log = logging.getLogger("agentd.binding")

_ANSWER: Final = 1.0  # seconds
_AGAIN: Final = 6 * 3600.0
_TRIES: Final = 4
# Linux takes a flow that was spoken on in both directions for longer than 2 s for one that lasts, and remembers it for
# longer (nf_conntrack_proto_udp.c), as it does WireGuard's.
_OPENING: Final = (0.0, 1.0, 1.5)
# No answer is longer than its question.
_SOFTWARE: Final = b"wardmesh agentd     "


async def lifetime(server: Endpoint, lifetimes: Sequence[float] = LIFETIMES) -> float | None:
    """Seconds, at least, that a silent flow to this server lives; None when the server does not help.

    Takes as long as the longest that is tried.
    """
    survived = await asyncio.gather(*(_survives(server, idle) for idle in lifetimes))
    if any(alive is None for alive in survived):
        return None
    return longest([bool(alive) for alive in survived])


async def _survives(server: Endpoint, idle: float) -> bool | None:
    try:
        with _socket(server) as silent, _socket(server) as other:
            mapped = None
            for pause in _OPENING:
                await asyncio.sleep(pause)
                mapped = await _answer(silent, silent) or mapped
            if mapped is None:
                return None
            await asyncio.sleep(idle)
            port = split_endpoint(mapped)[1]
            for _ in range(_TRIES):
                if await _answer(other, silent, port) is not None:
                    return True
            # Is it the flow that is gone, or the server?
            return None if await _answer(other, other) is None else False
    except OSError:
        return None  # there is no way to the server


async def _answer(asking: socket.socket, hearing: socket.socket, port: int | None = None) -> Endpoint | None:
    """Ask on the one, hear the answer on the other: from where the server saw the question, None without an answer."""
    loop, transaction = asyncio.get_running_loop(), os.urandom(12)
    asking.send(encode(Binding("request", transaction, software=_SOFTWARE, response_port=port)))
    try:
        async with asyncio.timeout(_ANSWER):
            while True:
                found = _read(await loop.sock_recv(hearing, LARGEST))
                if found is not None and found.transaction == transaction:
                    return found.mapped
    except TimeoutError:
        return None


def _read(data: bytes) -> Binding | None:
    try:
        return decode(data)
    except StunError:
        return None


def _socket(server: Endpoint) -> socket.socket:
    host, port = split_endpoint(server)
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    made.setblocking(False)
    made.connect((host, port))
    return made


class Keeping:
    """How often a flow is to be kept alive: as measured behind the NAT that this host has now, as usual before that."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.seconds = USUAL_KEEPALIVE
        self.lived: float | None = None  # seconds, at least; None: not measured
        self._changed = changed
        self._server: Endpoint | None = None
        self._wake = asyncio.Event()

    def behind_nat_of(self, server: Endpoint | None) -> None:
        """A NAT is between this host and this STUN server; None: there is no NAT."""
        if server != self._server:
            self._server = server
            self._wake.set()

    def measure_again(self) -> None:
        """This host is somewhere else."""
        self._wake.set()

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._wake.clear()
            lived = await lifetime(self._server) if self._server is not None else None
            if lived is not None:
                log.info("flows are remembered", extra={"seconds": lived})
            if lived != self.lived:
                self.lived, self.seconds = lived, keepalive(lived)
                self._changed()
            try:
                async with asyncio.timeout(_AGAIN):
                    await self._wake.wait()
            except TimeoutError:
                pass  # another router may be there by now
