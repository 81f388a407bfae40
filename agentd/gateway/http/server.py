"""The server: listening sockets, the connections that came in, and the times that bound them.

What requests mean is the `App`'s.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from .connection import Connection
from .doorway import Doorway
from .exchange import Begun, Exchange
from .heads import KnownHeads
from .limits import HttpLimits

__all__ = ["App", "Server"]


class App(Protocol):
    """What a server serves."""

    async def admit(self, peer: str) -> bool:
        """May this address talk to us at all? False: the connection ends without a byte."""
        ...

    def begin(self, exchange: Exchange) -> Begun | None:
        """Answer one request that is there whole, without waiting for anybody but the upstream.

        None: nothing was done; `serve` is to answer it. What was begun says so to the exchange when it has ended.
        """
        ...

    async def serve(self, exchange: Exchange) -> None:
        """Answer one request. Cancelled when the client is gone, unless the exchange goes on without it."""
        ...


class Server:
    """One app behind any number of listening sockets. `limits` may be replaced at any time.

    `pass_on` gets each connection that comes, its peer and its descriptor, before it is read; True: it is another's.
    """

    def __init__(
        self, app: App, limits: HttpLimits | None = None, pass_on: Callable[[str, int], bool] | None = None
    ) -> None:
        self.app = app
        self.limits = limits or HttpLimits()
        self._pass_on = pass_on
        self.connections: set[Connection] = set()
        self.orphans: set[Connection] = set()  # whose client is gone, but whose exchange goes on
        self.heads = KnownHeads()
        self.draining = False
        self._quiet = asyncio.Event()
        self._listeners: list[asyncio.Server] = []
        self._doorways: list[Doorway] = []
        self._tick: asyncio.TimerHandle | None = None

    async def listen(self, listening: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Serve connections of a bound socket, over TLS if `tls` is given; it is ours from now on."""
        loop = asyncio.get_running_loop()
        if tls is None:
            self._listeners.append(await loop.create_server(lambda: Connection(self), sock=listening, backlog=1024))
        else:
            self._doorways.append(Doorway(self, listening, tls))
        if self._tick is None:
            self._tick = loop.call_later(self.limits.tick, self._look)

    async def take(self, connection: socket.socket, *, tls: bool) -> None:
        """Serve a connection that another process accepted at one of our addresses; it is ours from now on."""
        try:
            local, peer = connection.getsockname()[:2], connection.getpeername()[0]
        except OSError:
            connection.close()  # it went away on its way to us
            return
        doorway = next((one for one in self._doorways if one.place == local), None)
        if doorway is not None:
            doorway.take(connection, peer)
        elif tls or self.draining:
            connection.close()
        else:
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: Connection(self, settled=True), connection)

    def turns_away(self, peer: str, descriptor: int, *, settled: bool) -> bool:
        """Is a connection that came not to be served here? `peer` is empty when whoever it was has gone already;
        `settled`: it is ours, whoever calls.
        """
        if not peer or (not settled and self.passes_on(peer, descriptor)):
            return True
        return self.draining or len(self.connections) >= self.limits.connections

    def passes_on(self, peer: str, descriptor: int) -> bool:
        """Is this connection another's? Then it has been passed on."""
        return self._pass_on is not None and self._pass_on(peer, descriptor)

    async def close(self, grace: float) -> None:
        """Stop listening, let running exchanges end for `grace` seconds, then end them."""
        for listener in self._listeners:
            listener.close()
        self.draining = True
        await asyncio.gather(*(doorway.close() for doorway in self._doorways))
        for connection in list(self.connections):
            connection.retire()
        self.forget(None)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._quiet.wait(), grace)
        tasks = [connection.abort() for connection in (*self.connections, *self.orphans)]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None

    def has_room(self) -> bool:
        """May another connection begin, besides those that are there and those that greet?"""
        there = len(self.connections) + sum(map(len, self._doorways))
        return not self.draining and there < self.limits.connections

    def forget(self, connection: "Connection | None") -> None:
        """The connection has ended."""
        if connection is not None:
            self.connections.discard(connection)
        if self.draining and not self.connections:
            self._quiet.set()

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            if connection.deadline < now:
                connection.out_of_time()
        self._tick = loop.call_later(self.limits.tick, self._look)
