"""Parts two hosts of the internet and joins them again, and sends streams between them meanwhile."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kernel.finders import Finder

__all__ = ["PER_SECOND", "join", "look_again", "part", "stream"]

PER_SECOND = 100  # datagrams of a stream
# Nothing passes from one to the other but by way of a third.
_BETWEEN = """
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
        here.host.nft(_BETWEEN.format(four=there.host.address, six=there.host.address6))


def join(one: Finder, other: Finder) -> None:
    for here in (one, other):
        here.host.run("nft", "delete", "table", "inet", "between")


def look_again(*hosts: Finder) -> None:
    """As after a change of addresses: all endpoints are asked anew."""

    async def moved(host: Finder) -> None:
        host.prober.moved()

    for host in hosts:
        host.call(lambda host=host: moved(host))


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
            for number in range(int(seconds * PER_SECOND)):
                sender.sendto(number.to_bytes(4, "big"), (target.member.address, 9000))
                time.sleep(max(0.0, begin + number / PER_SECOND - time.monotonic()))  # its rate is what a stream is

        threads = [threading.Thread(target=work) for work in (receive, send)]
        for thread in threads:
            thread.start()
        yield arrived
        for thread in threads:
            thread.join()
