"""This host's own addresses, kept current by the kernel's events: read again when one comes or goes, never polled."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

from controller.wire.base import Endpoint
from controller.wire.netmap import Netmap
from controller.wire.relays import relays_of

from .kernel.links import local_addresses
from .kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from .model import LocalAddress
from .paths.choose import Chooser

__all__ = ["OwnAddresses", "relay_problem"]

log = logging.getLogger("agentd.facts")

# linux/rtnetlink.h
_RTNLGRP_IPV4_IFADDR: Final = 5
_RTNLGRP_IPV6_IFADDR: Final = 9
# Seconds. A DHCP renewal or an interface that comes up sends several events; one look after them is enough.
_SETTLE: Final = 0.2


_FORWARDING: Final = Path("/proc/sys/net/ipv6/conf/all/forwarding")


def relay_problem(netmap: Netmap) -> str | None:
    """Why this host cannot relay though the map wants it to; None when it can or need not.

    Forwarding is the administrator's to turn on: with it, the kernel takes no more routes from router advertisements.
    """
    if relays_of(netmap).own is None:
        return None
    try:
        if _FORWARDING.read_text().strip() == "1":
            return None
    except OSError as error:
        return f"this host is a relay, and its kernel has no IPv6 to relay with: {error}"
    return (
        "this host is a relay, but its kernel forwards no IPv6, so nobody is reached by it: set "
        "net.ipv6.conf.all.forwarding=1 (and accept_ra=2 for links that get their routes by router advertisement)"
    )


class OwnAddresses:
    """The addresses of all links but our own. Use as a context manager."""

    def __init__(self) -> None:
        self._socket = NetlinkSocket(NETLINK_ROUTE)
        self._event = asyncio.Event()
        # The groups first: what changes while the addresses are read is then seen.
        for group in (_RTNLGRP_IPV4_IFADDR, _RTNLGRP_IPV6_IFADDR):
            self._socket.join(group)
        self.now: tuple[LocalAddress, ...] = tuple(local_addresses())
        self._chooser = Chooser(self.now)

    def __enter__(self) -> "OwnAddresses":
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._drain)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    @property
    def chooser(self) -> Chooser:
        """Chooses by the addresses of now."""
        return self._chooser

    def choose(self, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        """Which of a peer's endpoints to try from these addresses."""
        return self._chooser.choose(endpoints)

    async def changes(self) -> AsyncIterator[tuple[LocalAddress, ...]]:
        """Yield the addresses each time that they are different."""
        while True:
            await self._event.wait()
            await asyncio.sleep(_SETTLE)
            self._event.clear()
            found = tuple(local_addresses())
            if set(found) != set(self.now):
                self.now, self._chooser = found, Chooser(found)
                yield found

    def _drain(self) -> None:
        try:
            for _ in self._socket.pending():
                pass  # which address it was does not matter: all are read again
        except OSError as error:
            log.debug("address events were dropped by the kernel: %s", error)  # ENOBUFS; reading again makes up for it
        self._event.set()
