"""The sockets of the mesh's DNS responder: UDP and TCP at one loopback address, for this host alone (RFC 7766).

What is answered is `dns`'s; who asks us, and for what, is `naming`'s.
"""

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Final

from controller.wire.base import format_endpoint

from .dns import Zone, respond
from .errors import AgentError

__all__ = ["DnsError", "DnsServer"]

log = logging.getLogger("agentd.dns")

_IDLE: Final = 10.0  # seconds that a TCP connection may be silent
_MOST_CONNECTIONS: Final = 64
_LONGEST: Final = 4096  # bytes of a question; what is longer is none
_AT_ONCE: Final = 64


class DnsError(AgentError):
    """The responder cannot listen; names the address and the remedy."""


class DnsServer:
    """Answers from `zone`, which may be replaced at any time."""

    def __init__(self, zone: Zone) -> None:
        self.zone = zone
        self._udp: socket.socket | None = None
        self._tcp: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, address: str, port: int) -> int:
        """Listen; returns the port, for who asked for any (0). Raises DnsError."""
        loop = asyncio.get_running_loop()
        try:
            self._tcp = await asyncio.start_server(self._converse, address, port)
            port = self._tcp.sockets[0].getsockname()[1]
            self._udp = _datagrams(address, port)
            loop.add_reader(self._udp, self._hear, self._udp)
        except OSError as error:
            await self.close()
            where = format_endpoint(address, port)
            raise DnsError(
                f"the mesh's names cannot be answered for at {where} ({error.strerror}): set dns to another port of a "
                "loopback address, or to false"
            ) from error
        return port

    async def close(self) -> None:
        """Stop listening, and end what is open."""
        if self._udp is not None:
            asyncio.get_running_loop().remove_reader(self._udp)
            self._udp.close()
            self._udp = None
        if self._tcp is not None:
            self._tcp.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _hear(self, udp: socket.socket) -> None:
        """Answer what is there, some at a time: it takes microseconds each."""
        for _ in range(_AT_ONCE):
            try:
                message, sender = udp.recvfrom(_LONGEST)
                answer = respond(message, self.zone)
                if answer is not None:
                    udp.sendto(answer, sender)
            except BlockingIOError:  # nothing more, or no room: then it is asked again
                return
            except OSError as error:  # somebody did not wait for the answer
                log.debug("an answer could not be delivered: %s", error)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= _MOST_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                while answer := await self._answer(reader):
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    async with asyncio.timeout(_IDLE):
                        await writer.drain()
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes | None:
        """The answer to the next question; None: there is no more to say."""
        async with asyncio.timeout(_IDLE):
            length = int.from_bytes(await reader.readexactly(2), "big")
            if length > _LONGEST:
                return None
            message = await reader.readexactly(length)
        return respond(message, self.zone, tcp=True)


def _datagrams(address: str, port: int) -> socket.socket:
    udp = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    try:
        udp.setblocking(False)
        udp.bind((address, port))
    except OSError:
        udp.close()
        raise
    return udp
