"""Enrolment keys: what lets a host become a node. Creating one yields the join string, which is shown once."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from controller.audit import Action
from controller.idempotency import Once
from controller.identity.secret import Secret, digest, new_id
from controller.problems import Kind, Refused
from controller.store.store import Mutation, Store
from controller.store.values import StoredKey
from controller.wire.enrol import JoinString
from controller.wire.rest import EnrolmentKey, EnrolmentKeyCreate, EnrolmentKeyCreated

__all__ = ["FirstContact", "Keys"]

_REMEDY = "make a new join string with `wardmesh key create`"


@dataclass(frozen=True, slots=True)
class FirstContact:
    """How a host finds this controller and knows that it is the right one: `ca` as the join string says it."""

    url: str
    ca: str


class Keys:
    """The domain of enrolment keys."""

    def __init__(self, store: Store, contact: FirstContact) -> None:
        self._store = store
        self._contact = contact

    async def create(self, actor: str, wanted: EnrolmentKeyCreate, once: Once | None = None) -> EnrolmentKeyCreated:
        """Make a key. The answer is the only place where it can be read."""
        secret = Secret.new("wmk")
        key_id = new_id()
        async with self._store.mutation(actor, Action.KEY_CREATE, f"key:{key_id}", once) as tx:
            key = StoredKey(
                id=key_id,
                prefix=secret.prefix,
                hash=secret.hash,
                tags=tuple(sorted(set(wanted.tags))),
                uses=wanted.uses,
                used=0,
                ephemeral=wanted.ephemeral,
                approved=wanted.approved,
                note=wanted.note,
                created=tx.now,
                expires=tx.now + timedelta(seconds=wanted.ttl),
            )
            await tx.keys.add(key)
            join = JoinString(url=self._contact.url, ca=self._contact.ca, key=secret.text).encode()
            created = EnrolmentKeyCreated(key=_public(key), join=join)
            tx.record(new=_summary(key))
            tx.answer(created)
        return created

    async def get(self, key_id: str) -> EnrolmentKey:
        """One key. Raises Refused (NOT_FOUND)."""
        async with self._store.read() as tables:
            key = await tables.keys.get(key_id)
        if key is None:
            raise _missing(key_id)
        return _public(key)

    async def page(self, *, before: tuple[datetime, str] | None, limit: int) -> list[EnrolmentKey]:
        """At most `limit` keys, newest first."""
        async with self._store.read() as tables:
            return [_public(key) for key in await tables.keys.page(before=before, limit=limit)]

    async def revoke(self, actor: str, key_id: str) -> None:
        """End the key; nodes that came with it stay. Again is the same as once. Raises Refused (NOT_FOUND)."""
        async with self._store.mutation(actor, Action.KEY_REVOKE, f"key:{key_id}") as tx:
            key = await tx.keys.get(key_id)
            if key is None:
                raise _missing(key_id)
            if key.revoked is not None:
                tx.discard()
                return
            await tx.keys.revoke(key_id, tx.now)
            tx.record(old=_summary(key))

    async def find(self, secret: str) -> StoredKey:
        """The key that a host presents, usable or not. Raises Refused (KEY_UNKNOWN)."""
        async with self._store.read() as tables:
            key = await tables.keys.by_hash(digest(secret))
        if key is None:
            raise Refused(Kind.KEY_UNKNOWN, f"this controller does not know the enrolment key: {_REMEDY}")
        return key

    async def redeem(self, tx: Mutation, key: StoredKey) -> StoredKey:
        """Use the key once, in the mutation that makes the node. Raises Refused, naming why it cannot be used."""
        redeemed = await tx.keys.redeem(key.hash, tx.now)
        if redeemed is not None:
            return redeemed
        now = await tx.keys.get(key.id) or key
        if now.revoked is not None:
            raise Refused(Kind.KEY_REVOKED, f"the enrolment key {now.prefix} was revoked: {_REMEDY}")
        if now.expires <= tx.now:
            raise Refused(
                Kind.KEY_EXPIRED,
                f"the enrolment key {now.prefix} expired at {now.expires:%Y-%m-%d %H:%M:%S UTC}: {_REMEDY}",
            )
        raise Refused(
            Kind.KEY_USED_UP,
            f"the enrolment key {now.prefix} was already used {now.used} of {now.uses} times: {_REMEDY}",
        )


def _missing(key_id: str) -> Refused:
    return Refused(Kind.NOT_FOUND, f"there is no enrolment key {key_id!r}: `wardmesh key list` shows those that exist")


def _public(key: StoredKey) -> EnrolmentKey:
    return EnrolmentKey(
        id=key.id,
        prefix=key.prefix,
        tags=key.tags,
        uses=key.uses,
        used=key.used,
        ephemeral=key.ephemeral,
        approved=key.approved,
        note=key.note,
        created=key.created,
        expires=key.expires,
        revoked=key.revoked,
    )


def _summary(key: StoredKey) -> dict[str, Any]:
    return {
        "prefix": key.prefix,
        "tags": list(key.tags),
        "uses": key.uses,
        "ephemeral": key.ephemeral,
        "approved": key.approved,
        "note": key.note,
        "expires": key.expires.isoformat(),
    }
