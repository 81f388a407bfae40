"""The record of every mutation: what its entries are called, and how they are chained so that none can be altered.

Pure. The store appends an entry in the transaction of the mutation itself; nothing else writes one.
"""

import hashlib
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

import rfc8785

from controller.wire.rest import AuditEntry

__all__ = ["GENESIS", "Action", "BrokenChain", "canonical", "chain_hash", "verify_chain"]

GENESIS: Final = "0" * 64  # what the first entry names as its predecessor


class Action(StrEnum):
    """source:subject:action. The one list of what can happen to a mesh."""

    MESH_CREATE = "system:mesh:create"
    MESH_RESTORE = "system:mesh:restore"  # from a backup: what happened after that was taken is not in this history
    TOKEN_BOOTSTRAP = "system:token:create"  # noqa: S105  the name of an action
    NODE_EXPIRE = "system:node:expire"
    TOKEN_CREATE = "admin:token:create"  # noqa: S105
    TOKEN_REVOKE = "admin:token:revoke"  # noqa: S105
    KEY_CREATE = "admin:key:create"
    KEY_REVOKE = "admin:key:revoke"
    NODE_RENAME = "admin:node:rename"
    NODE_TAG = "admin:node:tag"
    NODE_APPROVE = "admin:node:approve"
    NODE_ENABLE = "admin:node:enable"
    NODE_DISABLE = "admin:node:disable"
    NODE_UPDATE = "admin:node:update"  # several of the above at once, or a static peer's endpoints
    NODE_DELETE = "admin:node:delete"
    PEER_CREATE = "admin:peer:create"
    POLICY_APPLY = "admin:policy:apply"
    GRANT_CREATE = "admin:grant:create"
    GRANT_EXTEND = "admin:grant:extend"
    GRANT_REVOKE = "admin:grant:revoke"
    SERVICE_MOVE = "admin:service:move"
    SERVICE_FAILOVER = "system:service:move"  # its holder was lost, or may not serve it any more
    NODE_ENROL = "host:node:enrol"
    NODE_ROTATE = "host:node:rotate"
    NODE_REPORT = "host:node:report"
    NODE_LEAVE = "host:node:leave"
    NODE_DRIFT = "host:node:drift"  # somebody on the host changed what agentd made, and agentd put it back


class BrokenChain(Exception):  # noqa: N818
    """An entry does not follow from its predecessor: it, or one before it, was altered or removed."""

    def __init__(self, seq: int, detail: str) -> None:
        super().__init__(f"audit entry {seq}: {detail}")
        self.seq = seq


def canonical(value: Any) -> str:
    """RFC 8785 canonical JSON, so that the same value always hashes the same."""
    return rfc8785.dumps(value).decode()


def chain_hash(previous: str, *, seq: int, time: str, actor: str, action: str, subject: str, old: Any, new: Any) -> str:
    """SHA-256 (hex) over the 32 bytes of `previous` and the entry's canonical JSON. `time` is RFC 3339 in UTC."""
    entry = {"seq": seq, "time": time, "actor": actor, "action": action, "subject": subject, "old": old, "new": new}
    return hashlib.sha256(bytes.fromhex(previous) + canonical(entry).encode()).hexdigest()


def verify_chain(entries: Iterable[AuditEntry], previous: str = GENESIS, seq: int = 0) -> tuple[int, str]:
    """Walk `entries`, oldest first, from the entry (`seq`, `previous`) before them; return the last (seq, hash).

    Raises BrokenChain at the first entry that was altered, or that misses its predecessor.
    """
    for entry in entries:
        if entry.seq != seq + 1:
            raise BrokenChain(entry.seq, f"expected {seq + 1}: entries are missing")
        if entry.previous != previous:
            raise BrokenChain(entry.seq, "it does not name its predecessor's hash")
        computed = chain_hash(
            previous,
            seq=entry.seq,
            time=entry.time.isoformat(),
            actor=entry.actor,
            action=entry.action,
            subject=entry.subject,
            old=entry.old,
            new=entry.new,
        )
        if computed != entry.hash:
            raise BrokenChain(entry.seq, "its content was altered")
        seq, previous = entry.seq, entry.hash
    return seq, previous
