"""A listening socket for TLS: who is let in to greet, for how long, and who is sent away with a word.

A greeting costs the server more than the client, so it is not begun with who has no business here; and one that is not
TLS at all gets an answer that says so, in the language that it came in.
"""

import asyncio
import logging
import socket
import ssl
from typing import TYPE_CHECKING, Final

from .connection import Connection
from .head import BadRequestError

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Doorway"]

log = logging.getLogger("agentd.gateway.http")

_HANDSHAKE: Final = b"\x16"  # the record type that every TLS connection begins with (RFC 8446 section 5.1)
_PAUSE: Final = 0.5  # seconds, when no connection can be accepted
_NOT_TLS: Final = "this port is for https, and the request came without TLS: write https:// instead of http://"


class Doorway:
    """Accepts the connections of a bound socket, which is ours from now on, for `server`."""

    def __init__(self, server: "Server", listening: socket.socket, tls: ssl.SSLContext) -> None:
        self._server = server
        self._listening = listening
        self.place = listening.getsockname()[:2]
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._greeting: set[asyncio.Task[None]] = set()
        self._accepting = self._loop.create_task(self._accept())

    def __len__(self) -> int:
        """How many are greeting."""
        return len(self._greeting)

    async def close(self) -> None:
        """Accept nobody any more; whoever is still greeting is cut."""
        tasks = [self._accepting, *self._greeting]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listening.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._listening)
            except ConnectionError:
                continue  # it went away while it waited (accept(2))
            except OSError as error:
                log.warning("no connection can be accepted now: %s", error.strerror)
                await asyncio.sleep(_PAUSE)
                continue
            if self._server.passes_on(address[0], connection.fileno()):
                connection.close()
            else:
                self.take(connection, address[0])

    def take(self, connection: socket.socket, peer: str) -> None:
        """Greet who is at this connection, which is ours from now on."""
        if not self._server.has_room():
            connection.close()
            return
        task = self._loop.create_task(self._greet(connection, peer))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, connection: socket.socket, peer: str) -> None:
        """Until the handshake is over, within the time that a request's head has."""
        seconds = self._server.limits.head_seconds
        until = self._loop.time() + seconds
        handed_over = False
        try:
            async with asyncio.timeout(seconds):
                admitted = await self._server.app.admit(peer)
                first = await self._first_byte(connection) if admitted else b""
            if not first:
                return
            handed_over = True
            if first == _HANDSHAKE:
                await self._loop.connect_accepted_socket(
                    lambda: Connection(self._server, settled=True),
                    connection,
                    ssl=self._tls,
                    ssl_handshake_timeout=max(until - self._loop.time(), 0.001),
                    ssl_shutdown_timeout=self._server.limits.linger,
                )
            else:
                fault = BadRequestError(400, _NOT_TLS)
                await self._loop.connect_accepted_socket(
                    lambda: Connection(self._server, fault, settled=True), connection
                )
        except (TimeoutError, OSError) as error:  # ssl.SSLError is an OSError
            log.debug("no TLS connection with %s: %s", peer, error)
        except Exception:
            # One greeting's failure must not be lost, and must not end the others.
            log.exception("a connection from %s could not be begun", peer)
        finally:
            if not handed_over:
                connection.close()

    async def _first_byte(self, connection: socket.socket) -> bytes:
        """The first byte that came, which stays to be read; none when the client hung up."""
        ready = asyncio.Event()
        self._loop.add_reader(connection, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(connection)
        return connection.recv(1, socket.MSG_PEEK)
