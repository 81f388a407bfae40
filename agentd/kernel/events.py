"""Tells when somebody else touches what is ours: links, addresses, routes, and the nftables table.

Only a hint is given, never the state: whoever listens looks at the host again and compares. So a burst of events is
one hint, and our own changes to links and routes, which are heard too, find nothing to do.
"""

import asyncio
import errno
import logging
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from .netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkError, NetlinkSocket, attributes, messages

__all__ = ["Hint", "Watch"]

log = logging.getLogger("agentd.kernel.events")

# link, table: something of ours; address: the host lost an address of its own; unknown: events were lost.
Hint = Literal["link", "table", "address", "unknown"]
_HintOf = Callable[[int, bytes], Hint | None]

# include/uapi/linux/rtnetlink.h
_RTNL_GROUPS: Final = (1, 5, 7, 9, 11)  # LINK, IPV4_IFADDR, IPV4_ROUTE, IPV6_IFADDR, IPV6_ROUTE
_RTM_NEWLINK: Final = 16
_RTM_DELLINK: Final = 17
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_IFLA_IFNAME: Final = 3
_RTA_OIF: Final = 4
# include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h
_NFNLGRP_NFTABLES: Final = 7
_NFNL_SUBSYS_NFTABLES: Final = 10
_NFT_MSG_NEWGEN: Final = 15
_NFGENMSG: Final = struct.Struct("=BBH")
_NFPROTO_INET: Final = 1
_NAME: Final = 1  # every nftables object but a generation has its table's name in attribute 1

# A burst (a link that goes takes addresses and routes with it; a restart of another firewall) is one hint.
_DEBOUNCE: Final = 0.05


class Watch:
    """Listens in the network namespace of the thread that opens it, from its event loop."""

    def __init__(self, link: str, table: str) -> None:
        self._link = link.encode()
        self._table = table.encode()
        self._index = 0
        self._hints: set[Hint] = set()
        self._news = asyncio.Event()
        self._sockets: list[NetlinkSocket] = []
        try:
            self._route = self._open(NETLINK_ROUTE, _RTNL_GROUPS)
            self._netfilter = self._open(NETLINK_NETFILTER, (_NFNLGRP_NFTABLES,))
        except OSError:
            self.close()
            raise
        loop = asyncio.get_running_loop()
        loop.add_reader(self._route.fileno(), self._read, self._route, self._route_hint)
        loop.add_reader(self._netfilter.fileno(), self._read, self._netfilter, self._netfilter_hint)

    def close(self) -> None:
        """Stop listening."""
        loop = asyncio.get_event_loop()
        for netlink in self._sockets:
            loop.remove_reader(netlink.fileno())
            netlink.close()
        self._sockets.clear()
        self._news.set()

    def follow(self, index: int) -> None:
        """The link's present index, 0 for none; its name is followed anyway."""
        self._index = index

    def poke(self, hint: Hint) -> None:
        """Say that there is something to look at, as if an event had come."""
        self._hints.add(hint)
        self._news.set()

    async def next(self, patience: float) -> frozenset[Hint]:
        """Wait for hints and return them once a burst is over; none after `patience` seconds."""
        try:
            async with asyncio.timeout(patience):
                await self._news.wait()
        except TimeoutError:
            return frozenset()
        await asyncio.sleep(_DEBOUNCE)
        hints, self._hints = frozenset(self._hints), set()
        self._news.clear()
        return hints

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Hear nothing of nftables inside: a transaction of ours may be ten thousand events."""
        self._netfilter.leave(_NFNLGRP_NFTABLES)
        try:
            yield
        finally:
            self._netfilter.join(_NFNLGRP_NFTABLES)

    def _open(self, protocol: int, groups: tuple[int, ...]) -> NetlinkSocket:
        netlink = NetlinkSocket(protocol, receive_buffer=4 << 20)
        self._sockets.append(netlink)
        for group in groups:
            netlink.join(group)
        return netlink

    def _read(self, netlink: NetlinkSocket, hint_of: _HintOf) -> None:
        try:
            for data in netlink.pending():
                for kind, _flags, _sequence, payload in messages(data):
                    if (hint := hint_of(kind, payload)) is not None:
                        self.poke(hint)
        except NetlinkError:
            log.exception("a kernel event could not be read; looking at everything again")
            self.poke("unknown")
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.poke("unknown")  # more events than fit: some were lost

    def _route_hint(self, kind: int, payload: bytes) -> Hint | None:
        if kind in {_RTM_NEWLINK, _RTM_DELLINK}:
            index = _IFINFOMSG.unpack_from(payload)[2]
            mine = index == self._index or _text(payload, _IFINFOMSG.size, _IFLA_IFNAME) == self._link
        elif kind in {_RTM_NEWADDR, _RTM_DELADDR}:
            mine = _IFADDRMSG.unpack_from(payload)[4] == self._index
            if kind == _RTM_DELADDR and not mine:
                return "address"
        elif kind in {_RTM_NEWROUTE, _RTM_DELROUTE}:
            mine = any(
                attr == _RTA_OIF and struct.unpack_from("=I", payload, start)[0] == self._index
                for attr, start, _end in attributes(payload, _RTMSG.size)
            )
        else:
            mine = False
        return "link" if mine else None

    def _netfilter_hint(self, kind: int, payload: bytes) -> Hint | None:
        if kind >> 8 != _NFNL_SUBSYS_NFTABLES or kind & 0xFF == _NFT_MSG_NEWGEN:
            return None
        family = _NFGENMSG.unpack_from(payload)[0]
        mine = family == _NFPROTO_INET and _text(payload, _NFGENMSG.size, _NAME) == self._table
        return "table" if mine else None


def _text(payload: bytes, start: int, wanted: int) -> bytes | None:
    for kind, begin, end in attributes(payload, start):
        if kind == wanted:
            return payload[begin:end].rstrip(b"\0")
    return None
