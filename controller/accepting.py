"""Accepts connections no faster than their TLS handshakes end; the rest wait in the kernel's queue.

Handshakes are the dearest that strangers can ask for. Without this, thousands of hosts that come at once have all of
theirs begun before anything else is served. Knows nothing of what is spoken afterwards.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Final

__all__ = ["Acceptor"]

_log = logging.getLogger(__name__)
_AT_ONCE: Final = 32  # handshakes: some 50 ms of CPU
# Seconds after which a handshake no longer counts: it waits for its client, not for us. Somebody who opens connections
# and says nothing slows others down to 32 of them in this time, and no further.
_PATIENCE: Final = 0.5
_HANDSHAKE_WITHIN: Final = 20.0  # seconds
_NO_MORE_FILES: Final = 1.0  # seconds until the next attempt


class Acceptor:
    """Accepts on one listening socket while `run` runs."""

    def __init__(self, protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext) -> None:
        self._protocol = protocol
        self._context = context
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._handshakes: set[asyncio.Task[None]] = set()

    async def run(self, listening: socket.socket) -> None:
        """Accept until cancelled; handshakes under way end with it."""
        loop = asyncio.get_running_loop()
        listening.setblocking(False)
        try:
            while True:
                await self._slots.acquire()
                try:
                    connection, _ = await loop.sock_accept(listening)
                except OSError as error:
                    self._slots.release()
                    _log.error("no connection can be accepted for %g s: %s", _NO_MORE_FILES, error)
                    await asyncio.sleep(_NO_MORE_FILES)
                    continue
                task = asyncio.create_task(self._handshake(connection))
                self._handshakes.add(task)
                task.add_done_callback(self._handshakes.discard)
        finally:
            for task in self._handshakes:
                task.cancel()
            await asyncio.gather(*self._handshakes, return_exceptions=True)

    async def _handshake(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        late = loop.call_later(_PATIENCE, self._slots.release)
        try:
            await loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._context, ssl_handshake_timeout=_HANDSHAKE_WITHIN
            )
        except (OSError, TimeoutError) as error:  # ssl.SSLError is an OSError
            _log.debug("a TLS handshake failed: %s", error)
            connection.close()
        finally:
            if loop.time() < late.when():
                late.cancel()
                self._slots.release()
