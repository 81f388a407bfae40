"""A POST sent twice happens once (the Idempotency-Key header, draft-ietf-httpapi-idempotency-key-header).

The first answer is kept, because some answers show a secret that exists nowhere else. It is kept sealed, with a key
derived from the caller's own credential, of which the controller has only a hash: the database alone reveals nothing.
"""

import base64
import hashlib
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = ["KEEP", "Once", "Replay"]

KEEP: Final = timedelta(hours=24)
_NONCE: Final = 12


class Replay(Exception):  # noqa: N818  not an error: the request was done before
    """The request was done before; `body` is what it answered then."""

    def __init__(self, body: bytes) -> None:
        super().__init__("the request was done before")
        self.body = body


@dataclass(frozen=True, slots=True)
class Once:
    """One request that must happen once. `key` finds it, `request` tells whether it is the same one."""

    key: str
    request: str
    _sealing: bytes = field(repr=False)

    @classmethod
    def of(cls, *, actor: str, credential: str, idempotency_key: str, method: str, path: str, body: bytes) -> "Once":
        """`credential` is what the caller proved itself with; it goes into the sealing key and nowhere else."""
        derive = HKDF(SHA256(), length=32, salt=idempotency_key.encode(), info=b"wardmesh idempotent response")
        return cls(
            key=_digest(actor.encode(), idempotency_key.encode()),
            request=_digest(method.encode(), path.encode(), body),
            _sealing=derive.derive(credential.encode()),
        )

    def seal(self, body: bytes) -> str:
        """Encrypt an answer for the store."""
        nonce = os.urandom(_NONCE)
        sealed = AESGCM(self._sealing).encrypt(nonce, body, self.request.encode())
        return base64.b64encode(nonce + sealed).decode()

    def unseal(self, sealed: str) -> bytes:
        """The inverse of `seal`."""
        raw = base64.b64decode(sealed)
        return AESGCM(self._sealing).decrypt(raw[:_NONCE], raw[_NONCE:], self.request.encode())


def _digest(*parts: bytes) -> str:
    # Each part is hashed first, so that no two lists of parts can collide by where they are cut.
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()
