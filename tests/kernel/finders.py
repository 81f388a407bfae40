"""Agents without their controller, which look for paths to each other, on hosts behind NATs and firewalls of a lab."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial

from agentd.facts import OwnAddresses
from agentd.mapping import PortMapping
from agentd.model import LinkSettings
from agentd.paths.candidates import candidates
from agentd.probe_socket import ProbeSocket
from agentd.probing import Prober
from agentd.reconcile import Reconciler
from controller.settings import Listen
from controller.stun import listen
from controller.wire.netmap import Netmap
from tests.kernel.maps import MESH, Member, netmap, with_relays
from tests.kernel.nodes import OnHost
from tests.lab import Host, Lab, Switch, eventually

__all__ = ["KINDS", "PORT", "Finder", "Stun", "finders", "in_theory", "introduce", "place", "two_of_each"]

# What is between a host and the internet. NATs are named by whose packets they let in that nobody inside asked for
# (RFC 4787 section 5); all map every destination alike (section 4.1), but for the one that says so. Two hosts of one of
# the last two kinds are in homes of their own behind the same NAT of their carrier (section 6).
KINDS = {
    "public": "public",
    "ipv6": "IPv6 only",
    "independent": "NAT, lets in anybody",
    "address": "NAT, by address",
    "port": "NAT, by address and port",
    "double": "NAT behind NAT",
    "firewall": "firewall of its own",
    "symmetric": "NAT, maps each anew",
    "hairpin": "one carrier's NAT, turns packets round",
    "carrier": "one carrier's NAT, does not",
}
# Who lets in a packet from a port that it has sent nothing to, if it has sent something to its host.
OPEN = {"public", "ipv6", "independent", "address"}

PORT = 51820
# A NAT of `lab.nat` filters by address and port. These let more in, to the one host that is inside.
FORWARDED = "add rule inet nat forward ct status dnat accept"
PREROUTING = "add chain inet nat prerouting {{ type nat hook prerouting priority dstnat; }}"
BY_ADDRESS = """
add set inet nat contacted {{ type ipv4_addr; flags dynamic,timeout; timeout 5m; }}
insert rule inet nat forward iifname {inside} udp sport 51820 update @contacted {{ ip daddr }}
"""
FIREWALL = """
table inet distrust {
  chain input {
    type filter hook input priority filter; policy drop;
    iifname { "lo", "wardmesh0" } accept
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
  }
}
"""


def in_theory(one: str, other: str) -> bool:
    """True when a direct path can be found: a port that changes with each destination cannot be told to the other, and
    what is sent to a port of the NAT that both are behind must come back from it."""
    return not (one == other == "carrier") and not (
        (one == "symmetric" and other not in OPEN) or (other == "symmetric" and one not in OPEN)
    )


def place(lab: Lab, internet: Switch, kind: str, name: str) -> Host:
    """A host on the internet or behind a router of this kind."""
    if kind in {"public", "firewall", "ipv6"}:
        host = lab.host(name, internet)
        if kind == "firewall":
            host.nft(FIREWALL)
        if kind == "ipv6":
            host.run("ip", "-4", "address", "flush", "dev", "eth0")
        return host
    outside = internet
    if kind == "double":
        outside = lab.switch(f"street-{name}", f"198.18.{len(lab.hosts)}.0/26")
        lab.nat(f"street-nat-{name}", inside=outside, outside=internet)
    home = lab.switch(f"home-{name}")
    host = lab.host(name, home)
    router = lab.nat(f"nat-{name}", inside=home, outside=outside, random_ports=kind == "symmetric")
    inside, link = router.port(home).link, router.port(outside).link
    if kind in {"independent", "address"}:
        known = "ip saddr @contacted " if kind == "address" else ""
        rule = f"add rule inet nat prerouting iifname {link} {known}udp dport {PORT} dnat ip to {host.address}"
        router.nft("\n".join([PREROUTING.format(), BY_ADDRESS.format(inside=inside) if known else "", rule, FORWARDED]))
    return host


def behind_one_carrier(lab: Lab, internet: Switch, *names: str, hairpin: bool) -> list[Host]:
    """Hosts in homes of their own, each behind a NAT, all behind one NAT of their carrier, which gives each a port.

    `hairpin`: it passes on what one of them sends to the port of another (RFC 4787 section 6).
    """
    street = lab.switch(f"street-{names[0]}", f"198.18.{len(lab.hosts)}.0/26")
    carrier = lab.nat(f"carrier-{names[0]}", inside=street, outside=internet)
    seen, inside = carrier.port(internet), carrier.port(street).link
    hosts, rules = [], [PREROUTING.format(), FORWARDED]
    for number, name in enumerate(names):
        home = lab.switch(f"home-{name}", f"198.18.{len(lab.hosts)}.64/26")
        hosts.append(lab.host(name, home))
        place, port = lab.nat(f"nat-{name}", inside=home, outside=street).port(street).address, 40000 + number
        same = f"ip saddr {place} udp sport {PORT} snat ip to {seen.address}:{port}"
        rules.append(f"insert rule inet nat postrouting oifname {seen.link} {same}")
        if hairpin:
            rules.append(f"insert rule inet nat postrouting oifname {inside} {same}")
            rules.append(
                f"add rule inet nat prerouting iifname {inside} ip daddr {seen.address} udp dport {port} "
                f"dnat ip to {place}:{PORT}"
            )
    carrier.nft("\n".join(rules))
    return hosts


class Finder(OnHost):
    """A reconciler with its prober: agentd without its controller."""

    def __init__(self, host: Host, number: int, server: str, stun_port: int) -> None:
        super().__init__(host)
        self.member = Member(number)
        self.relays: tuple[Member, ...] = ()
        self.map: Netmap | None = None
        self._stun = (server, stun_port)
        self.call(self._open)

    async def _open(self) -> None:
        self.stack = ExitStack()
        self.own = self.stack.enter_context(OwnAddresses())
        sock = self.stack.enter_context(ProbeSocket(PORT))
        self.prober = Prober(
            sock,
            self.own,
            MESH,
            stun=self._stun,
            candidates=self._candidates,
            mapping=PortMapping(PORT, bytes([self.member.number] * 12)),
        )
        settings = LinkSettings(backend="kernel", probe_port=sock.port)
        self.reconciler = Reconciler(settings, self.member.private_key, choices=self.prober.choices)
        await self.reconciler.start()
        self.wake = asyncio.Event()
        self.prober.connect(
            private_key=lambda: self.member.private_key,
            changed=self.wake.set,
            seen=lambda: None,
            read=self.reconciler.peers,
        )
        parts = (self._apply_on(), self._follow_addresses(), self.prober.run())
        self.tasks = [asyncio.create_task(part) for part in parts]

    def _candidates(self) -> tuple[str, ...]:
        return candidates(self.own.now, listen_port=PORT, mesh=(MESH.prefix4, MESH.prefix6))

    async def _follow_addresses(self) -> None:
        async for _ in self.own.changes():
            self.prober.moved()
            self.wake.set()

    async def _apply_on(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            if self.map is not None:
                await self.reconciler.apply(self.map)
                self.prober.adopt(self.map)

    def knows_its_nat(self) -> bool:
        return self.prober.nat != "unknown"

    def has_relays(self, count: int) -> bool:
        return len(self.prober.relayed) == count

    def describe(self) -> None:
        """What the controller would tell others of it."""
        endpoints = (*self.prober.reflexive, *self._candidates(), *self.prober.relayed)
        self.member = replace(self.member, endpoints=endpoints, keepalive=25)

    def be_at(self, endpoint: str) -> None:
        """What the controller would tell others of it, if it had this endpoint alone."""
        self.member = replace(self.member, endpoints=(endpoint,))

    def mtu(self, other: "Finder") -> int | None:
        return self.prober.known_mtu(other.member.name)

    def meet(self, *others: "Finder") -> None:
        self._follow(with_relays(netmap(self.member, *(other.member for other in others)), *self.relays))

    def relay_for(self, *others: "Finder") -> None:
        """Be a relay, by whose map any two of these may talk to each other."""
        members = [other.member for other in others]
        wanted = netmap(self.member, *members, rules=())
        self._follow(with_relays(wanted, self.member, between=itertools.combinations(members, 2)))

    def _follow(self, wanted: Netmap) -> None:
        async def adopt() -> None:
            self.map = wanted
            self.wake.set()

        self.call(adopt)

    def begin_table(self) -> None:
        """The table alone, so that STUN leaves from WireGuard's port."""
        self.meet()

    def reaches(self, other: "Finder") -> bool:
        command = ("ping", "-n", "-c1", "-W", "2", other.member.address)
        return self.host.run(*command, check=False).returncode == 0

    def kind(self, other: "Finder") -> str:
        """What sort of path was found to work: `none` before any was."""
        chosen = (view.endpoint for view in self.prober.paths(other.member.name) if view.chosen)
        return next((self.prober.kind(endpoint) for endpoint in chosen), "none")

    def sends_to(self, other: "Finder") -> str:
        """What sort of endpoint WireGuard has for it."""
        endpoint = self.call(self.reconciler.observe).peers[other.member.public_key].endpoint
        return self.prober.kind(str(endpoint))

    def works_directly(self, other: "Finder") -> bool:
        return self.kind(other) in {"lan", "direct"}

    def endpoint(self, other: "Finder") -> str:
        """The path that was chosen."""
        return next(view.endpoint for view in self.prober.paths(other.member.name) if view.chosen)

    def has_address(self, address: str) -> bool:
        return any(own.address == address for own in self.own.now)

    def heard_from(self, other: "Finder") -> str:
        """Where this host's kernel sends to for the other."""
        observed = self.call(self.reconciler.observe)
        return str(observed.peers[other.member.public_key].endpoint)

    def has_shaken_hands(self, other: "Finder") -> bool:
        """The tunnel to it is up, or once was."""
        peer = self.call(self.reconciler.observe).peers.get(other.member.public_key)
        return peer is not None and peer.last_handshake > 0

    def restart(self, *, reboot: bool = False) -> None:
        """As when its agentd starts anew; with `reboot`, on a kernel that has forgotten everything."""
        assert self.map is not None

        async def anew() -> None:
            await self._close(remove=reboot)
            await self._open()

        self.call(anew)
        self._follow(self.map)

    async def _close(self, *, remove: bool) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)
        if remove:
            await self.reconciler.remove()
        await self.reconciler.close()
        self.stack.close()

    def end(self) -> None:
        self.call(lambda: self._close(remove=True))
        super().end()


class Stun(OnHost):
    """A STUN server on a host of the internet."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.call(self._open)

    async def _open(self) -> None:
        self.servers = listen(Listen("::", 3478))
        for server in self.servers:
            server.start()

    def end(self) -> None:
        async def close() -> None:
            for server in self.servers:
                server.close()

        self.call(close)
        super().end()


@contextmanager
def finders(*kinds: str, relays: int = 0) -> Iterator[list[Finder]]:
    """One host of each kind, which knows from where it is seen; and then the relays, which serve all of them."""
    with Lab() as lab:
        internet = lab.switch("internet")
        with introduce(
            lab, internet, *(place(lab, internet, kind, f"{kind}{n}") for n, kind in enumerate(kinds)), relays=relays
        ) as found:
            yield found


@contextmanager
def two_of_each(
    lab: Lab, kinds: Sequence[str], neighbour_of: str = "port"
) -> Iterator[tuple[dict[str, Finder], dict[str, Finder], Finder]]:
    """Two hosts of each of these kinds, one in each dictionary, and one in the home of the first of `neighbour_of`.

    One relay serves all of them.
    """
    internet = lab.switch("internet")
    left, right = [], []
    for kind in kinds:
        names = (f"{kind}1", f"{kind}2")
        if kind in {"hairpin", "carrier"}:
            one, other = behind_one_carrier(lab, internet, *names, hairpin=kind == "hairpin")
        else:
            one, other = (place(lab, internet, kind, name) for name in names)
        left.append(one)
        right.append(other)
    near = lab.host("neighbour", lab.hosts[f"{neighbour_of}1"].port().switch)
    with introduce(lab, internet, *left, *right, near, relays=1) as found:
        yield (
            dict(zip(kinds, found, strict=False)),
            dict(zip(kinds, found[len(kinds) :], strict=False)),
            found[2 * len(kinds)],
        )


@contextmanager
def introduce(lab: Lab, internet: Switch, *hosts: Host, relays: int = 0) -> Iterator[list[Finder]]:
    """Finders on these hosts, which know from where they are seen; and then the relays, which serve all of them."""
    with ExitStack() as ending:
        stun = Stun(lab.host("stun", internet))
        ending.callback(stun.end)
        found, serving = [], []
        for number in range(relays):
            relay = Finder(lab.host(f"relay{number}", internet), 200 + number, stun.host.address, 3478)
            relay.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
            ending.callback(relay.end)
            places = (f"{relay.host.address}:{PORT}", f"[{relay.host.address6}]:{PORT}")
            relay.member = replace(relay.member, endpoints=places)
            serving.append(relay)
        for number, host in enumerate(hosts, 1):
            four = "inet " in host.run("ip", "-4", "address", "show", "dev", "eth0").stdout
            finder = Finder(host, number, stun.host.address if four else stun.host.address6, 3478)
            ending.callback(finder.end)
            finder.relays = tuple(relay.member for relay in serving)
            finder.begin_table()
            found.append(finder)
        for relay in serving:
            relay.relay_for(*found)
        for finder in found:
            eventually(finder.knows_its_nat, 30, what="answers of STUN")
            eventually(partial(finder.has_relays, min(relays, 2)), 30, what="answers of relays")
            finder.describe()
        yield [*found, *serving]
