"""The host's two private keys: made here, never sent anywhere, never printed.

The WireGuard key (Curve25519) is the tunnel; the identity key (P-256) proves the node to the controller. Knows no
files.
"""

import base64
import binascii
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from controller.wire.base import PublicKey

__all__ = ["IdentityKey", "KeyDamagedError", "WireguardKey"]

_KEY_LENGTH: Final = 32


class KeyDamagedError(ValueError):
    """The text is not a key of the expected kind. Its content is not repeated: it may still be most of a secret."""


class WireguardKey:
    """A Curve25519 private key, as text in the form that `wg genkey` prints."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> "WireguardKey":
        """A new key from the operating system's random numbers."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: bytes) -> "WireguardKey":
        """Read what `text` wrote. Raises KeyDamagedError."""
        try:
            raw = base64.b64decode(text.strip(), validate=True)
        except binascii.Error as error:
            raise KeyDamagedError("not base64") from error
        if len(raw) != _KEY_LENGTH:
            raise KeyDamagedError(f"{len(raw)} bytes instead of {_KEY_LENGTH}")
        return cls(X25519PrivateKey.from_private_bytes(raw))

    @property
    def raw(self) -> bytes:
        """The 32 bytes that the kernel takes."""
        return self._private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())

    @property
    def text(self) -> bytes:
        """One line of base64, for the state directory."""
        return base64.b64encode(self.raw) + b"\n"

    @property
    def public(self) -> PublicKey:
        """What peers know this host by."""
        return base64.b64encode(self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)).decode()


class IdentityKey:
    """A P-256 private key (TLS client certificate, renewal), as unencrypted PKCS #8 PEM."""

    def __init__(self, private: EllipticCurvePrivateKey) -> None:
        self._private = private

    @classmethod
    def generate(cls) -> "IdentityKey":
        """A new key."""
        return cls(generate_private_key(SECP256R1()))

    @classmethod
    def parse(cls, text: bytes) -> "IdentityKey":
        """Read what `text` wrote. Raises KeyDamagedError."""
        try:
            key = load_pem_private_key(text, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyDamagedError("not an unencrypted PEM private key") from error
        if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP256R1):
            raise KeyDamagedError("not a P-256 key")
        return cls(key)

    @property
    def text(self) -> bytes:
        """PEM, for the state directory and for OpenSSL."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def certifies(self, certificate: x509.Certificate) -> bool:
        """True when the certificate is for this key."""
        return certificate.public_key() == self._private.public_key()

    def request(self, name: str) -> str:
        """A certificate signing request (PKCS #10, PEM)."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(self._private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
