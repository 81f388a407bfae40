"""Who is asked from where this host is seen: the controller's STUN."""

import asyncio
import logging
import socket
from typing import Literal
from urllib.parse import urlsplit

from controller.wire.base import Endpoint, format_endpoint

__all__ = ["find_servers", "stun_of"]

log = logging.getLogger("agentd.stun_servers")


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
