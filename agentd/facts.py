"""This host's own addresses, kept current by the kernel's events: read again when one comes or goes, never polled."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Final

from controller.wire.base import Endpoint

from .kernel.links import local_addresses
from .kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from .model import LocalAddress
from .paths.choose import Chooser

__all__ = ["OwnAddresses"]

log = logging.getLogger("agentd.facts")

# linux/rtnetlink.h
_RTNLGRP_IPV4_IFADDR: Final = 5
_RTNLGRP_IPV6_IFADDR: Final = 9
# Seconds. A DHCP renewal or an interface that comes up sends several events; one look after them is enough.
_SETTLE: Final = 0.2


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
