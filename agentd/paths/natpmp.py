"""NAT-PMP messages as bytes (RFC 6886): how a host asks its router for a port of the router's. Pure.

Two questions of a few fields each. PyPI has two libraries, NAT-PMP (1.3.2, of 2021; needs netifaces, which is no longer
maintained) and py-natpmp (0.2.5, of 2023): both wait for the answer in select(), which an event loop must not.
"""

import ipaddress
import struct
from dataclasses import dataclass
from typing import Final

from controller.wire.base import Address

from .router import RouterError

__all__ = ["SERVER_PORT", "External", "Mapped", "ask_external", "ask_mapping", "read"]

SERVER_PORT: Final = 5351

_VERSION: Final = 0
_EXTERNAL: Final = 0
_MAP_UDP: Final = 1
_ANSWER: Final = 128
# Section 3.5
_RESULTS: Final = {
    1: "it does not speak this version",
    2: "it refuses to: port mapping is switched off there",
    3: "it has no address of its own",
    4: "it has no port left",
    5: "it does not do that",
}


@dataclass(frozen=True, slots=True)
class External:
    """The router's address outside, and its seconds since it began."""

    address: Address
    epoch: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """What comes to the router's UDP port `external` goes to this host's port `internal`, for `lifetime` seconds."""

    internal: int
    external: int
    lifetime: int


def ask_external() -> bytes:
    """What is your address outside? (section 3.2)"""
    return struct.pack("!BB", _VERSION, _EXTERNAL)


def ask_mapping(internal: int, external: int, lifetime: int) -> bytes:
    """Map a UDP port for `lifetime` seconds, to `external` if that is free; 0 seconds: no more (sections 3.3, 3.4)."""
    return struct.pack("!BBHHHI", _VERSION, _MAP_UDP, 0, internal, external if lifetime else 0, lifetime)


def read(data: bytes) -> External | Mapped:
    """An answer. Raises RouterError."""
    if len(data) < 8:
        raise RouterError(f"{len(data)} bytes are no answer of NAT-PMP")
    version, operation, result, epoch = struct.unpack_from("!BBHI", data)
    if version != _VERSION or operation not in {_ANSWER + _EXTERNAL, _ANSWER + _MAP_UDP}:
        raise RouterError(f"version {version}, operation {operation} is no answer of NAT-PMP")
    if result:
        raise RouterError(_RESULTS.get(result, f"result {result}"))
    if len(data) != (12 if operation == _ANSWER + _EXTERNAL else 16):
        raise RouterError(f"an answer of {len(data)} bytes to operation {operation - _ANSWER}")
    if operation == _ANSWER + _EXTERNAL:
        return External(str(ipaddress.IPv4Address(data[8:])), epoch)
    return Mapped(*struct.unpack_from("!HHI", data, 8))
