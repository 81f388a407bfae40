"""Asks a router for a port by UPnP: finds it on its network, reads its description, calls it over HTTP.

Talks to the default router alone, whatever that says and whoever else answers. Knows nothing of when to ask.
"""

import asyncio
import secrets
import socket
from collections.abc import Mapping
from typing import Any, Final

import httptools

from controller.wire.base import Address
from controller.wire.netcheck import MappingProtocol

from .paths import igd
from .paths.igd import IgdError, Place, Service
from .paths.router import Granted, RouterError, granted
from .port_control import LIFETIME

__all__ = ["Upnp"]

_WAITS: Final = (1.0, 2.0)  # seconds for an answer, which the router may delay by one
_PATIENCE: Final = 5.0  # seconds for one exchange over HTTP
_MOST_SERVICES: Final = 4
_TAKEN: Final = (718, 729)  # ConflictInMappingEntry, ConflictWithOtherMechanisms
_NO_SUCH_CALL: Final = (401, 501, 602, 606)
_OTHER_PORTS: Final = 3
_NAME: Final = "wardmesh"
# Twice what is asked again for: nothing tells that the router forgot, and asking costs two exchanges.
_SURE: Final = 1200.0  # seconds


class Upnp:
    """One UDP port of an internet gateway device, version 1 or 2."""

    protocol: Final[MappingProtocol] = "upnp"

    def __init__(self, port: int) -> None:
        self._port = port
        self._external: int | None = None
        self._service: Service | None = None  # that gave it

    async def map(self, router: Address) -> Granted:
        """Map, or renew. Raises RouterError, OSError."""
        place, own = await _search(router)
        status, description = await _exchange(router, place, "GET", {})
        if status != 200:
            raise RouterError(f"it answers with HTTP status {status} instead of its description")
        problem = RouterError("it has no connection to the internet")
        for service in igd.find(description, place, router)[:_MOST_SERVICES]:
            try:
                return await self._map(router, service, own)
            except RouterError as error:
                problem = error
        raise problem

    async def end(self, router: Address) -> None:
        """Give the port back. Raises RouterError, OSError."""
        if self._service is not None and self._external is not None:
            await _call(router, self._service, "DeletePortMapping", _which(self._external))

    async def _map(self, router: Address, service: Service, own: Address) -> Granted:
        answer = await _call(router, service, "GetExternalIPAddress", {})
        outside = answer.get("NewExternalIPAddress", "")
        try:
            granted(self.protocol, outside, self._port, _SURE)  # before anything is mapped
        except ValueError as error:
            raise RouterError(f"it has no address outside ({outside[:40]!r})") from error
        external = await self._add(router, service, own)
        self._external, self._service = external, service
        return granted(self.protocol, outside, external, _SURE)

    async def _add(self, router: Address, service: Service, own: Address) -> int:
        def wanted(external: int) -> dict[str, str]:
            return {
                **_which(external),
                "NewInternalPort": str(self._port),
                "NewInternalClient": own,
                "NewEnabled": "1",
                "NewPortMappingDescription": _NAME,
                "NewLeaseDuration": str(LIFETIME),
            }

        first = self._external or self._port
        if service.finds_ports:
            try:
                answer = await _call(router, service, "AddAnyPortMapping", wanted(first))
                return igd.port_of(answer.get("NewReservedPort", ""))
            except IgdError as error:
                if error.code not in _NO_SUCH_CALL:
                    raise
        for external in (first, *(1024 + secrets.randbelow(64_000) for _ in range(_OTHER_PORTS))):
            try:
                await _call(router, service, "AddPortMapping", wanted(external))
            except IgdError as error:
                if error.code not in _TAKEN:
                    raise
            else:
                return external
        raise RouterError(f"port {first} and {_OTHER_PORTS} others are in use there")


def _which(external: int) -> dict[str, str]:
    # In this order: some routers read arguments by their place (UDA section 3.1.1 demands it).
    return {"NewRemoteHost": "", "NewExternalPort": str(external), "NewProtocol": "UDP"}


async def _search(router: Address) -> tuple[Place, Address]:
    """Where its description is, and this host's address on its network."""
    loop = asyncio.get_running_loop()
    own = _own_address(router)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
        sock.bind((own, 0))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(own))
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)  # on this network only
        for wait in _WAITS:
            # To the router itself as well: a firewall here may let in the answer to that alone.
            for target in (igd.SSDP_GROUP, router):
                sock.sendto(igd.search(), (target, igd.SSDP_PORT))
            try:
                async with asyncio.timeout(wait):
                    while True:
                        data, (source, _) = await loop.sock_recvfrom(sock, 4096)
                        place = igd.located(data, router) if source == router else None
                        if place is not None:
                            return place, own
                        # Who sends without end is to keep us from nothing: while something waits, it is had at once.
                        await asyncio.sleep(0)
            except TimeoutError:
                pass
    raise RouterError("it does not answer")


def _own_address(router: Address) -> Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect((router, igd.SSDP_PORT))
        return str(sock.getsockname()[0])


async def _call(router: Address, service: Service, action: str, arguments: Mapping[str, str]) -> dict[str, str]:
    headers, body = igd.call(service, action, arguments)
    return igd.read(action, *await _exchange(router, service.control, "POST", headers, body))


class _Answer:
    """What httptools calls while it reads one answer."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.over = False

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.over = True


async def _exchange(
    router: Address, place: Place, method: str, headers: Mapping[str, str], body: bytes = b""
) -> tuple[int, bytes]:
    """Status and body of one answer. Raises RouterError, OSError."""
    head = {"Host": f"{router}:{place.port}", "Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = (f"{method} {place.path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), "", "")
    try:
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection(router, place.port)
            try:
                writer.write("\r\n".join(lines).encode() + body)
                return await _answer(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise RouterError(f"its web server at port {place.port} does not answer within {_PATIENCE:.0f} s") from None


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    answer, size = _Answer(), 0
    parser: Any = httptools.HttpResponseParser(answer)
    try:
        while not answer.over and (data := await reader.read(16384)):
            size += len(data)
            if size > igd.LARGEST:
                raise RouterError(f"it answers with more than {igd.LARGEST // 1024} KiB")
            parser.feed_data(data)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
        raise RouterError("its answer is not HTTP") from error
    return int(parser.get_status_code()), bytes(answer.body)
