"""Legacy session ids, sealed so that only the caller they were issued to can use them. Pure.

The id that a client holds is the upstream's with a keyed hash over it, the service and the node: nothing is stored, so
it holds across workers and restarts that share the key. What does not verify was never issued to this caller; it is
answered like a session that has ended (404), which tells nobody whether it exists for somebody else.
"""

import base64
import hashlib
import hmac
import re
from typing import Final

from .types import Caller

__all__ = ["KEY_BYTES", "Sessions"]

KEY_BYTES: Final = 32
_PREFIX: Final = "wms1."
_MAC_BYTES: Final = 18  # 24 characters of base64 without padding
_VISIBLE: Final = re.compile(r"[\x21-\x7e]{1,2048}")  # what the specification lets an id consist of


class Sessions:
    """Seals and opens with one key."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"the session key has {len(key)} bytes, not {KEY_BYTES}")
        self._key = key

    def seal(self, caller: Caller, service: str, upstream_id: bytes) -> bytes | None:
        """The id for the client; None when the upstream's is not one that the protocol allows."""
        text = upstream_id.decode("latin-1")
        if not _VISIBLE.fullmatch(text):
            return None
        return f"{_PREFIX}{self._mac(caller, service, text)}.{text}".encode("latin-1")

    def open(self, caller: Caller, service: str, sealed: bytes) -> str | None:
        """The upstream's id; None when it was not issued to this caller for this service."""
        text = sealed.decode("latin-1")
        mac, dot, upstream_id = text.removeprefix(_PREFIX).partition(".")
        if not text.startswith(_PREFIX) or not dot or not _VISIBLE.fullmatch(upstream_id) or not mac.isascii():
            return None
        return upstream_id if hmac.compare_digest(mac, self._mac(caller, service, upstream_id)) else None

    def _mac(self, caller: Caller, service: str, upstream_id: str) -> str:
        # node ids and service names contain no NUL, so no two different triples are hashed alike
        bound = f"{caller.node_id}\0{service}\0{upstream_id}".encode("latin-1")
        digest = hashlib.blake2b(bound, key=self._key, digest_size=_MAC_BYTES, person=b"wardmesh-session").digest()
        return base64.urlsafe_b64encode(digest).decode()
