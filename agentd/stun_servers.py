"""Who is asked from where this host is seen: the controller's STUN."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from typing import Final, Literal
from urllib.parse import urlsplit

from controller.wire.base import Endpoint, format_endpoint

__all__ = ["find_servers", "follow_servers", "stun_of"]

log = logging.getLogger("agentd.stun_servers")

_AGAIN: Final = 60.0  # seconds


def stun_of(url: str, port: int | Literal[False]) -> tuple[str, int] | None:
    """The controller's STUN by its URL; None when it is not to be asked."""
    host = urlsplit(url).hostname
    return (host, int(port)) if host and port is not False else None


async def find_servers(stun: tuple[str, int] | None) -> list[Endpoint]:
    """Both ports of the first address of each family; none while the name has no address."""
    if stun is None:
        return []
    host, port = stun
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        log.info("%s has no address now, so STUN has to wait: %s", host, error)
        return []
    first: dict[int, str] = {}
    for family, *_, address in found:
        first.setdefault(family, str(address[0]).partition("%")[0])
    return [format_endpoint(address, port + offset) for address in first.values() for offset in (0, 1)]


async def follow_servers(stun: tuple[str, int] | None, again: asyncio.Event) -> AsyncIterator[list[Endpoint]]:
    """Them, and those of each later time that `again` is set; while there are none, now and then by itself."""
    while True:
        found = await find_servers(stun)
        again.clear()
        yield found
        try:
            async with asyncio.timeout(None if found or stun is None else _AGAIN):
                await again.wait()
        except TimeoutError:
            pass  # the name may be known by now
