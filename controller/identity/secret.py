"""Secrets that people and hosts present: `wmk_…` enrolment keys and `wma_…` admin tokens.

A secret is a readable public prefix and 256 random bits. Only its SHA-256 is kept: with that much entropy a slow
password hash would add nothing.
"""

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final, Literal

__all__ = ["Secret", "digest", "new_id"]

_PUBLIC_BYTES: Final = 5
_SECRET_BYTES: Final = 32


def new_id() -> str:
    """An identifier that nobody can guess and that fits a path, a certificate and a log line."""
    return secrets.token_hex(8)


def digest(secret: str) -> str:
    """SHA-256 (hex) of a presented secret: what it is looked up by."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Secret:
    """A new secret. `text` is shown once; `prefix` identifies it afterwards."""

    prefix: str
    text: str = field(repr=False)

    @classmethod
    def new(cls, kind: Literal["wmk", "wma"]) -> "Secret":
        """Make one. The prefix is hex, so that the underscore after it can only be a separator."""
        prefix = f"{kind}_{secrets.token_hex(_PUBLIC_BYTES)}"
        return cls(prefix=prefix, text=f"{prefix}_{secrets.token_urlsafe(_SECRET_BYTES)}")

    @property
    def hash(self) -> str:
        """What the store keeps."""
        return digest(self.text)
