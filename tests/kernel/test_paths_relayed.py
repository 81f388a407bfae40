"""Hosts choose relays, are found behind them at once, leave them for direct paths, and come back."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.kernel.finders import Finder, finders
from tests.lab import eventually

# What stands between two hosts on the internet: nothing passes from one to the other but by way of a third.
BETWEEN = """
table inet between {{
  chain input {{
    type filter hook input priority -400;
    ip saddr {four} drop
    ip6 saddr {six} drop
  }}
}}
"""


def part(one: Finder, other: Finder) -> None:
    """No packet gets from one to the other by the internet any more."""
    for here, there in ((one, other), (other, one)):
        here.host.nft(BETWEEN.format(four=there.host.address, six=there.host.address6))


def join(one: Finder, other: Finder) -> None:
    for here in (one, other):
        here.host.run("nft", "delete", "table", "inet", "between")


def look_again(*hosts: Finder) -> None:
    """As after a change of addresses: all endpoints are asked anew."""

    async def moved(host: Finder) -> None:
        host.prober.moved()

    for host in hosts:
        host.call(lambda host=host: moved(host))


@pytest.fixture(scope="module")
def parted() -> Iterator[list[Finder]]:
    """Two hosts that cannot reach each other, and two relays."""
    with finders("public", "public", relays=2) as found:
        one, other = found[:2]
        part(one, other)
        one.meet(other)
        other.meet(one)
        eventually(lambda: one.reaches(other), 30, what="a ping by way of a relay")
        eventually(lambda: (one.kind(other), other.kind(one)) == ("relay", "relay"), 30, what="a path for each")
        yield found


@contextmanager
def stream(source: Finder, target: Finder, seconds: float) -> Iterator[list[int]]:
    """A hundred numbered datagrams a second through the tunnel; yields the numbers that arrive."""
    arrived: list[int] = []
    with (
        source.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
        target.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((target.member.address, 9000))
        receiver.settimeout(3)

        def receive() -> None:
            try:
                while True:
                    arrived.append(int.from_bytes(receiver.recv(64), "big"))
            except TimeoutError:
                return

        def send() -> None:
            begin = time.monotonic()
            for number in range(int(seconds * 100)):
                sender.sendto(number.to_bytes(4, "big"), (target.member.address, 9000))
                time.sleep(max(0.0, begin + number / 100 - time.monotonic()))  # the rate is what is being asked about

        threads = [threading.Thread(target=work) for work in (receive, send)]
        for thread in threads:
            thread.start()
        yield arrived
        for thread in threads:
            thread.join()


def test_paths_by_way_of_a_relay_go_on_to_a_direct_one_without_losing_a_stream(parted: list[Finder]) -> None:
    one, other = parted[:2]
    with stream(one, other, 4) as arrived:
        join(one, other)
        look_again(one, other)
        eventually(lambda: one.works_directly(other) and other.works_directly(one), 20, what="a direct path for each")
    assert len(set(arrived)) >= 0.99 * 400
    eventually(lambda: one.sends_to(other) == other.sends_to(one) == "lan", 30, what="WireGuard to follow both")
    part(one, other)
    look_again(one, other)
    eventually(lambda: one.kind(other) == other.kind(one) == "relay", 20, what="the way back to a relay")
    eventually(lambda: one.reaches(other), 20, what="a ping by way of a relay again")


def test_paths_by_way_of_a_relay_that_is_lost_go_on_by_the_spare(parted: list[Finder]) -> None:
    one, other, *relays = parted
    used = one.prober.relay_of(one.endpoint(other))
    lost = next(relay for relay in relays if relay.member.name == used)
    lost.host.run("ip", "link", "set", "eth0", "down")
    eventually(lambda: one.prober.relay_of(one.endpoint(other)) not in {used, None}, 30, what="the spare")
    eventually(lambda: one.reaches(other), 30, what="a ping by way of the spare")
    assert len(one.prober.relayed) == 1
    lost.host.run("ip", "link", "set", "eth0", "up")
    eventually(lambda: len(one.prober.relayed) == 2, 60, what="the lost relay to be the spare of others")
