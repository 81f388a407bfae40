"""The processes of one gateway, as each of them sees the others: every connection is served where its caller's are.

The kernel chooses a process by the same rule (`sockets.listening`), as long as it has them in order. It has not when
one of them was started again, or when two of them took up ports at the same time, so whoever got what is another's
passes it on before a byte of it is read. Knows no HTTP.
"""

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from .sockets import process_of

__all__ = ["Family", "Siblings"]

log = logging.getLogger("agentd.gateway")

_LONGEST: Final = 256  # bytes of a service's name


class Family:
    """The parent's: what connections are passed on by. It outlives every worker, so that nothing passed on is lost."""

    def __init__(self, count: int) -> None:
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        for one in (end for pair in self._pairs for end in pair):
            one.setblocking(False)

    def descriptors(self, number: int) -> tuple[int, ...]:
        """What worker `number` inherits: where it takes connections, then where those of each worker are put."""
        return (self._pairs[number][0].fileno(), *(pair[1].fileno() for pair in self._pairs))

    def close(self) -> None:
        for one in (end for pair in self._pairs for end in pair):
            one.close()


class Siblings:
    """Of worker `number`, which inherited these descriptors."""

    def __init__(self, number: int, descriptors: Sequence[int]) -> None:
        taking, *putting = (socket.socket(fileno=one) for one in descriptors)
        self._number = number
        self._taking = taking
        self._putting = putting

    def start(self, take: Callable[[str, socket.socket], None]) -> None:
        """Give `take` whatever is passed on to us, each with the name of its service. The socket is the taker's."""
        asyncio.get_running_loop().add_reader(self._taking, self._read, take)

    def close(self) -> None:
        """What is still on its way waits for whoever is worker `number` next."""
        asyncio.get_running_loop().remove_reader(self._taking)
        for one in (self._taking, *self._putting):
            one.close()

    def pass_on(self, service: str, peer: str, descriptor: int) -> bool:
        """Pass on a connection of this address, if it is another's. True: it is not ours, and is to be closed here."""
        home = _home(peer, len(self._putting))
        if home == self._number:
            return False
        try:
            socket.send_fds(self._putting[home], [service.encode()], [descriptor])
        except OSError as error:
            # Served here it would have its caller's limits a second time.
            log.warning("a connection could not be passed on: %s", error.strerror, extra={"worker": home})
        return True

    def _read(self, take: Callable[[str, socket.socket], None]) -> None:
        try:
            name, descriptors, _, _ = socket.recv_fds(self._taking, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        for descriptor in descriptors:
            connection = socket.socket(fileno=descriptor)
            connection.setblocking(False)
            take(name.decode(), connection)


@lru_cache(maxsize=4096)
def _home(peer: str, processes: int) -> int:
    return process_of(ipaddress.ip_address(peer), processes)
