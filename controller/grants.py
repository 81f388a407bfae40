"""Temporary grants: access for a while, beside the policy document, with a reason and a name behind it.

Each ends by itself at its time. The hosts see to that, so no row, no audit entry and no revision marks the moment:
who asks is told `ended`, and `expires` in the entries of `grant.create` and `grant.extend` says when.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import JsonValue

from controller.audit import Action
from controller.clock import Clock
from controller.idempotency import Once
from controller.identity.secret import new_id
from controller.mesh.hub import Hub
from controller.policy.document import Grant
from controller.policy.temporary import Fault, read_grant
from controller.problems import Kind, Refused
from controller.store.store import Mutation, Store
from controller.store.values import StoredGrant
from controller.wire.grants import GrantCalls, GrantCreate, GrantState, TemporaryGrant

__all__ = ["Grants"]


class Grants:
    """The domain of temporary grants. `longest`: how far from now a grant may end."""

    def __init__(self, store: Store, hub: Hub, now: Clock, longest: timedelta) -> None:
        self._store = store
        self._hub = hub
        self._now = now
        self._longest = longest

    async def create(self, actor: str, wanted: GrantCreate, once: Once | None = None) -> TemporaryGrant:
        """Grant it from now on. Raises Refused (GRANT_REFUSED) with what is wrong with which entry."""
        grant_id = f"t{new_id()}"
        async with self._store.mutation(actor, Action.GRANT_CREATE, _subject(grant_id), once) as tx:
            # Read while nobody else writes, so that the names are those of the policy that it will stand beside.
            mcp = None if wanted.mcp is None else wanted.mcp.written
            meant = self._read(wanted, mcp)
            grant = await tx.grants.save(
                StoredGrant(
                    id=grant_id,
                    from_=tuple(selector.key for selector in meant.from_),
                    to=tuple(selector.key for selector in meant.to),
                    ip=tuple(entry.text for entry in meant.ip),
                    mcp=mcp,
                    reason=wanted.reason,
                    actor=actor,
                    created=tx.now,
                    expires=self._end(wanted.ttl, tx.now),
                )
            )
            tx.record(new=_audited(grant))
            created = _public(grant, tx.now, None)
            tx.answer(created)
        return created

    async def page(
        self, *, before: tuple[datetime, str] | None, limit: int, state: GrantState | None
    ) -> list[TemporaryGrant]:
        """At most `limit` grants, newest first."""
        now = self._now()
        async with self._store.read() as tables:
            found = await tables.grants.page(before=before, limit=limit, state=state, now=now)
        return [_public(grant, now, self._problem(grant)) for grant in found]

    async def get(self, grant_id: str) -> TemporaryGrant:
        """The grant, also one that has ended. Raises Refused (NOT_FOUND)."""
        async with self._store.read() as tables:
            grant = _found(await tables.grants.get(grant_id), grant_id)
        return _public(grant, self._now(), self._problem(grant))

    async def extend(self, actor: str, grant_id: str, ttl: int, expected: Collection[int] | None) -> TemporaryGrant:
        """Let it end `ttl` seconds from now.

        Raises Refused: NOT_FOUND, PRECONDITION_FAILED, GRANT_ENDED, or GRANT_REFUSED when that is no later.
        """
        async with self._store.mutation(actor, Action.GRANT_EXTEND, _subject(grant_id)) as tx:
            grant = await _for_editing(tx, grant_id, expected)
            if not grant.is_active(tx.now):
                raise Refused(Kind.GRANT_ENDED, f"the grant {grant_id!r} {_ended(grant)}: make a new one")
            end = self._end(ttl, tx.now)
            if end <= grant.expires:
                raise _refused(
                    Fault(
                        "not-later",
                        "ttl",
                        f"{ttl} seconds from now is no later than its present end, {_moment(grant.expires)}: give a "
                        "longer time, or revoke the grant to end it sooner",
                    )
                )
            extended = await tx.grants.save(replace(grant, expires=end))
            tx.record(old=_audited(grant), new=_audited(extended))
        return _public(extended, self._now(), self._problem(extended))

    async def revoke(self, actor: str, grant_id: str, expected: Collection[int] | None) -> None:
        """End it now, with the flows that live by it. One that has ended is left as it is.

        Raises Refused: NOT_FOUND, PRECONDITION_FAILED.
        """
        async with self._store.mutation(actor, Action.GRANT_REVOKE, _subject(grant_id)) as tx:
            grant = await _for_editing(tx, grant_id, expected)
            if not grant.is_active(tx.now):
                tx.discard()
                return
            await tx.grants.save(replace(grant, revoked=tx.now))
            tx.record(old=_audited(grant))

    def _read(self, wanted: GrantCreate, mcp: Mapping[str, JsonValue] | None) -> Grant:
        document, nodes = self._hub.names()
        grant, faults = read_grant(wanted.from_, wanted.to, wanted.ip, document, nodes, mcp=mcp)
        if grant is None:
            raise _refused(*faults)
        return grant

    def _end(self, ttl: int, now: datetime) -> datetime:
        """The end, on a whole second: hosts compare with their clock in seconds, so it is never early by rounding."""
        if timedelta(seconds=ttl) > self._longest:
            longest = int(self._longest.total_seconds())
            raise _refused(
                Fault(
                    "too-long",
                    "ttl",
                    f"{ttl} seconds are longer than this controller allows for a temporary grant, {longest} "
                    f"({longest // 86400} days): what should last longer belongs in the policy document",
                )
            )
        return datetime.fromtimestamp(math.ceil(now.timestamp() + ttl), UTC)

    def _problem(self, grant: StoredGrant) -> str | None:
        return self._hub.idleness(grant.id) if grant.is_active(self._now()) else None


async def _for_editing(tx: Mutation, grant_id: str, expected: Collection[int] | None) -> StoredGrant:
    grant = _found(await tx.grants.get(grant_id), grant_id)
    if expected is not None and grant.revision not in expected:
        raise Refused(
            Kind.PRECONDITION_FAILED,
            f"the grant {grant_id!r} is at revision {grant.revision} by now: get it again, and repeat if it still fits",
        )
    return grant


def _found(grant: StoredGrant | None, grant_id: str) -> StoredGrant:
    if grant is None:
        raise Refused(Kind.NOT_FOUND, f"there is no temporary grant {grant_id!r}: GET /grants lists those that exist")
    return grant


def _refused(*faults: Fault) -> Refused:
    return Refused(
        Kind.GRANT_REFUSED,
        "; ".join(f"{fault.field}: {fault.message}" if fault.field else fault.message for fault in faults),
        *(
            {"code": fault.code, "message": fault.message} | ({"field": fault.field} if fault.field else {})
            for fault in faults
        ),
    )


def _subject(grant_id: str) -> str:
    return f"grant:{grant_id}"


def _audited(grant: StoredGrant) -> dict[str, Any]:
    return {
        "from": list(grant.from_),
        "to": list(grant.to),
        "ip": list(grant.ip),
        **({} if grant.mcp is None else {"mcp": grant.mcp}),
        "reason": grant.reason,
        "expires": _moment(grant.expires),
    }


def _ended(grant: StoredGrant) -> str:
    return f"was revoked at {_moment(grant.revoked)}" if grant.revoked else f"ended at {_moment(grant.expires)}"


def _moment(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _public(grant: StoredGrant, now: datetime, problem: str | None) -> TemporaryGrant:
    return TemporaryGrant(
        id=grant.id,
        from_=grant.from_,
        to=grant.to,
        ip=grant.ip,
        mcp=None if grant.mcp is None else GrantCalls.model_validate(grant.mcp),
        reason=grant.reason,
        actor=grant.actor,
        created=grant.created,
        expires=grant.expires,
        revoked=grant.revoked,
        state="active" if grant.is_active(now) else "ended",
        problem=problem,
        revision=grant.revision,
    )
