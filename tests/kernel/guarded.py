"""A host behind our table alone: its mesh link is a cable, so that any packet can be put on it and none is encrypted.

    sender ---- mesh ---- wardmesh0 guarded eth1 ---- outside ---- stranger

The sender is hostile: it has no table, and sends from any address.
"""

import json
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from agentd.kernel.events import Watch
from agentd.kernel.firewall import Firewall
from agentd.kernel.ruleset import compile_ruleset
from agentd.model import LinkSettings, Ruleset
from controller.wire.netmap import Netmap
from tests.kernel.maps import MESH, Member
from tests.kernel.nodes import OnHost
from tests.lab import Host, Lab

__all__ = ["GUARDED", "LINK", "SENDER", "Guarded", "both_families", "family", "guarded_host", "pairs", "raw"]

LINK: Final = LinkSettings(relay_rate=1)
GUARDED: Final = Member(1)
SENDER: Final = Member(2)
_IPV6: Final = (0x86DD).to_bytes(2)  # ETH_P_IPV6, linux/if_ether.h


class Guarded(OnHost):
    """The guarded host and its table; `sender` and `stranger` are its neighbours."""

    def __init__(self, lab: Lab) -> None:
        mesh, outside = lab.switch("mesh", MESH.prefix4, MESH.prefix6), lab.switch("outside")
        super().__init__(lab.host("guarded", mesh, outside))
        self.sender: Host = lab.host("sender", mesh)
        self.stranger: Host = lab.host("stranger", outside)
        self.member = GUARDED
        self.link = LINK
        assert (self.host.address, self.sender.address) == (GUARDED.address, SENDER.address)
        self.host.machine.batch(
            "link set eth0 down",
            f"link set eth0 name {LINK.name}",
            f"link set {LINK.name} up",
            f"address add {GUARDED.address6}/48 dev {LINK.name} nodad",
        )
        self._addresses: set[str] = {SENDER.address, SENDER.address6}
        self._macs = {host: _mac(host, link) for host, link in ((self.host, LINK.name), (self.sender, "eth0"))}
        # A WireGuard link asks nobody for link-layer addresses, and our table lets no such question pass.
        self.sender.machine.batch(self._neighbour(self.host, GUARDED.address6, "eth0"))
        self.host.machine.batch(self._neighbour(self.sender, SENDER.address6, LINK.name))
        self.firewall = self.call(self._open)

    async def _open(self) -> Firewall:
        self._watch = Watch(LINK.name, LINK.table)
        return Firewall(LINK.table, self._watch.quiet)

    def _neighbour(self, host: Host, address: str, link: str) -> str:
        return f"neighbour replace {address} lladdr {self._macs[host]} dev {link} nud permanent"

    def ruleset(self, wanted: Netmap, now: float) -> Ruleset:
        return compile_ruleset(wanted, self.link, now)

    def apply(self, wanted: Netmap, now: float = 0) -> Ruleset:
        """Put the map's table in force, as a change where there is one already."""
        old, new = self.firewall.in_force, self.ruleset(wanted, now)
        self.call(lambda: self.firewall.replace(new) if old is None else self.firewall.change(old, new))
        return new

    def sends_as(self, *members: Member) -> None:
        """Give the sender these members' addresses, so that sockets can be bound to them and answers reach it."""
        for member in members:
            for address, length in ((member.address, 32), (member.address6, 128)):
                if address not in self._addresses:
                    self._addresses.add(address)
                    self.sender.machine.batch(f"address add {address}/{length} dev eth0")
                    self.host.machine.batch(self._neighbour(self.sender, address, LINK.name))

    def has(self, *addresses: str) -> None:
        """Give the guarded host more addresses on the mesh link, so that its table alone decides what reaches them."""
        for address in addresses:
            length = 128 if ":" in address else 32
            nodad = " nodad" if ":" in address else ""
            # Deprecated, as agentd's held addresses are.
            self.host.machine.batch(f"address replace {address}/{length} dev {LINK.name} preferred_lft 0{nodad}")
            self.sender.machine.batch(self._neighbour(self.host, address, "eth0"))

    def reaches_at_sender(self, address: str) -> None:
        """Let the guarded host find an IPv6 address at the sender."""
        self.host.machine.batch(self._neighbour(self.sender, address, LINK.name))

    def inject(self, packet: bytes, times: int = 1) -> None:
        """Put an IPv6 packet on the mesh cable, from whomever it says that it is."""
        macs = (self._macs[self.host], self._macs[self.sender])
        frame = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + _IPV6 + packet
        with self.sender.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
            opened.bind(("eth0", 0))
            for _ in range(times):
                opened.send(frame)

    @contextmanager
    def tapped(self) -> Iterator[socket.socket]:
        """A socket that gets the IPv6 packets which the guarded host puts on the mesh cable."""
        with self.sender.socket(socket.AF_PACKET, socket.SOCK_RAW, int.from_bytes(_IPV6, sys.byteorder)) as tap:
            tap.bind(("eth0", int.from_bytes(_IPV6)))
            tap.settimeout(10)
            yield tap

    def counters(self) -> dict[str, int]:
        """Packets by counter name."""
        listed = json.loads(self.host.run("nft", "-j", "list", "counters", "table", "inet", LINK.table).stdout)
        found = (item["counter"] for item in listed["nftables"] if "counter" in item)
        return {counter["name"]: counter["packets"] for counter in found}

    def listing(self) -> list[Any]:
        """The table as nft shows it, without handles and counts, in an order of its own."""
        listed = json.loads(self.host.run("nft", "-js", "list", "table", "inet", LINK.table).stdout)["nftables"]
        rules = [item for item in listed if "rule" in item]
        for item in listed:
            for value in item.values():
                value.pop("handle", None)
                if "elem" in value:
                    value["elem"].sort(key=json.dumps)
        others = [item for item in listed if "rule" not in item and "metainfo" not in item]
        return sorted(others, key=json.dumps) + sorted(rules, key=lambda item: item["rule"]["chain"])  # stable

    def end(self) -> None:
        self.call(self._close)
        super().end()

    async def _close(self) -> None:
        self.firewall.close()
        self._watch.close()


def _mac(host: Host, link: str) -> str:
    shown: list[dict[str, Any]] = json.loads(host.run("ip", "-j", "link", "show", link).stdout)
    return str(shown[0]["address"])


both_families = pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def pairs(guarded: Guarded) -> list[tuple[str, str]]:
    """(sender, guarded) addresses of both families."""
    return [(SENDER.address, guarded.member.address), (SENDER.address6, guarded.member.address6)]


@contextmanager
def guarded_host() -> Iterator[Guarded]:
    with Lab() as lab:
        guarded = Guarded(lab)
        try:
            yield guarded
        finally:
            guarded.end()


def raw(host: Host, protocol: int, *, six: bool = False, header: bool = False) -> socket.socket:
    """A raw socket: it gets a copy of what passes the input hook, and sends what the output hook lets pass.

    With `header`, packets are given with their IP header.
    """
    family = socket.AF_INET6 if six else socket.AF_INET
    opened = host.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW if header else protocol)
    opened.settimeout(10)
    return opened
