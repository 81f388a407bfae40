"""What two hosts share without having been given it: the key of their connectivity checks, and their names in these.

Pure. All of it comes from the WireGuard keys that both have anyway; nobody else, the controller included, can make it.
"""

import base64
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from controller.wire.base import PublicKey

__all__ = ["Pair", "pair"]

_INFO: Final = b"wardmesh connectivity check 1"
_KEY: Final = 32
_NAME: Final = 16


@dataclass(frozen=True, slots=True)
class Pair:
    """`key` signs (RFC 8489 section 14.6). `ours` is the USERNAME of this host's requests, `theirs` of the peer's.

    The names say to nobody else who asks whom.
    """

    key: bytes = field(repr=False)
    ours: bytes
    theirs: bytes


def pair(private: bytes, peer: PublicKey) -> Pair:
    """For this host's private key (32 bytes) and a peer's public key: X25519, then HKDF-SHA256 (RFC 7748, RFC 5869).

    WireGuard uses the same static secret, in hashes of its own; with `info` nothing of the one follows from the other.
    """
    own = X25519PrivateKey.from_private_bytes(private)
    mine, other = own.public_key().public_bytes_raw(), base64.b64decode(peer)
    secret = own.exchange(X25519PublicKey.from_public_bytes(other))
    first, second = sorted((mine, other))
    made = HKDF(SHA256(), _KEY + 2 * _NAME, salt=first + second, info=_INFO).derive(secret)
    of_first, of_second = made[_KEY : _KEY + _NAME], made[_KEY + _NAME :]
    ours, theirs = (of_first, of_second) if mine == first else (of_second, of_first)
    return Pair(made[:_KEY], ours.hex().encode(), theirs.hex().encode())
