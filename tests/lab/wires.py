"""Makes a lab's links, addresses and routes without a process for each: in the guest, one costs as much as thirty
messages to the kernel.

rtnetlink(7), no more of it than a lab needs. Knows nothing of topologies; everything else is for `ip`.
"""

import ipaddress
import os
import socket
import struct
from types import TracebackType
from typing import Final, Self

__all__ = ["Wires"]

# include/uapi/linux/netlink.h
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_REQUEST_ACK, _REPLACE, _EXCL, _CREATE = 0x5, 0x100, 0x200, 0x400
_ERROR: Final = 2
# rtnetlink.h, if_link.h, if_addr.h, veth.h, if.h
_NEWLINK, _SETLINK, _NEWADDR, _NEWROUTE = 16, 19, 20, 24
_IFINFOMSG: Final = struct.Struct("=BxHiII")
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_RTMSG: Final = struct.Struct("=BBBBBBBBI")
_IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 10, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02
_RTA_OIF, _RTA_GATEWAY = 4, 5
_TABLE_MAIN, _PROTOCOL_BOOT, _TYPE_UNICAST = 254, 3, 1
_UP: Final = 1


class Wires:
    """For the network namespace that the thread is in when it is made, and in which it stays until the end.

    Every method raises OSError with the kernel's reason.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def up(self, name: str) -> None:
        """Set a link up."""
        self._send(_SETLINK, 0, _link(name, up=True))

    def bridge(self, name: str) -> None:
        """Make a bridge, up."""
        self._send(_NEWLINK, _CREATE | _EXCL, _link(name, up=True) + _info("bridge"))

    def cable(self, name: str, other_end: str, namespace: int) -> None:
        """Make a pair of veth, this end up, the other end in the namespace of that descriptor."""
        peer = _link(other_end) + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
        made = _info("veth", _attribute(_VETH_INFO_PEER, peer))
        self._send(_NEWLINK, _CREATE | _EXCL, _link(name, up=True) + made)

    def join(self, name: str, bridge: str) -> None:
        """Make a link a port of a bridge, up."""
        master = _attribute(_IFLA_MASTER, struct.pack("=I", socket.if_nametoindex(bridge)))
        self._send(_SETLINK, 0, _link(name, up=True) + master)

    def address(self, name: str, address: str, length: int) -> None:
        """Give a link an address, usable at once."""
        packed = ipaddress.ip_address(address).packed
        flags = _IFA_F_NODAD if ":" in address else 0
        body = _IFADDRMSG.pack(_family(address), length, flags, 0, socket.if_nametoindex(name))
        body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
        self._send(_NEWADDR, _CREATE | _EXCL, body)

    def default_route(self, name: str, gateway: str) -> None:
        """Send by way of this gateway what has no better way, and by no other."""
        body = _RTMSG.pack(_family(gateway), 0, 0, 0, _TABLE_MAIN, _PROTOCOL_BOOT, 0, _TYPE_UNICAST, 0)
        body += _attribute(_RTA_GATEWAY, ipaddress.ip_address(gateway).packed)
        body += _attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(name)))
        self._send(_NEWROUTE, _CREATE | _REPLACE, body)

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST_ACK | flags, self._sequence, 0)
        self._socket.sendto(header + body, (0, 0))
        answer = self._socket.recv(65536)
        _, answered, _, sequence, _ = _HEADER.unpack_from(answer)
        if (answered, sequence) != (_ERROR, self._sequence):
            raise OSError(f"the kernel answered message {self._sequence} with {answered} to {sequence}")
        code = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if code:
            raise OSError(code, os.strerror(code))


def _attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(len(payload) + _ATTRIBUTE.size, kind) + payload + b"\0" * (-len(payload) % 4)


def _link(name: str, *, up: bool = False) -> bytes:
    flags = _UP if up else 0
    return _IFINFOMSG.pack(socket.AF_UNSPEC, 0, 0, flags, flags) + _attribute(_IFLA_IFNAME, name.encode() + b"\0")


def _info(kind: str, data: bytes = b"") -> bytes:
    inner = _attribute(_IFLA_INFO_KIND, kind.encode())
    return _attribute(_IFLA_LINKINFO, inner + (_attribute(_IFLA_INFO_DATA, data) if data else b""))


def _family(address: str) -> int:
    return int(socket.AF_INET6 if ":" in address else socket.AF_INET)
