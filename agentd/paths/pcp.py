"""PCP messages as bytes (RFC 6887): how a host asks its router for a port of the router's. Pure.

One question, MAP for UDP, and what a router announces. No library on PyPI speaks it for an event loop.
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from controller.wire.base import Address

from .router import RouterError

__all__ = [
    "ANNOUNCE_GROUP",
    "ANNOUNCE_PORT",
    "NONCE",
    "Announced",
    "Assigned",
    "PcpUnspokenError",
    "announced",
    "ask_map",
    "read",
]

NONCE: Final = 12  # bytes
# Section 14.1.1; NAT-PMP routers announce there too (RFC 6886 section 3.2.1).
ANNOUNCE_GROUP: Final = "224.0.0.1"
ANNOUNCE_PORT: Final = 5350

_VERSION: Final = 2
_ANSWER: Final = 0x80
_ANNOUNCE: Final = 0
_MAP: Final = 1
_UDP: Final = 17
_LONGEST: Final = 1100  # section 7
# Sections 7.1, 7.2 and 11.1
_REQUEST: Final = struct.Struct("!BBxxI16s")
_RESPONSE: Final = struct.Struct("!BBxBII12x")
_MAPPING: Final = struct.Struct("!12sB3xHH16s")
_ANY: Final = b"\0" * 10 + b"\xff\xff" + bytes(4)  # "an IPv4 address, whichever you like", section 5
# Section 7.4
_UNSUPPORTED_VERSION: Final = 1
_RESULTS: Final = {
    2: "it refuses to: this host may not, or port mapping is switched off there",
    3: "it could not read the question",
    4: "it does not map ports",
    5: "it does not know an option",
    6: "it could not read an option",
    7: "its network is down",
    8: "it has no port left",
    9: "it does not map UDP ports",
    10: "this host has as many ports as it may",
    11: "it cannot give that port",
    12: "another NAT is between it and this host",
    13: "too many peers for one mapping",
}


class PcpUnspokenError(RouterError):
    """The router speaks NAT-PMP at best (RFC 6887 appendix A)."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """What comes to UDP `port` of `address` goes to port `internal` of who asked, for `lifetime` seconds.

    `epoch`: the router's seconds since it began.
    """

    nonce: bytes
    internal: int
    address: Address
    port: int
    lifetime: int
    epoch: int


def ask_map(client: Address, nonce: bytes, internal: int, external: int, lifetime: int) -> bytes:
    """Map a UDP port of this `client` (IPv4) for `lifetime` seconds, to `external` if that is free; 0 seconds: no more.

    Only who knows the nonce can change the mapping (section 11.1).
    """
    header = _REQUEST.pack(_VERSION, _MAP, lifetime, _ANY[:12] + ipaddress.IPv4Address(client).packed)
    return header + _MAPPING.pack(nonce, _UDP, internal, external if lifetime else 0, _ANY)


def read(data: bytes) -> Assigned:
    """The answer to `ask_map`. Raises PcpUnspokenError, RouterError."""
    if len(data) >= 4 and (data[0] == 0 or data[3] == _UNSUPPORTED_VERSION):
        raise PcpUnspokenError("it does not speak PCP")
    if len(data) < _RESPONSE.size or len(data) > _LONGEST or len(data) % 4:
        raise RouterError(f"{len(data)} bytes are no answer of PCP")
    version, operation, result, lifetime, epoch = _RESPONSE.unpack_from(data)
    if version != _VERSION or operation != _ANSWER + _MAP:
        raise RouterError(f"version {version}, operation {operation} is no answer of PCP to MAP")
    if result:
        raise RouterError(_RESULTS.get(result, f"result {result}"))
    if len(data) < _RESPONSE.size + _MAPPING.size:
        raise RouterError(f"an answer of {len(data)} bytes to MAP")
    nonce, protocol, internal, external, address = _MAPPING.unpack_from(data, _RESPONSE.size)
    found = ipaddress.IPv6Address(address).ipv4_mapped
    if protocol != _UDP or found is None:
        raise RouterError(f"it mapped protocol {protocol} at {ipaddress.IPv6Address(address)}")
    return Assigned(nonce, internal, str(found), external, lifetime, epoch)


@dataclass(frozen=True, slots=True)
class Announced:
    """What a router tells everybody after it began anew, or when its address outside is another."""

    epoch: int
    address: Address | None = None


def announced(data: bytes) -> Announced | None:
    """In PCP (section 14.1) or in NAT-PMP (RFC 6886 section 3.2.1); None for anything else."""
    if len(data) == _RESPONSE.size and data[:2] == bytes((_VERSION, _ANSWER + _ANNOUNCE)) and not data[3]:
        return Announced(int.from_bytes(data[8:12], "big"))
    if len(data) == 12 and data[:4] == bytes((0, 128, 0, 0)):
        return Announced(int.from_bytes(data[4:8], "big"), str(ipaddress.IPv4Address(data[8:])))
    return None
