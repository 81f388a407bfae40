"""The UDP socket of agentd's STUN: what leaves it leaves this host from WireGuard's port, as the nftables table says.

Knows nothing of what is in the datagrams.
"""

import ipaddress
import logging
import socket
from collections.abc import Iterator
from typing import Final

from controller.wire.base import Endpoint, format_endpoint, split_endpoint

__all__ = ["ProbeSocket"]

log = logging.getLogger("agentd.probing")

_LARGEST: Final = 65535  # bytes of a datagram
# linux/in.h and linux/in6.h: DF is set, and what ICMP said of the path is not taken for an answer.
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3
_AT_ONCE: Final = 64  # datagrams between two looks at everything else
# Ports that people give to WireGuard, which must be free when its link is made.
_WIREGUARD_PORTS: Final = range(51820, 51920)


class ProbeSocket:
    """One UDP socket for both families, at a port that the kernel chooses. Use as a context manager."""

    def __init__(self, listen_port: int) -> None:
        self._socket = _bind({listen_port, *_WIREGUARD_PORTS})
        self.six = self._socket.family == socket.AF_INET6

    def __enter__(self) -> "ProbeSocket":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    @property
    def port(self) -> int:
        """Its own port, which nobody outside sees."""
        return int(self._socket.getsockname()[1])

    def fileno(self) -> int:
        """Its descriptor."""
        return self._socket.fileno()

    def send(self, data: bytes, to: Endpoint) -> None:
        """Send, if there is a way there: a question without a way is a question without an answer."""
        address, port = split_endpoint(to)
        if self.six and ":" not in address:
            address = f"::ffff:{address}"
        try:
            self._socket.sendto(data, (address, port))
        except OSError as error:
            log.debug("no way to %s: %s", to, error.strerror)

    def received(self) -> Iterator[tuple[bytes, Endpoint]]:
        """What has come, with its source."""
        for _ in range(_AT_ONCE):
            try:
                data, source = self._socket.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("the probes' socket: %s", error.strerror)  # an ICMP error about something sent earlier
                continue
            address = ipaddress.ip_address(source[0].partition("%")[0])
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
                address = address.ipv4_mapped
            if source[1]:
                yield data, format_endpoint(str(address), source[1])


def _bind(taken: set[int]) -> socket.socket:
    while True:
        try:
            made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            made.bind(("::", 0))
        except OSError:  # a kernel without IPv6
            made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
            made.bind(("", 0))
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
        if made.getsockname()[1] not in taken:
            return made
        made.close()
