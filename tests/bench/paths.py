"""How soon hosts behind NATs and firewalls reach each other, what a relay costs, what a change of path costs a flow.

All with kernel WireGuard in one lab, where the hosts share a CPU. Throughput is compared in the same run: direct, by
way of a relay's kernel, and by way of relays in user space on the same host: coturn, and the plainest forwarder.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from socket import AF_INET, SOCK_STREAM
from typing import Final

from tests.bench.figures import Bench
from tests.bench.relaying.cpu import cpu
from tests.bench.relaying.programs import installed
from tests.bench.relaying.throughput import throughput
from tests.kernel.finders import KINDS, Finder, finders, in_theory, two_of_each
from tests.kernel.nodes import listening
from tests.kernel.parting import PER_SECOND, join, look_again, part, stream
from tests.lab import Lab, eventually
from tests.unit.path_load import packets_per_second

NEEDS_KERNEL = True
PATIENCE: Final = 30.0  # seconds
SECONDS: Final = 4  # of the stream during which paths change


def prepare() -> None:
    """Install coturn and build what it is used with, which needs the network."""
    installed()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", choices=PARTS, help="measure this part alone")


def measure(bench: Bench, options: argparse.Namespace) -> None:
    for name, measure_part in PARTS.items():
        if options.only in {None, name}:
            measure_part(bench)


def load(bench: Bench) -> None:
    bench.bar("packets_per_second_500_peers", packets_per_second(500), "<=", 5)


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
    with Lab() as lab, two_of_each(lab, kinds) as (left, right, _):
        first, direct = [], []
        for pair in itertools.combinations_with_replacement(kinds, 2):
            one, other = left[pair[0]], right[pair[1]]
            one.meet(other)
            other.meet(one)
            took = until(f"an answer between {pair}", partial(answers, one, other))
            first.append(took)
            if in_theory(*pair):
                took += until(f"a direct path of {pair}", partial(one.works_directly, other))
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


PARTS: Final = {"load": load, "cells": cells, "changes": changes, "throughput": throughput, "cpu": cpu}
