"""How a host becomes a node: the join string, and the two requests that need no client certificate."""

import base64
import binascii
import hashlib
import json
import re
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import Field, TypeAdapter, ValidationError

from .base import Address, Endpoint, Message, NodeName, PublicKey
from .netmap import Mesh, NodeId

__all__ = ["EnrolRequest", "EnrolResponse", "JoinString", "JoinStringError", "RenewRequest", "RenewResponse"]

_SCHEME: Final = "wmj1."
_CHECK_LENGTH: Final = 6
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_TRIPLE: Final = TypeAdapter(tuple[str, str, str])


class JoinStringError(ValueError):
    """The join string is not one that a controller printed; the message says what to do."""


class JoinString(Message):
    """Everything a host needs for a first contact that is already pinned.

    `ca` is the SHA-256 (hex) of the DER certificate that the controller serves at `/ca.pem` and that signed its TLS
    certificate, or "system" when the controller has a certificate that the host's own trust store knows.
    `key` is a secret: it is read from standard input, a file or a prompt, and never logged.
    """

    url: str
    ca: str
    key: str = Field(repr=False)

    def encode(self) -> str:
        """One word, safe in shells and URLs, with a checksum so that a truncated copy is recognised as such."""
        body = json.dumps([self.url, self.ca, self.key], separators=(",", ":")).encode()
        return _encode(body)

    @classmethod
    def decode(cls, text: str) -> "JoinString":
        """Parse what `encode` printed. Raises JoinStringError."""
        text = text.strip()
        if not text.startswith(_SCHEME):
            raise JoinStringError(
                f"this is not a join string: it must start with {_SCHEME!r}; make one with `wardmesh key create`"
            )
        encoded = text[len(_SCHEME) :]
        try:
            raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raw = b""
        body, check = raw[:-_CHECK_LENGTH], raw[-_CHECK_LENGTH:]
        # The comparison with the one right spelling catches what base64 ignores: unused bits of the last character.
        if not body or _checksum(body) != check or _encode(body) != text:
            raise JoinStringError("the join string is damaged (cut short or edited): copy it again, whole")
        try:
            url, ca, key = _TRIPLE.validate_json(body)
        except ValidationError as error:
            raise JoinStringError("the join string is from a version of wardmesh that this one cannot read") from error
        if not _is_https(url):
            raise JoinStringError(f"the join string names the controller {url!r}; it must be an https URL")
        if ca != "system" and not _SHA256.fullmatch(ca):
            raise JoinStringError("the join string's CA fingerprint is not a SHA-256: make a new one")
        return cls(url=url, ca=ca, key=key)


def _is_https(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # an unclosed bracket, a port that is no number
        return False


def _encode(body: bytes) -> str:
    return _SCHEME + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")


def _checksum(body: bytes) -> bytes:
    # Against accidents only; what protects the contact is the CA fingerprint and the key.
    return hashlib.sha256(b"wardmesh join string\0" + body).digest()[:_CHECK_LENGTH]


class EnrolRequest(Message):
    """POST /api/v1/enrol. The private halves of `public_key` (WireGuard) and of the CSR's key never leave the host."""

    key: str = Field(repr=False, description="enrolment key, wmk_…")
    name: NodeName
    public_key: PublicKey
    csr: str = Field(description="PEM, PKCS #10; only its public key is used, the controller chooses the subject")
    addresses: tuple[Address, ...] = Field(default=(), description="requested mesh addresses; at most one per family")
    endpoints: tuple[Endpoint, ...] = ()
    agent_version: str = ""


class EnrolResponse(Message):
    """The node as the controller recorded it. `state` is `pending` until an admin approves it."""

    node_id: NodeId
    name: NodeName
    state: Literal["pending", "active"]
    mesh: Mesh
    addresses: tuple[Address, ...]
    certificate: str = Field(description="PEM, the node's client certificate")
    ca: str = Field(description="PEM, the mesh CA that signed it")


class RenewRequest(Message):
    """POST /api/v1/renew. Works with an expired certificate: the CSR's signature proves the node's key."""

    certificate: str = Field(description="PEM, the last certificate, expired or not")
    csr: str = Field(description="PEM, signed with the same key")


class RenewResponse(Message):
    """The next certificate."""

    certificate: str
    ca: str
