"""Asks a router for a port by PCP and by NAT-PMP, which share its UDP port 5351, and hears what it announces.

Knows nothing of when to ask.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Final, TypeVar

from controller.wire.base import Address
from controller.wire.netcheck import MappingProtocol

from .paths import natpmp, pcp
from .paths.router import Granted, RouterError, granted

__all__ = ["LIFETIME", "Announcements", "NatPmp", "Pcp"]

T = TypeVar("T")

log = logging.getLogger("agentd.port_control")

LIFETIME: Final = 7200  # seconds; RFC 6886 section 3.3 recommends that
_WAITS: Final = (0.25, 0.5, 1.0)  # seconds; RFC 6886 section 3.1 goes on to 64, but routers that do it answer at once
_LONGEST: Final = 1100  # bytes, RFC 6887 section 7


class Pcp:
    """One UDP port by PCP (RFC 6887). `nonce`: what proves that it is ours, the same after a restart."""

    protocol: Final[MappingProtocol] = "pcp"

    def __init__(self, port: int, nonce: bytes) -> None:
        self._port, self._nonce = port, nonce
        self._external: int | None = None

    async def map(self, router: Address) -> Granted:
        """Map, or renew. Raises RouterError, OSError."""
        found = await self._ask(router, self._external or self._port, LIFETIME)
        self._external = found.port
        return granted(self.protocol, found.address, found.port, found.lifetime, found.epoch)

    async def end(self, router: Address) -> None:
        """Give the port back. Raises RouterError, OSError."""
        await self._ask(router, 0, 0)

    async def _ask(self, router: Address, external: int, lifetime: int) -> pcp.Assigned:
        def is_answer(data: bytes) -> pcp.Assigned | None:
            found = pcp.read(data)
            return found if (found.nonce, found.internal) == (self._nonce, self._port) else None

        with _connected(router) as sock:
            question = pcp.ask_map(sock.getsockname()[0], self._nonce, self._port, external, lifetime)
            return await _ask(sock, question, is_answer)


class NatPmp:
    """One UDP port by NAT-PMP (RFC 6886)."""

    protocol: Final[MappingProtocol] = "nat-pmp"

    def __init__(self, port: int) -> None:
        self._port = port

    async def map(self, router: Address) -> Granted:
        """Map, or renew. Raises RouterError, OSError."""
        with _connected(router) as sock:
            outside = await _ask(sock, natpmp.ask_external(), _external)
            mapped = await _ask(sock, natpmp.ask_mapping(self._port, self._port, LIFETIME), _mapped)
        if mapped.internal != self._port:
            raise RouterError(f"it mapped port {mapped.internal} instead of {self._port}")
        return granted(self.protocol, outside.address, mapped.external, mapped.lifetime, outside.epoch)

    async def end(self, router: Address) -> None:
        """Give the port back. Raises RouterError, OSError."""
        with _connected(router) as sock:
            await _ask(sock, natpmp.ask_mapping(self._port, 0, 0), _mapped)


def _external(data: bytes) -> natpmp.External | None:
    found = natpmp.read(data)
    return found if isinstance(found, natpmp.External) else None


def _mapped(data: bytes) -> natpmp.Mapped | None:
    found = natpmp.read(data)
    return found if isinstance(found, natpmp.Mapped) else None


class Announcements:
    """What the router tells everybody at once: that it began anew, or is somewhere else."""

    def __init__(self, heard: Callable[[Address, pcp.Announced], None]) -> None:
        """`heard` is called with who says so."""
        self._heard = heard
        self._socket: socket.socket | None = None

    def __enter__(self) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            # Others on this host may listen too (RFC 6886 section 3.2.1). Every host is a member of the group already.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((pcp.ANNOUNCE_GROUP, pcp.ANNOUNCE_PORT))
        except OSError as error:
            sock.close()
            log.info("a router that begins anew is noticed at the next renewal only: %s", error)
            return
        self._socket = sock
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable, sock)

    def __exit__(self, *_: object) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self, sock: socket.socket) -> None:
        try:
            data, (source, port) = sock.recvfrom(_LONGEST)
        except OSError as error:
            log.debug("an announcement could not be read: %s", error)
            return
        found = pcp.announced(data) if port == natpmp.SERVER_PORT else None
        if found is not None:
            self._heard(source, found)


def _connected(router: Address) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    try:
        sock.connect((router, natpmp.SERVER_PORT))  # so that nobody else can answer (RFC 6886 section 3.1)
    except OSError:
        sock.close()
        raise
    return sock


async def _ask(sock: socket.socket, question: bytes, is_answer: Callable[[bytes], T | None]) -> T:
    loop = asyncio.get_running_loop()
    for wait in _WAITS:
        sock.send(question)
        try:
            async with asyncio.timeout(wait):
                while True:
                    found = is_answer(await loop.sock_recv(sock, _LONGEST))
                    if found is not None:
                        return found
                    await asyncio.sleep(0)  # while something waits, it is had at once: nothing else would have a turn
        except TimeoutError:
            pass
    raise RouterError("it does not answer")
