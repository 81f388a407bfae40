"""STUN Binding messages as bytes (RFC 8489): what an agent asks a STUN server, and what agents ask each other.

Pure, and stricter than the RFC has to be: lengths are checked before anything is read, and a message with a
comprehension-required attribute that is not known here is none. Knows no sockets, keys or peers.
"""

import hashlib
import hmac
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from .base import Endpoint, format_endpoint, split_endpoint

__all__ = [
    "COOKIE",
    "LARGEST",
    "STUN_PORT",
    "Binding",
    "Kind",
    "StunError",
    "decode",
    "encode",
    "is_authentic",
]

COOKIE: Final = 0x2112A442  # section 5
STUN_PORT: Final = 3478  # section 18.6; the controller answers on the next one, too
LARGEST: Final = 548  # bytes; section 6.1: what every path carries in one piece when its MTU is not known

Kind = Literal["request", "answer"]

_HEADER: Final = struct.Struct("!HHI12s")
_ATTRIBUTE: Final = struct.Struct("!HH")
_TYPES: Final[dict[Kind, int]] = {"request": 0x0001, "answer": 0x0101}
_KINDS: Final[dict[int, Kind]] = {number: kind for kind, number in _TYPES.items()}

# Section 18.3
_USERNAME: Final = 0x0006
_MESSAGE_INTEGRITY_SHA256: Final = 0x001C
_XOR_MAPPED_ADDRESS: Final = 0x0020
_SOFTWARE: Final = 0x8022
_RESPONSE_PORT: Final = 0x0027  # RFC 5780 section 7.5
_PADDING: Final = 0x0026  # RFC 5780 section 7.6
_OPTIONAL: Final = 0x8000  # from here on, what is not known is skipped (section 14)
# Known, and of no use here: MAPPED-ADDRESS, MESSAGE-INTEGRITY, REALM, NONCE, PASSWORD-ALGORITHM, USERHASH. ICE's own
# (RFC 8445 section 16.1): PRIORITY, USE-CANDIDATE.
_SKIPPED: Final = frozenset({0x0001, 0x0008, 0x0014, 0x0015, 0x001D, 0x001E, 0x0024, 0x0025, _PADDING})
_DIGEST: Final = hashlib.sha256().digest_size
_LONGEST_USERNAME: Final = 513  # bytes, section 14.3


class StunError(ValueError):
    """The bytes are no Binding message that is understood here; the message says why."""


@dataclass(frozen=True, slots=True)
class Binding:
    """A Binding request, or its successful answer. `transaction`: 12 bytes. `mapped`: where the asker was seen from.

    `response_port`: the port of the asker's address that the answer is to go to, instead of the one that asked.
    `integrity` is how many bytes of the message MESSAGE-INTEGRITY-SHA256 covers, 0 without one: `is_authentic` checks.
    """

    kind: Kind
    transaction: bytes
    username: bytes | None = None
    mapped: Endpoint | None = None
    software: bytes | None = None
    response_port: int | None = None
    integrity: int = 0


def encode(message: Binding, key: bytes | None = None, *, size: int = 0) -> bytes:
    """The message, with MESSAGE-INTEGRITY-SHA256 (section 14.6) when there is a key.

    It is padded (RFC 5780 section 7.6) to `size` bytes, rounded up to a multiple of four, unless it is larger anyway.
    """
    body = b""
    if message.software is not None:
        body += _attribute(_SOFTWARE, message.software)
    if message.response_port is not None:
        body += _attribute(_RESPONSE_PORT, struct.pack("!HH", message.response_port, 0))
    if message.username is not None:
        body += _attribute(_USERNAME, message.username)
    if message.mapped is not None:
        body += _attribute(_XOR_MAPPED_ADDRESS, _xor_address(message.mapped, message.transaction))
    kind = _TYPES[message.kind]
    digest = _ATTRIBUTE.size + _DIGEST if key is not None else 0
    room = size + -size % 4 - _HEADER.size - len(body) - digest - _ATTRIBUTE.size
    if room > 0:
        body += _attribute(_PADDING, bytes(room))
    if key is None:
        return _HEADER.pack(kind, len(body), COOKIE, message.transaction) + body
    # The header's length counts the attribute that is about to come.
    data = _HEADER.pack(kind, len(body) + digest, COOKIE, message.transaction) + body
    return data + _attribute(_MESSAGE_INTEGRITY_SHA256, hmac.digest(key, data, "sha256"))


def decode(data: bytes, *, largest: int = LARGEST) -> Binding:
    """Read a message of at most `largest` bytes. Raises StunError."""
    if not _HEADER.size <= len(data) <= largest:
        raise StunError(f"{len(data)} bytes are no STUN message of {_HEADER.size} to {largest}")
    number, length, cookie, transaction = _HEADER.unpack_from(data)
    if cookie != COOKIE or number not in _KINDS:
        raise StunError(f"type {number:#06x} with cookie {cookie:#010x} is no Binding request or answer")
    if length != len(data) - _HEADER.size or length % 4:
        raise StunError(f"the header says {length} bytes of attributes, there are {len(data) - _HEADER.size}")
    found: dict[int, bytes] = {}
    integrity = 0
    for kind, start, value in _attributes(data):
        if kind == _MESSAGE_INTEGRITY_SHA256:
            # Shorter digests are allowed by section 14.6, and not by us.
            if len(value) != _DIGEST:
                raise StunError(f"MESSAGE-INTEGRITY-SHA256 of {len(value)} bytes instead of {_DIGEST}")
            integrity = start
            break  # section 14.6: what follows is not covered
        if kind < _OPTIONAL and kind not in _SKIPPED and kind not in {_USERNAME, _XOR_MAPPED_ADDRESS, _RESPONSE_PORT}:
            raise StunError(f"the attribute {kind:#06x} must be understood, and is not")
        found.setdefault(kind, value)  # section 14: of several, the first counts
    if len(found.get(_USERNAME, b"")) > _LONGEST_USERNAME:
        raise StunError(f"a USERNAME of {len(found[_USERNAME])} bytes")
    mapped = found.get(_XOR_MAPPED_ADDRESS)
    return Binding(
        kind=_KINDS[number],
        transaction=transaction,
        username=found.get(_USERNAME),
        mapped=None if mapped is None else _address(mapped, transaction),
        software=found.get(_SOFTWARE),
        response_port=_port(found[_RESPONSE_PORT]) if _RESPONSE_PORT in found else None,
        integrity=integrity,
    )


def is_authentic(data: bytes, message: Binding, key: bytes) -> bool:
    """True when the message, decoded from `data`, was made by somebody who has the key."""
    if not message.integrity:
        return False
    start = message.integrity
    # As if the attribute were the last (section 14.6).
    length = start - _HEADER.size + _ATTRIBUTE.size + _DIGEST
    covered = data[:2] + length.to_bytes(2, "big") + data[4:start]
    given = data[start + _ATTRIBUTE.size : start + _ATTRIBUTE.size + _DIGEST]
    return hmac.compare_digest(hmac.digest(key, covered, "sha256"), given)


def _attributes(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, where it starts, value."""
    position = _HEADER.size
    while position < len(data):
        # The whole is a multiple of four: a header always fits.
        kind, length = _ATTRIBUTE.unpack_from(data, position)
        end = position + _ATTRIBUTE.size + length
        if end > len(data):
            raise StunError(f"the attribute {kind:#06x} of {length} bytes ends after the message")
        yield kind, position, data[position + _ATTRIBUTE.size : end]
        position = end + -length % 4


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(kind, len(value)) + value + bytes(-len(value) % 4)


def _mask(transaction: bytes) -> bytes:
    return COOKIE.to_bytes(4, "big") + transaction


def _xor_address(endpoint: Endpoint, transaction: bytes) -> bytes:
    # Section 14.2
    host, port = split_endpoint(endpoint)
    address = ipaddress.ip_address(host)
    family = 1 if address.version == 4 else 2
    hidden = bytes(a ^ b for a, b in zip(address.packed, _mask(transaction), strict=False))
    return struct.pack("!BBH", 0, family, port ^ COOKIE >> 16) + hidden


def _port(value: bytes) -> int:
    if len(value) != 4 or not any(value[:2]):
        raise StunError(f"RESPONSE-PORT {value.hex()} is no port")
    return int.from_bytes(value[:2], "big")


def _address(value: bytes, transaction: bytes) -> Endpoint:
    if len(value) < 4 or (value[1], len(value)) not in {(1, 8), (2, 20)}:
        raise StunError(f"XOR-MAPPED-ADDRESS of {len(value)} bytes is no address")
    port = int.from_bytes(value[2:4], "big") ^ COOKIE >> 16
    packed = bytes(a ^ b for a, b in zip(value[4:], _mask(transaction), strict=False))
    if not port:
        raise StunError("XOR-MAPPED-ADDRESS with port 0")
    return format_endpoint(str(ipaddress.ip_address(packed)), port)
