"""Kernel WireGuard behind NATs and firewalls finds its peers directly, as far as theory allows."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from agentd.facts import OwnAddresses
from agentd.model import LinkSettings
from agentd.paths.candidates import candidates
from agentd.probe_socket import ProbeSocket
from agentd.probing import Prober
from agentd.reconcile import Reconciler
from controller.settings import Listen
from controller.stun import listen
from controller.wire.netmap import Netmap
from tests.kernel.maps import MESH, Member, netmap
from tests.kernel.nodes import OnHost
from tests.lab import Host, Lab, Switch, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

# By which packets that nobody inside asked for are let in (RFC 4787 section 5), and a host's own firewall.
KINDS = ("public", "independent", "address", "port", "firewall")
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


def place(lab: Lab, internet: Switch, kind: str, name: str) -> Host:
    """A host on the internet or behind a router of this kind."""
    if kind in {"public", "firewall"}:
        host = lab.host(name, internet)
        if kind == "firewall":
            host.nft(FIREWALL)
        return host
    home = lab.switch(f"home-{name}")
    host = lab.host(name, home)
    router = lab.nat(f"nat-{name}", inside=home, outside=internet, random_ports=kind == "symmetric")
    inside, outside = router.port(home).link, router.port(internet).link
    if kind in {"independent", "address"}:
        known = "ip saddr @contacted " if kind == "address" else ""
        rule = f"add rule inet nat prerouting iifname {outside} {known}udp dport {PORT} dnat ip to {host.address}"
        router.nft("\n".join([PREROUTING.format(), BY_ADDRESS.format(inside=inside) if known else "", rule, FORWARDED]))
    return host


class Finder(OnHost):
    """A reconciler with its prober: agentd without its controller."""

    def __init__(self, host: Host, number: int, server: str, stun_port: int) -> None:
        super().__init__(host)
        self.member = Member(number)
        self.map: Netmap | None = None
        self.call(lambda: self._open(server, stun_port))

    async def _open(self, server: str, stun_port: int) -> None:
        self.stack = ExitStack()
        self.own = self.stack.enter_context(OwnAddresses())
        sock = self.stack.enter_context(ProbeSocket(PORT))
        self.prober = Prober(sock, self.own, MESH, stun=(server, stun_port), candidates=self._candidates)
        settings = LinkSettings(backend="kernel", probe_port=sock.port)
        self.reconciler = Reconciler(settings, self.member.private_key, choose=self.prober.choose)
        await self.reconciler.start()
        self.wake = asyncio.Event()
        self.prober.connect(private_key=lambda: self.member.private_key, changed=self.wake.set, seen=lambda: None)
        self.tasks = [asyncio.create_task(self._apply_on()), asyncio.create_task(self.prober.run())]

    def _candidates(self) -> tuple[str, ...]:
        return candidates(self.own.now, listen_port=PORT, mesh=(MESH.prefix4, MESH.prefix6))

    async def _apply_on(self) -> None:
        while True:
            await self.wake.wait()
            self.wake.clear()
            if self.map is not None:
                await self.reconciler.apply(self.map)
                self.prober.adopt(self.map)

    def describe(self) -> None:
        """What the controller would tell others of it."""
        endpoints = (*self.prober.reflexive, *self._candidates())
        self.member = replace(self.member, endpoints=endpoints, keepalive=25)

    def meet(self, *others: "Finder") -> None:
        async def adopt() -> None:
            self.map = netmap(self.member, *(other.member for other in others))
            self.wake.set()

        self.call(adopt)

    def begin_table(self) -> None:
        """The table alone, so that STUN leaves from WireGuard's port."""
        self.meet()

    def reaches(self, other: "Finder") -> bool:
        command = ("ping", "-n", "-c1", "-W", "2", other.member.address)
        return self.host.run(*command, check=False).returncode == 0

    def works_directly(self, other: "Finder") -> bool:
        return any(view.chosen for view in self.prober.paths(other.member.name))

    def end(self) -> None:
        async def close() -> None:
            for task in self.tasks:
                task.cancel()
            await self.reconciler.remove()
            await self.reconciler.close()
            self.stack.close()

        self.call(close)
        super().end()


class Stun(OnHost):
    """A STUN server on a host of the internet."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.call(self._open)

    async def _open(self) -> None:
        self.servers = listen(Listen(self.host.address, 3478))
        for server in self.servers:
            server.start()

    def end(self) -> None:
        async def close() -> None:
            for server in self.servers:
                server.close()

        self.call(close)
        super().end()


@contextmanager
def finders(*kinds: str) -> Iterator[list[Finder]]:
    """One host of each kind, which knows from where it is seen."""
    with Lab() as lab, ExitStack() as ending:
        internet = lab.switch("internet")
        stun = Stun(lab.host("stun", internet))
        ending.callback(stun.end)
        found = []
        for number, kind in enumerate(kinds, 1):
            finder = Finder(place(lab, internet, kind, f"{kind}{number}"), number, stun.host.address, 3478)
            ending.callback(finder.end)
            finder.begin_table()
            found.append(finder)
        for finder in found:
            eventually(lambda finder=finder: finder.prober.nat != "unknown", 30, what="answers of STUN")
            finder.describe()
        yield found


def test_paths_are_direct_between_all_kinds_of_nats_and_firewalls_that_map_alike() -> None:
    with finders(*KINDS, *KINDS) as hosts:
        left, right = hosts[: len(KINDS)], hosts[len(KINDS) :]
        natted = {host.host.name for host in hosts if host.prober.nat == "endpoint-independent"}
        assert natted == {host.host.name for host in hosts if host.host.name.startswith(("indep", "addr", "port"))}
        for one in left:
            one.meet(*right)
        for other in right:
            other.meet(*left)
        pairs = [(one, other) for one in left for other in right]
        missing = [(one, other) for one, other in pairs if not one.reaches(other)]
        eventually(
            lambda: all(one.reaches(other) for one, other in missing),
            40,
            what=f"{[(one.host.name, other.host.name) for one, other in missing]} to reach each other",
        )
        eventually(lambda: all(one.works_directly(other) for one, other in pairs), 30, what="a path for each pair")


def test_paths_from_behind_a_nat_that_maps_each_destination_anew_lead_to_whoever_lets_strangers_in() -> None:
    with finders("symmetric", "public", "independent", "address") as (one, *others):
        assert one.prober.nat == "endpoint-dependent"
        one.meet(*others)
        for other in others:
            other.meet(one)
        for other in others:
            eventually(lambda other=other: one.reaches(other), 40, what=f"{other.host.name} to be reached")


@pytest.mark.host_kernel
def test_paths_of_agents_behind_nats_are_found_by_way_of_the_controller_and_shown() -> None:
    with Lab() as lab:
        internet = lab.switch("internet")
        controller = Controller.start(lab.host("controller", internet))
        controller.put_policy(ALLOW_ALL)
        agents = [
            Agent.join(place(lab, internet, "port", name), controller.join_string(), backend="userspace")
            for name in ("left", "right")
        ]
        left, right = agents

        def shown(command: str) -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(left.run(command, "--json"))
            return answer

        eventually(lambda: shown("netcheck")["nat"] == "endpoint-independent", 30, what="answers of STUN")
        seen = shown("netcheck")["reflexive"]
        assert seen
        eventually(lambda: set(seen) <= set(controller.node("left").endpoints), 30, what="the controller to know")

        def chosen() -> list[dict[str, Any]]:
            (peer,) = shown("paths")["peers"]
            return [path for path in peer["paths"] if path["chosen"] and path["state"] == "working"]

        eventually(chosen, 60, what="a path that works")
        assert chosen()[0]["rtt"] > 0
        address = right.status()["addresses"][0]
        eventually(
            lambda: left.host.run("ping", "-c1", "-W", "2", address, check=False).returncode == 0, 30, what="a ping"
        )
        assert "right" in left.run("paths")
        assert "endpoint-independent" in left.run("netcheck")
        summary = json.loads(left.run("ping", "right", "--count", "3", "--interval", "0.1", "--json"))
        assert (summary["name"], summary["sent"]) == ("right", 3)
        assert summary["pongs"][0]["endpoint"] == chosen()[0]["endpoint"]
        assert summary["received"] > 0
        assert "right answers directly from" in left.run("ping", address, "-c", "1")
        # It is about the path, not about what policy lets pass on it.
        controller.put_policy("grants: [{from: ['*'], to: ['*'], ip: ['tcp:9']}]")
        assert "answered" in left.run("ping", "right", "-c", "1")
        for other in ("left", "nobody"):
            assert left.run("ping", other, "-c", "1", check=False) == ""
