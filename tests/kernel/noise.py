"""Opens the first message of a WireGuard handshake with its receiver's private key, as the protocol's paper has it.

Section 5.4.2, Noise_IKpsk2. Only for tests that ask who can open what.
"""

import base64
import hmac
from hashlib import blake2s

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

__all__ = ["INITIATION", "initiator"]

INITIATION = b"\x01\x00\x00\x00"  # how such a message begins
_LENGTH = 148
_CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
_IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"


def initiator(message: bytes, private_key: bytes) -> str:
    """The public key of who sent it. Raises cryptography's InvalidTag with any key but the receiver's."""
    if len(message) != _LENGTH or message[:4] != INITIATION:
        raise ValueError(f"{len(message)} bytes that begin with {message[:4].hex()} are no handshake initiation")
    ephemeral, sealed = message[8:40], message[40:88]
    own = X25519PrivateKey.from_private_bytes(private_key)
    chaining = _hash(_CONSTRUCTION)
    transcript = _hash(_hash(chaining + _IDENTIFIER) + own.public_key().public_bytes_raw())
    chaining = _derive(chaining, ephemeral)[0]
    transcript = _hash(transcript + ephemeral)
    key = _derive(chaining, own.exchange(X25519PublicKey.from_public_bytes(ephemeral)))[1]
    return base64.b64encode(ChaCha20Poly1305(key).decrypt(bytes(12), sealed, transcript)).decode()


def _hash(data: bytes) -> bytes:
    return blake2s(data).digest()


def _mac(key: bytes, data: bytes) -> bytes:
    return hmac.new(key, data, blake2s).digest()


def _derive(key: bytes, data: bytes) -> tuple[bytes, bytes]:
    secret = _mac(key, data)
    first = _mac(secret, b"\x01")
    return first, _mac(secret, first + b"\x02")
