"""Reconcilers on the lab's hosts: what agentd is without its controller. Everything in the kernel is real."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeVar

import pytest

from agentd.model import LinkSettings, Observed, ObservedPeer
from agentd.operations import Operation
from agentd.plan import Choices
from agentd.reconcile import Applied, Reconciler
from controller.wire.netmap import Netmap, Rule
from tests.kernel.maps import Member, netmap
from tests.lab import Host, Lab

__all__ = ["BACKENDS", "Node", "OnHost", "listening", "on_one_switch", "pair"]

T = TypeVar("T")
# The userspace backend runs on any kernel; the other only where the kernel has WireGuard.
BACKENDS = [pytest.param("kernel"), pytest.param("userspace", marks=pytest.mark.host_kernel)]


class OnHost:
    """An event loop on a thread that stays on a host: whatever runs there opens that host's sockets."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: host.call(lambda: self._serve(started)))
        self._thread.start()
        assert started.wait(10)

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.call_soon(started.set)
        self._loop.run_forever()
        self._loop.close()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float = 60) -> T:
        """Run a coroutine there and return its result."""
        return self.begin(work).result(timeout)

    def begin(self, work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """Start a coroutine there; returns its future."""

        async def there() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(there(), self._loop)

    def end(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


Backend = Literal["auto", "kernel", "userspace"]


class Node(OnHost):
    """A reconciler on a host. `member` is how maps should name it."""

    def __init__(
        self, host: Host, number: int, backend: Backend, *, endpoint: str | None = None, **settings: Any
    ) -> None:
        super().__init__(host)
        self.settings = LinkSettings(backend=backend, **settings)
        place = endpoint or f"{host.address}:{self.settings.listen_port}"
        self.member = Member(number, endpoints=(place,))
        self.netmap: Netmap | None = None
        self.put_back = 0.0  # when `watching` last did (time.monotonic)
        self.late: set[str] = set()  # names of those with whom a handshake without an end is begun anew
        self._choices = Choices(anew=lambda peer: peer.name in self.late)
        self.reconciler = Reconciler(self.settings, self.member.private_key, choices=self._choices)
        self.call(self.reconciler.start)

    def restart(self, **settings: Any) -> None:
        """As after a restart of agentd: a reconciler that knows nothing but what it sees, perhaps with new settings."""
        self.call(self.reconciler.close)
        self.settings = replace(self.settings, **settings)
        self.reconciler = Reconciler(self.settings, self.member.private_key, choices=self._choices)
        self.call(self.reconciler.start)

    def apply(self, wanted: Netmap) -> Applied:
        self.netmap = wanted
        return self.call(lambda: self.reconciler.apply(wanted))

    def meet(self, *others: "Node | Member", rules: Iterable[Rule] | None = None) -> Applied:
        """Apply the map with these peers."""
        members = [other.member if isinstance(other, Node) else other for other in others]
        return self.apply(netmap(self.member, *members, rules=rules))

    def plan(self) -> list[str]:
        """What another apply of the same map would do."""
        wanted = self.netmap
        assert wanted is not None
        return [str(operation) for operation in self.call(lambda: self.reconciler.plan(wanted))]

    def observe(self) -> Observed:
        return self.call(self.reconciler.observe)

    def peer(self, other: "Node | Member") -> ObservedPeer:
        member = other.member if isinstance(other, Node) else other
        return self.observe().peers[member.public_key]

    def remove(self) -> list[Operation]:
        return self.call(self.reconciler.remove)

    def rekey(self) -> None:
        """Give it another private key."""
        self.member = replace(self.member, private_key=os.urandom(32))
        self.call(lambda: self.reconciler.set_private_key(self.member.private_key))

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        """Put back whatever somebody else changes, as agentd does; yields the reasons so far."""
        reasons: list[str] = []

        async def watch() -> None:
            async for reason in self.reconciler.drift():
                assert self.netmap is not None
                await self.reconciler.apply(self.netmap)
                self.put_back = time.monotonic()
                reasons.append(reason)

        task = self.begin(watch)
        try:
            yield reasons
            assert not task.done(), task.exception()
        finally:
            task.cancel()

    def ping(self, target: str, *options: str, wait: float = 2) -> bool:
        return self.host.run("ping", "-n", "-c1", "-W", str(wait), *options, target, check=False).returncode == 0

    def end(self) -> None:
        """Remove what it made (a process of wireguard-go would outlive the test) and end its thread."""
        self.call(self.reconciler.remove)
        self.call(self.reconciler.close)
        super().end()


@contextmanager
def pair(backend: Backend, *, over: int = 4, **settings: Any) -> Iterator[tuple[Node, Node]]:
    """Two nodes on one switch that may do everything with each other, over IPv4 or IPv6 outside."""
    with on_one_switch(backend, "ab", over=over, **settings) as (left, right):
        left.meet(right)
        right.meet(left)
        yield left, right


@contextmanager
def on_one_switch(backend: Backend, names: Iterable[str], *, over: int = 4, **settings: Any) -> Iterator[list[Node]]:
    """Nodes on one switch, numbered from 1, without a map yet."""
    with Lab() as lab:
        switch = lab.switch("net")
        nodes: list[Node] = []
        try:
            for number, name in enumerate(names, 1):
                host = lab.host(name, switch)
                place = f"{host.address}:51820" if over == 4 else f"[{host.address6}]:51820"
                nodes.append(Node(host, number, backend, endpoint=place, **settings))
            yield nodes
        finally:
            for node in nodes:
                node.end()


@contextmanager
def listening(host: Host, address: str, port: int) -> Iterator[socket.socket]:
    """A TCP listener on that host."""
    with host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        server.settimeout(10)
        yield server
