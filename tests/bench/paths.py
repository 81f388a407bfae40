"""How soon hosts behind NATs and firewalls reach each other, what a relay costs, what a change of path costs a flow.

All with kernel WireGuard in one lab, where the hosts share a CPU. Throughput is compared in the same run: direct, by
way of a relay's kernel, and by way of a UDP forwarder in user space on the relay's host.
"""

import itertools
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from socket import AF_INET, SOCK_STREAM
from typing import Final

from tests.bench.acl import iperf3
from tests.bench.figures import Bench, alternate
from tests.kernel.finders import KINDS, PORT, Finder, finders, in_theory
from tests.kernel.maps import Member, netmap, with_relays
from tests.kernel.nodes import Node, listening
from tests.kernel.parting import PER_SECOND, join, look_again, part, stream
from tests.kernel.test_relays import behind
from tests.lab import Lab, eventually
from tests.unit.path_load import packets_per_second

NEEDS_KERNEL = True
PATIENCE: Final = 30.0  # seconds
ROUNDS: Final = 3
SECONDS: Final = 4  # of the stream during which paths change
FORWARDER: Final = Path(__file__).with_name("forwarder.c")


def measure(bench: Bench) -> None:
    bench.bar("packets_per_second_500_peers", packets_per_second(500), "<=", 5)
    cells(bench)
    changes(bench)
    throughput(bench)


def until(what: str, holds: Callable[[], bool]) -> float:
    """Seconds until it does."""
    begun = time.monotonic()
    eventually(holds, PATIENCE, interval=0.01, what=what)
    return time.monotonic() - begun


def answers(one: Finder, other: Finder) -> bool:
    ping = ("ping", "-n", "-c1", "-W", "0.2", other.member.address)
    return one.host.run(*ping, check=False).returncode == 0


def cells(bench: Bench) -> None:
    """Each pair of kinds meets anew, with one relay."""
    kinds = list(KINDS)
    with finders(*kinds, *kinds, relays=1) as found:
        left, right = dict(zip(kinds, found, strict=False)), dict(zip(kinds, found[len(kinds) :], strict=False))
        first, direct = [], []
        for pair in itertools.combinations_with_replacement(kinds, 2):
            one, other = left[pair[0]], right[pair[1]]
            one.meet(other)
            other.meet(one)
            took = until(f"an answer between {pair}", lambda one=one, other=other: answers(one, other))
            first.append(took)
            if in_theory(*pair):
                took += until(f"a direct path of {pair}", lambda one=one, other=other: one.works_directly(other))
                direct.append(took)
            one.meet()
            other.meet()
    bench.bar("first_ping_p95_s", statistics.quantiles(first, n=20)[-1], "<=", 2)
    bench.bar("direct_path_longest_s", max(direct), "<=", 5)
    bench.figure("first_ping_median_s", statistics.median(first))
    bench.figure("cells", len(first))


def changes(bench: Bench) -> None:
    """Two hosts that are parted and joined; then their relay is lost; then one of them has another address."""
    with finders("public", "public", relays=2) as (one, other, *relays):
        part(one, other)
        one.meet(other)
        other.meet(one)
        until("a relayed path", lambda: one.kind(other) == other.kind(one) == "relay" and answers(one, other))
        with stream(one, other, SECONDS) as arrived:
            join(one, other)
            look_again(one, other)
        lost = 1 - len(set(arrived)) / (SECONDS * PER_SECOND)
        bench.bar("upgrade_datagrams_lost", lost, "<=", 0.01)
        part(one, other)
        look_again(one, other)
        until("the way back", lambda: one.kind(other) == other.kind(one) == "relay" and answers(one, other))
        used = one.prober.relay_of(one.endpoint(other))
        next(relay for relay in relays if relay.member.name == used).host.run("ip", "link", "set", "eth0", "down")
        # What the lost relay still forwards in the same instant does not count.
        took = until("the spare", lambda: one.prober.relay_of(one.endpoint(other)) != used)
        bench.bar("relay_lost_s", took + until("an answer", lambda: answers(one, other)), "<=", 5)
        join(one, other)
        look_again(one, other)
        until("a direct path", lambda: one.works_directly(other) and other.works_directly(one) and answers(one, other))
        bench.bar("roam_s", roam(one, other), "<=", 2)


def roam(one: Finder, other: Finder) -> float:
    """Seconds until an answer after a change of address on one side, with a TCP flow that goes on."""
    with listening(other.host, other.member.address, 8000) as server, one.host.socket(AF_INET, SOCK_STREAM) as flow:
        flow.settimeout(PATIENCE)
        flow.connect((other.member.address, 8000))
        accepted, _ = server.accept()
        with accepted:
            one.host.readdress()
            took = until("an answer after the change", lambda: answers(one, other))
            flow.sendall(b"still there")
            accepted.settimeout(PATIENCE)
            assert accepted.recv(64) == b"still there"
    return took


def throughput(bench: Bench) -> None:
    """TCP between two hosts: direct, by way of the relay's kernel, by way of a process on the relay's host."""
    with Lab() as lab, ExitStack() as ending:
        switch = lab.switch("internet")
        relay, left, right = (
            Node(lab.host(name, switch), n, "kernel") for n, name in enumerate(("relay", "left", "right"), 1)
        )
        for node in (relay, left, right):
            ending.callback(node.end)
        relay.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        program = relay.host.directory / "forwarder"
        subprocess.run(("cc", "-O2", "-o", program, FORWARDER), check=True)
        relay.host.start(program, "7000", left.host.address, "7001", right.host.address, str(PORT))
        members = (left.member, right.member)
        wanted = netmap(relay.member, *members, rules=())
        relay.apply(with_relays(wanted, relay.member, between=[members]))

        def way(to_left: str, to_right: str) -> Callable[[], float]:
            def run() -> float:
                for node, peer, endpoint in ((left, right, to_right), (right, left, to_left)):
                    node.apply(with_relays(netmap(node.member, at(peer.member, endpoint)), relay.member))
                eventually(lambda: left.ping(right.member.address), PATIENCE, what="an answer")
                return iperf3(left, right)

            return run

        found = alternate(
            {
                "direct": way(left.member.endpoints[0], right.member.endpoints[0]),
                "relay, in its kernel": way(behind(relay.member, left.member), behind(relay.member, right.member)),
                "forwarder, in user space": way(f"{relay.host.address}:7001", f"{relay.host.address}:7000"),
            },
            ROUNDS,
        )
    direct, relayed, forwarded = (runs.highest for runs in found.values())
    rows = [(name, runs.highest, runs.median, runs.highest / direct) for name, runs in found.items()]
    bench.table("TCP between two hosts", ("", "Mbit/s", "median", "of direct"), rows)
    bench.bar("relayed_of_direct", relayed / direct, ">=", 0.25)
    bench.bar("relayed_of_forwarder", relayed / forwarded, ">=", 3)


def at(member: Member, endpoint: str) -> Member:
    return replace(member, endpoints=(endpoint,))
