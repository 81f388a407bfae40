"""Hears of the packets that our table denied: NFLOG messages of one group, as flows. Keeps and counts nothing.

Needs CAP_NET_ADMIN in the network namespace, as everything here. The kernel copies a packet's headers alone; the
table's rate limit for each address comes before that, and what does not fit the socket's buffer is lost.
"""

import asyncio
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable
from typing import Final, get_args

from agentd.denied import Flow
from controller.wire.denials import Where

from .base_chains import LOG_GROUP, LOG_PREFIX
from .errors import refused
from .netlink import NETLINK_NETFILTER, NetlinkError, NetlinkSocket, attribute, attributes, messages

__all__ = ["DenialLog", "flow_of"]

log = logging.getLogger("agentd.kernel.denials")

# include/uapi/linux/netfilter/nfnetlink.h, nfnetlink_log.h
_NFULNL_MSG_PACKET: Final = 4 << 8
_NFULNL_MSG_CONFIG: Final = 4 << 8 | 1
_NFULA_PAYLOAD: Final = 9
_NFULA_PREFIX: Final = 10
_NFULA_CFG_CMD: Final = 1
_NFULA_CFG_MODE: Final = 2
_NFULA_CFG_TIMEOUT: Final = 4
_NFULNL_CFG_CMD_BIND: Final = 1
_NFULNL_COPY_PACKET: Final = 2
_COPY: Final = 128  # bytes of a packet: an IPv6 header, a few extension headers, ports
_FLUSH_AFTER: Final = 20  # hundredths of a second that the kernel gathers messages for
_NFGENMSG: Final = struct.Struct(">BBH")  # the resource id, here the group, is in network byte order
_RECEIVE_BUFFER: Final = 1 << 20

_DIRECTIONS: Final[dict[bytes, Where]] = {f"{LOG_PREFIX}{where}\0".encode(): where for where in get_args(Where)}
_PROTOCOLS: Final = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp", 33: "dccp", 136: "udplite"}
_WITH_PORTS: Final = {6, 17, 33, 132, 136}
_IPV6_EXTENSIONS: Final = {0, 43, 60}  # hop-by-hop options, routing, destination options (RFC 8200 section 4)
_IPV6_FRAGMENT: Final = 44


class DenialLog:
    """Listens in the network namespace of the thread that opens it, from its event loop; `heard` gets each flow."""

    def __init__(self, heard: Callable[[Flow], None]) -> None:
        """Raises KernelError, also when another program has the group."""
        self._heard = heard
        self._netlink: NetlinkSocket | None = None
        netlink = NetlinkSocket(NETLINK_NETFILTER, receive_buffer=_RECEIVE_BUFFER)
        try:
            for kind, payload in (
                (_NFULA_CFG_CMD, bytes((_NFULNL_CFG_CMD_BIND,))),
                (_NFULA_CFG_MODE, struct.pack(">IBx", _COPY, _NFULNL_COPY_PACKET)),
                (_NFULA_CFG_TIMEOUT, struct.pack(">I", _FLUSH_AFTER)),
            ):
                header = _NFGENMSG.pack(socket.AF_UNSPEC, 0, LOG_GROUP)
                netlink.write(_NFULNL_MSG_CONFIG, 0, header + attribute(kind, payload))
        except NetlinkError as error:
            netlink.close()
            # The same errno for both (nfnetlink_rcv, nfulnl_recv_config).
            remedy = "another program listens to that group, or this process lacks CAP_NET_ADMIN"
            remedy = remedy if error.errno in {errno.EPERM, errno.EBUSY} else ""
            raise refused(f"listening to denied packets (NFLOG group {LOG_GROUP})", error, remedy) from error
        self._netlink = netlink
        asyncio.get_running_loop().add_reader(netlink.fileno(), self._read)

    def close(self) -> None:
        """Stop listening; idempotent."""
        if self._netlink is not None:
            asyncio.get_running_loop().remove_reader(self._netlink.fileno())
            self._netlink.close()
            self._netlink = None

    def _read(self) -> None:
        assert self._netlink is not None
        try:
            for data in self._netlink.pending():
                for kind, _flags, _sequence, payload in messages(data):
                    if kind == _NFULNL_MSG_PACKET:
                        self._take(payload)
        except NetlinkError:
            log.exception("a report of denied packets could not be read")
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # more than fit: the log is a sample anyway, the counters are exact
                raise

    def _take(self, payload: bytes) -> None:
        direction: Where | None = None
        packet = b""
        for kind, start, end in attributes(payload, _NFGENMSG.size):
            if kind == _NFULA_PREFIX:
                direction = _DIRECTIONS.get(payload[start:end])
            elif kind == _NFULA_PAYLOAD:
                packet = payload[start:end]
        flow = flow_of(direction, packet) if direction is not None else None
        if flow is not None:  # else it is from another table, or cut too short
            self._heard(flow)


def flow_of(direction: Where, packet: bytes) -> Flow | None:
    """The flow of an IP packet that may be cut anywhere; None when not even its addresses are there.

    `port` is the destination's (RFC 9293, 768, 9260, 4340, 3828 all have it in bytes 2 and 3); None where there is
    none, or a fragment that is not the first does not say.
    """
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        number = packet[9]
        later = struct.unpack_from(">H", packet, 6)[0] & 0x1FFF  # RFC 791: the fragment's offset
        source, destination, start = packet[12:16], packet[16:20], (packet[0] & 0xF) * 4
    elif len(packet) >= 40 and packet[0] >> 4 == 6:
        source, destination = packet[8:24], packet[24:40]
        number, start, later = _upper_layer(packet)
    else:
        return None
    port = None
    if number in _WITH_PORTS and not later and start >= 20 and len(packet) >= start + 4:
        port = struct.unpack_from(">H", packet, start + 2)[0]
    protocol = _PROTOCOLS.get(number, str(number))
    return Flow(direction, str(ipaddress.ip_address(source)), str(ipaddress.ip_address(destination)), protocol, port)


def _upper_layer(packet: bytes) -> tuple[int, int, int]:
    """Walk an IPv6 packet's extension headers: (protocol, where it begins, fragment offset)."""
    number, start, later = packet[6], 40, 0
    while (number in _IPV6_EXTENSIONS or number == _IPV6_FRAGMENT) and len(packet) >= start + 8:
        if number == _IPV6_FRAGMENT:
            later = struct.unpack_from(">H", packet, start + 2)[0] >> 3
            length = 8
        else:
            length = (packet[start + 1] + 1) * 8
        number, start = packet[start], start + length
    return number, start, later
