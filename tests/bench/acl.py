"""What per-host ACLs cost: throughput with large tables, a membership change, a compile, an explanation, a revocation.

Throughput is TCP through the kernel's tunnel between two hosts, with the table of a large map at both ends, against the
same tunnel with a small map's table and with no table at all. A revocation is timed from the REST call to the last
byte of a live TCP flow that arrives, through a real controller and two real agentd.
"""

import ipaddress
import json
import socket
import statistics
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from controller.wire.base import Address
from controller.wire.netmap import AddressSet, Direction, Netmap, Rule
from tests.bench.figures import Bench, alternate
from tests.bench.policies import explanation, policy_at_scale
from tests.kernel.maps import MESH, allow, netmap
from tests.kernel.nodes import Node, listening, pair
from tests.lab import Lab, eventually
from tests.lab.mesh import Agent, Controller

T = TypeVar("T")
NEEDS_KERNEL = True
SOURCES: Final = 10_000
RULES: Final = 200
SETS: Final = 20
ROUNDS: Final = 12
SECONDS: Final = 2  # of one throughput run
CHANGES: Final = 30
REVOCATIONS: Final = 40
FLUSHES: Final = 20
PORT: Final = 5201  # iperf3's
PROBE_PORT: Final = 51821  # so that the table has the rules for STUN, too, as agentd's has
ALLOWED: Final = "grants: [{from: ['tag:client'], to: ['tag:server'], ip: ['tcp:8000']}]\n"
NOBODY: Final = "grants: []\n"


def measure(bench: Bench) -> None:
    with pair("kernel", probe_port=PROBE_PORT) as (left, right):
        throughput(bench, left, right)
        membership_change(bench, left, right)
    policy_at_scale(bench)
    explanation(bench)
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        client = Agent.join(lab.host("client", switch), controller.join_string("tag:client"))
        server = Agent.join(lab.host("server", switch), controller.join_string("tag:server"))
        revocation(bench, controller, client, server)
        restoration(bench, server)


# --- throughput -------------------------------------------------------------------------------------------------------


def throughput(bench: Bench, left: Node, right: Node) -> None:
    """Alternating runs of the same transfer under three tables, at both ends alike."""
    large = (large_map(left, right, "out"), large_map(right, left, "in"))
    small = (small_map(left, right, "out"), small_map(right, left, "in"))

    def run(maps: tuple[Netmap, Netmap] | None) -> float:
        for node, wanted in zip((left, right), maps or small, strict=True):
            node.apply(wanted)
            if maps is None:
                node.host.run("nft", "delete", "table", "inet", node.settings.table)
                node.call(partial(forget, node))
        return iperf3(left, right)

    found = alternate(
        {
            "no table": lambda: run(None),
            "10 sources, 2 rules": lambda: run(small),
            f"{SOURCES} sources, {RULES} rules": lambda: run(large),
        },
        ROUNDS,
    )
    best = {name: runs.highest for name, runs in found.items()}
    none, few, many = best.values()
    bench.table(
        f"TCP through the tunnel, best of {ROUNDS} alternating runs of {SECONDS} s",
        ("", "Mbit/s", "median", "of no table"),
        [(name, runs.highest, runs.median, runs.highest / none) for name, runs in found.items()],
    )
    bench.figure("no_table_mbit_s", none)
    bench.bar("large_table_over_no_table", many / none, ">=", 0.93)
    bench.bar("large_table_over_small_table", many / few, ">=", 0.97)


async def forget(node: Node) -> None:
    """The table is gone by our own hand: the next apply must write it whole."""
    opened = node.reconciler._open
    opened.firewall.forget()


def iperf3(left: Node, right: Node) -> float:
    """Mbit/s of one TCP stream from left to right."""
    # The first second is left out: the kernel still frees the table before, and agentd still reads what it announces.
    server = right.host.start("iperf3", "-s", "-1", "-B", right.member.address, "-p", str(PORT))
    eventually(lambda: listens(right, PORT), 10)
    said = left.host.run(
        *("iperf3", "-c", right.member.address, "-p", str(PORT), "-t", str(SECONDS), "-O", "1", "-J"),
        timeout=SECONDS + 30,
    ).stdout
    server.wait(10)
    return float(json.loads(said)["end"]["sum_received"]["bits_per_second"]) / 1e6


def listens(node: Node, port: int) -> bool:
    return str(port) in node.host.run("ss", "-Hltn", f"sport = :{port}").stdout


def small_map(own: Node, other: Node, direction: Direction) -> Netmap:
    """10 addresses, 2 rules, one of which lets the transfer pass."""
    sets = {"few": [other.member.address, *strangers(9)]}
    return filtered(own, other, sets, [allow(direction, "tcp", PORT, peers=["few"]), allow(direction, "icmp")])


def large_map(own: Node, other: Node, direction: Direction) -> Netmap:
    """10,000 addresses in sets that rules name by twos, single ports and ranges; the transfer passes like any other."""
    addresses = [other.member.address, *strangers(SOURCES - 1)]
    sets = {f"tag:t{number}": addresses[number::SETS] for number in range(SETS)}
    rules = []
    for number in range(RULES):
        ports = (20_000 + number * 10, 20_000 + number * 10 + 5) if number % 4 == 0 else 10_000 + number
        named = [f"tag:t{number % SETS}", f"tag:t{(number + 7) % SETS}"]
        rules.append(allow(direction, "tcp", ports, peers=named, grant=f"g{number}"))
    rules[1] = allow(direction, "tcp", PORT, peers=["tag:t0", "tag:t1"], grant="g1")
    return filtered(own, other, sets, rules)


def filtered(own: Node, other: Node, sets: dict[str, list[Address]], rules: Iterable[Rule]) -> Netmap:
    plain = netmap(own.member, other.member, rules=rules)
    named = {name: AddressSet(name=name, addresses=frozenset(addresses)) for name, addresses in sets.items()}
    return plain.model_copy(update={"sets": plain.sets | named})


def strangers(count: int) -> list[Address]:
    first = int(ipaddress.ip_network(MESH.prefix4).network_address) + 4096
    return [str(ipaddress.ip_address(first + number)) for number in range(count)]


# --- one membership change --------------------------------------------------------------------------------------------


def membership_change(bench: Bench, left: Node, right: Node) -> None:
    """One address joins or leaves one of the large map's sets; what the destination's apply takes."""
    wanted = large_map(right, left, "in")
    right.apply(wanted)
    newcomer = strangers(SOURCES + 1)[-1]
    times, transactions = [], 0
    for number in range(CHANGES):
        old = wanted.sets["tag:t3"].addresses
        addresses = old ^ {newcomer}
        wanted = wanted.model_copy(
            update={"sets": wanted.sets | {"tag:t3": AddressSet(name="tag:t3", addresses=addresses)}}
        )
        started = time.perf_counter()
        applied = right.apply(wanted)
        times.append((time.perf_counter() - started) * 1000)
        transactions = max(transactions, applied.nft_transactions)
        present = newcomer in right.host.run("nft", "list", "map", "inet", right.settings.table, "from4").stdout
        if present != (number % 2 == 0):
            raise AssertionError(f"the kernel does not have change {number}")
    bench.table(
        f"one membership change with {SOURCES} sources and {RULES} rules loaded, ms",
        ("", "best", "median", "worst"),
        [("agentd's apply", min(times), statistics.median(times), max(times))],
    )
    bench.bar("membership_change_median_ms", statistics.median(times), "<=", 25)
    bench.bar("membership_change_nft_transactions", transactions, "<=", 1)


# --- revocation -------------------------------------------------------------------------------------------------------


def revocation(bench: Bench, controller: Controller, client: Agent, server: Agent) -> None:
    """From the REST call that takes a grant away to the last byte of a live flow that arrives."""
    address = controller.node("server").addresses[0]
    times = []
    for _ in range(REVOCATIONS):
        controller.put_policy(ALLOWED)
        with flow(client, server, address) as arrivals:
            eventually(partial(flowing, arrivals), 30)
            called = time.monotonic()
            controller.put_policy(NOBODY)
            quiet_for(arrivals, 0.5, 20)
            times.append(max(0.0, (arrivals[-1] - called) * 1000))
    p99 = nearly_worst(times)
    bench.table(
        f"revocation over REST to the last byte of a live TCP flow, {REVOCATIONS} times, ms",
        ("", "best", "p50", "p99"),
        [("agent and controller real, one switch", min(times), statistics.median(times), p99)],
    )
    bench.bar("revocation_p50_ms", statistics.median(times), "<=", 200)
    bench.bar("revocation_p99_ms", p99, "<=", 1000)


def nearly_worst(times: list[float]) -> float:
    """The 99th percentile."""
    return sorted(times)[min(len(times) - 1, round(0.99 * len(times)))]


@contextmanager
def flow(client: Agent, server: Agent, address: Address) -> Iterator[list[float]]:
    """A TCP flow that sends a few bytes every millisecond or so; yields the times at which bytes arrived."""
    arrivals: list[float] = []
    ended = threading.Event()
    with listening(server.host, address, 8000) as listener:
        outgoing = connect(client, address)
        incoming, _ = listener.accept()

        def send() -> None:
            while not ended.wait(0.001):
                try:
                    outgoing.send(b"tick", socket.MSG_DONTWAIT)
                except BlockingIOError:
                    continue  # the buffer is full: the flow is cut

        def receive() -> None:
            incoming.settimeout(0.1)
            while not ended.is_set():
                try:
                    if not incoming.recv(4096):
                        return
                except TimeoutError:
                    continue
                arrivals.append(time.monotonic())

        threads = [threading.Thread(target=send), threading.Thread(target=receive)]
        for thread in threads:
            thread.start()
        try:
            yield arrivals
        finally:
            ended.set()
            for thread in threads:
                thread.join()
            outgoing.close()
            incoming.close()


def connect(client: Agent, address: Address) -> socket.socket:
    """As soon as policy lets it: the maps of both ends may still be on their way."""

    def attempt() -> socket.socket | None:
        outgoing = client.host.socket(socket.AF_INET)
        outgoing.settimeout(0.3)
        try:
            outgoing.connect((address, 8000))
        except OSError:
            outgoing.close()
            return None
        outgoing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return outgoing

    found: list[socket.socket] = []

    def connected() -> bool:
        one = attempt()
        if one is not None:
            found.append(one)
        return bool(found)

    eventually(connected, 30)
    return found[0]


def flowing(arrivals: list[float]) -> bool:
    return len(arrivals) > 20


def quiet_for(arrivals: list[float], seconds: float, timeout: float) -> None:
    """Return when nothing has arrived for that long."""
    eventually(lambda: time.monotonic() - arrivals[-1] > seconds, timeout)


# --- a table that somebody flushes ------------------------------------------------------------------------------------


def restoration(bench: Bench, server: Agent) -> None:
    """From `nft flush ruleset` to the table as it was, which comes in one transaction.

    Without elements: whom the kernel has logged lately is among them.
    """
    listing = ("nft", "-s", "-t", "list", "table", "inet", "wardmesh")
    whole = server.host.run(*listing).stdout
    times = []
    for _ in range(FLUSHES):
        server.host.run("nft", "flush", "ruleset")
        flushed = time.monotonic()
        eventually(lambda: server.host.run(*listing, check=False).stdout == whole, 30)
        times.append((time.monotonic() - flushed) * 1000)
    bench.table(
        f"a table that is flushed, until it is back, {FLUSHES} times, ms",
        ("", "best", "median", "worst"),
        [("agentd's table", min(times), statistics.median(times), max(times))],
    )
    bench.bar("flushed_table_back_ms", max(times), "<=", 1000)
