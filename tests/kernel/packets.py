"""Packets as bytes, for what no socket API sends: odd protocols, extension headers, lone fragments, false sources.

Only what the firewall tests need; every packet carries its token where the receiver finds it again.
"""

import ipaddress
import socket
import struct
from typing import Final

__all__ = ["checksum", "echo", "extension", "ip", "lone_fragment", "tcp_syn", "udp", "unreachable"]

ICMP_ECHO: Final = 8
ICMPV6_ECHO: Final = 128


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: str, destination: str, protocol: int, length: int) -> bytes:
    packed = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    return packed + struct.pack(">II", length, protocol)


def _with_checksum(data: bytes, at: int, source: str, destination: str, protocol: int) -> bytes:
    total = checksum(_pseudo(source, destination, protocol, len(data)) + data)
    return data[:at] + struct.pack(">H", total or 0xFFFF) + data[at + 2 :]


def udp(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    header = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0)
    return _with_checksum(header + payload, 6, source, destination, socket.IPPROTO_UDP)


def tcp_syn(source: str, destination: str, sport: int, dport: int, token: int) -> bytes:
    """A SYN whose sequence number is the token."""
    header = struct.pack(">HHIIBBHHH", sport, dport, token, 0, 5 << 4, 0x02, 65535, 0, 0)
    return _with_checksum(header, 16, source, destination, socket.IPPROTO_TCP)


def echo(source: str, destination: str, token: int) -> bytes:
    """An echo request of ICMP or ICMPv6 whose identifier and sequence number are the token."""
    if ":" in source:
        data = struct.pack(">BBHI", ICMPV6_ECHO, 0, 0, token)
        return _with_checksum(data, 2, source, destination, socket.IPPROTO_ICMPV6)
    data = struct.pack(">BBHI", ICMP_ECHO, 0, 0, token)
    return data[:2] + struct.pack(">H", checksum(data)) + data[4:]


def unreachable(source: str, destination: str, quoted: bytes) -> bytes:
    """An error of ICMP or ICMPv6, port unreachable, about the packet that is quoted."""
    if ":" in source:
        return _with_checksum(struct.pack(">BBHI", 1, 4, 0, 0) + quoted, 2, source, destination, socket.IPPROTO_ICMPV6)
    data = struct.pack(">BBHI", 3, 3, 0, 0) + quoted
    return data[:2] + struct.pack(">H", checksum(data)) + data[4:]


def lone_fragment(next_header: int, ident: int) -> bytes:
    """An IPv6 fragment header of the last fragment of many, whose others never come (RFC 8200 section 4.5)."""
    return struct.pack(">BBHI", next_header, 0, 100 << 3, ident)


def extension(next_header: int) -> bytes:
    """An IPv6 hop-by-hop or destination options header of 8 bytes, filled with PadN (RFC 8200 section 4.2)."""
    return bytes((next_header, 0, 1, 4, 0, 0, 0, 0))


def ip(
    source: str, destination: str, protocol: int, payload: bytes, *, fragment: int = 0, ident: int = 0x1234
) -> bytes:
    """The whole packet, for a raw socket that takes its header as given.

    IPv4: `fragment` is the header's field of flags and offset, `ident` what fragments of one packet share.
    """
    packed = ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed
    if ":" in source:
        return struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + packed + payload
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), ident & 0xFFFF, fragment, 64, protocol, 0) + packed
    return header[:10] + struct.pack(">H", checksum(header)) + header[12:] + payload
