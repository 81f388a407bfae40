"""Parts two hosts of the internet and joins them again, and sends streams between them meanwhile."""

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from tests.kernel.finders import Finder
from tests.kernel.nodes import listening

__all__ = ["PER_SECOND", "join", "look_again", "part", "places", "stream", "transfer"]

PER_SECOND = 100  # datagrams of a stream
# Nothing passes from one to the other but by way of a third.
_NOTHING = "add table inet between; delete table inet between"
_BETWEEN = """
table inet between
delete table inet between
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
        here.host.nft(_NOTHING)


def look_again(*hosts: Finder) -> None:
    """As after a change of addresses: all endpoints are asked anew."""

    async def moved(host: Finder) -> None:
        host.prober.moved()

    for host in hosts:
        host.call(partial(moved, host))


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


@contextmanager
def places(one: Finder, other: Finder) -> Iterator[list[str]]:
    """Where the one looks for the other, each time that it is somewhere else."""
    seen: list[str] = []
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(0.02):
            if seen[-1:] != [one.endpoint(other)]:
                seen.append(one.endpoint(other))

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@contextmanager
def transfer(source: Finder, target: Finder) -> Iterator[Callable[[], int]]:
    """Random bytes by TCP through the tunnel, 400 KB a second, which must come as they went, however long that takes.

    Yields how many have come so far.
    """
    ended = threading.Event()
    went, came = hashlib.sha256(), hashlib.sha256()
    count = 0
    with listening(target.host, target.member.address, 9001) as server, source.host.socket() as sender:
        sender.settimeout(60)
        sender.connect((target.member.address, 9001))
        receiver, _ = server.accept()
        with receiver:
            receiver.settimeout(60)

            def receive() -> None:
                nonlocal count
                while data := receiver.recv(65536):
                    came.update(data)
                    count += len(data)

            def send() -> None:
                while not ended.wait(0.02):  # its rate is what a stream is
                    data = os.urandom(8000)
                    went.update(data)
                    sender.sendall(data)
                sender.shutdown(socket.SHUT_WR)

            threads = [threading.Thread(target=work) for work in (receive, send)]
            for thread in threads:
                thread.start()
            try:
                yield lambda: count
            finally:
                ended.set()
                for thread in threads:
                    thread.join()
    assert came.hexdigest() == went.hexdigest()
