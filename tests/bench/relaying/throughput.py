"""TCP between two hosts: direct, by way of a relay's kernel, and by way of relays in user space on the same host.

The relay to compare with is coturn, with a TURN client in user space before the kernel's WireGuard. This is how NetBird
does it: where a host's own candidate is the relayed one, its WireGuard sends to a proxy on loopback, which is the TURN
client; the other host's WireGuard sends to the relayed address by itself. ICE prefers this to two relayed candidates,
because the other's has the better type (RFC 8445 section 5.1.2); with two, the packets pass coturn twice.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Final

from tests.bench.acl import iperf3
from tests.bench.figures import Bench, alternate
from tests.bench.relaying.programs import Coturn, Endpoints, forwarder
from tests.kernel.finders import PORT
from tests.kernel.maps import netmap, with_relays
from tests.kernel.nodes import Node
from tests.kernel.test_relays import behind
from tests.lab import Lab, eventually

__all__ = ["throughput"]

PATIENCE: Final = 30.0  # seconds
ROUNDS: Final = 9


@dataclass(frozen=True, slots=True)
class Three:
    """Two hosts and the one that relays, all on one switch."""

    relay: Node
    left: Node
    right: Node

    def meet(self, endpoints: Endpoints) -> None:
        """Left and right have each other at these places, and answer."""
        hosts = ((self.left, self.right), (self.right, self.left))
        for (node, peer), endpoint in zip(hosts, endpoints, strict=True):
            known = replace(peer.member, endpoints=(endpoint,))
            node.apply(with_relays(netmap(node.member, known), self.relay.member))
        eventually(lambda: self.left.ping(self.right.member.address), PATIENCE, what="an answer")


@contextmanager
def three() -> Iterator[Three]:
    with Lab() as lab, ExitStack() as ending:
        switch = lab.switch("internet")
        nodes = [Node(lab.host(name, switch), n, "kernel") for n, name in enumerate(("relay", "left", "right"), 1)]
        for node in nodes:
            ending.callback(node.end)
        relay, left, right = nodes
        relay.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        members = (left.member, right.member)
        relay.apply(with_relays(netmap(relay.member, *members, rules=()), relay.member, between=[members]))
        yield Three(relay, left, right)


def throughput(bench: Bench) -> None:
    """All in one run, by turns."""
    with three() as nodes:
        relay, left, right = nodes.relay, nodes.left, nodes.right
        coturn = Coturn(relay.host, PORT)

        def by(opened: AbstractContextManager[Endpoints], channels: int = 0) -> float:
            """Mbit/s while these endpoints are there, when this many more channels of TURN are bound."""
            bound = coturn.channels_bound()
            with opened as endpoints:
                nodes.meet(endpoints)
                eventually(lambda: coturn.channels_bound() == bound + channels, PATIENCE, what="channels of TURN")
                return iperf3(left, right)

        direct = right.member.endpoints[0], left.member.endpoints[0]
        relayed = behind(relay.member, right.member), behind(relay.member, left.member)
        forwarded = forwarder(relay.host, left.host, right.host, PORT)
        found = alternate(
            {
                "direct": lambda: by(nullcontext(direct)),
                "relay, in its kernel": lambda: by(nullcontext(relayed)),
                "coturn, TURN client on one host": lambda: by(coturn.one_client(left.host, right.host), 1),
                "coturn, TURN clients on both": lambda: by(coturn.two_clients(left.host, right.host), 2),
                "forwarder, without TURN": lambda: by(nullcontext(forwarded)),
            },
            ROUNDS,
        )
    direct_runs, relayed_runs, *others = found.values()
    rows = [(name, runs.highest, runs.median, runs.over(direct_runs)) for name, runs in found.items()]
    bench.table("TCP between two hosts, Mbit/s", ("", "highest", "median", "of direct"), rows)
    of_one, of_two, of_forwarder = (relayed_runs.over(runs) for runs in others)
    bench.bar("relayed_of_direct", relayed_runs.over(direct_runs), ">=", 0.25)
    bench.bar("relayed_of_coturn", of_one, ">=", 3)
    bench.figure("relayed_of_coturn_with_two_clients", of_two)
    bench.figure("relayed_of_forwarder", of_forwarder)
