"""The store: reading from a snapshot, and the one way to write, `mutation`.

A mutation is one transaction of rows, one change and one audit entry. The sessions of `read` cannot write (the
database refuses), and the writing engine is private to this module, so there is no other way.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Container, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from pydantic import BaseModel
from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from controller.addresses import AddressPlan
from controller.audit import Action
from controller.clock import Clock, utc_now
from controller.idempotency import KEEP, Once, Replay
from controller.problems import Kind, Refused
from controller.records import ENDED_KEPT, Change, Fleet, PolicyRecord
from controller.store import ledger
from controller.store.addresses import AddressTable
from controller.store.calls import CallTable, append_calls, delete_calls
from controller.store.credentials import KeyTable, TokenTable
from controller.store.engine import Engines, StoreError, lock_recorders, lock_writers, session_on, translated
from controller.store.grants import GrantTable
from controller.store.ledger import Ledger, PolicyTable
from controller.store.models import MeshRow, ResponseRow
from controller.store.nodes import NodeTable, write_presence
from controller.store.services import ServiceTable
from controller.store.unit import Unit
from controller.tracing import Tracing
from controller.wire.call_records import CallRecord
from controller.wire.netmap import Mesh, NodeId

__all__ = ["Entry", "Mutation", "Reading", "Seen", "Store", "StoreError"]

_log = logging.getLogger(__name__)
_TURN_WITHIN: Final = 30.0  # seconds
_ENDED_KEPT: Final = timedelta(seconds=ENDED_KEPT)
T = TypeVar("T")
Seen = tuple[NodeId, datetime, str | None, str | None]  # node, when, agent version, backend


class Reading:
    """The tables in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self.nodes = NodeTable(unit)
        self.addresses = AddressTable(unit)
        self.keys = KeyTable(unit)
        self.tokens = TokenTable(unit)
        self.policy = PolicyTable(unit)
        self.services = ServiceTable(unit)
        self.grants = GrantTable(unit)
        self.ledger = Ledger(unit)
        self.calls = CallTable(unit)

    @property
    def plan(self) -> AddressPlan:
        """What host numbers mean in this mesh."""
        return self._unit.plan


@dataclass(frozen=True, slots=True)
class Entry:
    """Who did what to whom, as the audit names them: `token:wma_…`, an Action, `node:…`."""

    actor: str
    action: Action
    subject: str


class Mutation(Reading):
    """The tables, writable, and what the audit will say. `revision` is the one that this mutation makes."""

    def __init__(self, unit: Unit, now: datetime, entry: "Entry") -> None:
        super().__init__(unit)
        self.revision = unit.writing()
        self.now = now
        self.entry = entry
        self.discarded = False
        self.old: Any = None
        self.new: Any = None
        self.answered: bytes | None = None

    def record(self, *, old: Any = None, new: Any = None) -> None:
        """State the values before and after for the audit: plain JSON, never a secret."""
        self.old, self.new = old, new

    def answer(self, body: BaseModel) -> None:
        """State what the caller is told, to be repeated when the same request comes again."""
        self.answered = body.model_dump_json().encode()

    def discard(self) -> None:
        """Nothing needs to change after all: leave no row, no revision, no audit entry."""
        self.discarded = True

    async def has_mesh(self) -> bool:
        """Whether there is a mesh in the database already."""
        return await self._unit.session.scalar(select(MeshRow.id)) is not None

    async def create_mesh(self, mesh: Mesh, ca_sha256: str) -> None:
        """Write the mesh's facts, once."""
        self._unit.session.add(
            MeshRow(
                id=mesh.id,
                name=mesh.name,
                domain=mesh.domain,
                prefix4=mesh.prefix4,
                prefix6=mesh.prefix6,
                ca_sha256=ca_sha256,
                created=self.now,
            )
        )
        await self._unit.session.flush()
        await self.addresses.create_pool()


class Store:
    """One database. `subscribe` to hear of every commit, in order."""

    def __init__(self, engines: Engines, now: Clock = utc_now, tracing: Tracing | None = None) -> None:
        self._engines = engines
        self._now = now
        self._tracing = tracing or Tracing()
        self._plan: AddressPlan | None = None
        self._subscribers: list[Callable[[Change], None]] = []
        self._known: int | None = None  # the newest revision that subscribers heard of
        self._following = asyncio.Lock()
        # Writers of this process queue here in order; those of other processes meet at the database's lock.
        self._writer = asyncio.Lock()
        # Before that queue, so that however many hosts have records to keep, a mutation waits for one of them at most.
        self._recorder = asyncio.Lock()

    def subscribe(self, hear: Callable[[Change], None]) -> None:
        """Call `hear` with every committed Change, before the next mutation can begin. It must be quick."""
        self._subscribers.append(hear)

    async def load_mesh(self) -> tuple[Mesh, str] | None:
        """The mesh's facts and its CA's SHA-256; None when the database has no mesh yet."""
        with translated(self._engines.url):
            async with session_on(self._engines.read) as session:
                row = await session.scalar(select(MeshRow))
        if row is None:
            return None
        mesh = Mesh(
            id=row.id,
            name=row.name,
            domain=row.domain,
            prefix4=row.prefix4,
            prefix6=row.prefix6,
            timeline=row.timeline,
        )
        self._plan = AddressPlan.parse(mesh.prefix4, mesh.prefix6)
        return mesh, row.ca_sha256

    @property
    def plan(self) -> AddressPlan:
        """The mesh's prefixes; known after `load_mesh`."""
        assert self._plan is not None
        return self._plan

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Reading]:
        """The tables as they are at one moment, read-only. Raises StoreError."""
        with self._tracing.span("store.read", alone=False), translated(self._engines.url):
            async with session_on(self._engines.read) as session:
                yield Reading(Unit(session, self._plan))

    @asynccontextmanager
    async def mutation(
        self, actor: str, action: Action, subject: str, once: Once | None = None
    ) -> AsyncIterator[Mutation]:
        """One mutation; an exception in its body undoes it whole.

        `once` makes a repeated request raise Replay with the first answer. Raises StoreError.
        """
        with self._tracing.span("store.mutation") as span, translated(self._engines.url):
            span.note("wardmesh.action", action)
            async with self._turn(), session_on(self._engines.write, expire_on_commit=False) as session:
                await lock_writers(session, sqlite=self._engines.sqlite)
                if once is not None:
                    await _refuse_repetition(session, once)
                unit = Unit(session, self._plan, await ledger.newest_revision(session) + 1)
                mutation = Mutation(unit, self._now(), Entry(actor, action, subject))
                yield mutation
                if mutation.discarded:
                    await session.rollback()
                    return
                # A caller that goes away now must not separate the commit from its publication.
                await _finish(self._commit(unit, mutation, once))
                span.note("wardmesh.revision", mutation.revision)

    async def note_presence(self, seen: Iterable[Seen]) -> None:
        """Remember when nodes were last seen. Not a mutation: it changes nothing that a host or an admin decided."""
        with translated(self._engines.url):
            async with self._turn(), session_on(self._engines.write) as session:
                await lock_writers(session, sqlite=self._engines.sqlite)
                await write_presence(session, list(seen))
                await session.commit()

    async def keep_calls(
        self, node: NodeId, spool: str, first: int, records: Sequence[CallRecord], own: Container[str]
    ) -> int:
        """Keep records of a host's gateway, each once; returns the number of the spool's last that is kept.

        What it says of services that are not its `own` is a claim.
        Not a mutation: it changes nothing that a host or an admin decided. Raises StoreError.
        """
        async with self._recording() as session:
            return await append_calls(
                session, node, spool=spool, first=first, records=records, own=own, now=self._now()
            )

    async def expire_calls(self, before: datetime, most: int) -> int:
        """Delete records that came before a moment, the oldest `most` of them; returns how many. Raises StoreError."""
        async with self._recording() as session:
            return await delete_calls(session, before, most)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """This process's next write. Raises StoreError when those before it take too long."""
        try:
            async with asyncio.timeout(_TURN_WITHIN):
                await self._writer.acquire()
        except TimeoutError as error:
            raise StoreError(f"writes before this one have waited {_TURN_WITHIN:g} s for the database") from error
        try:
            yield
        finally:
            self._writer.release()

    @asynccontextmanager
    async def _recording(self) -> AsyncIterator[AsyncSession]:
        with translated(self._engines.url):
            async with self._recorder, AsyncExitStack() as stack:
                if self._engines.sqlite:
                    await stack.enter_async_context(self._turn())
                session = await stack.enter_async_context(session_on(self._engines.write))
                await lock_recorders(session, sqlite=self._engines.sqlite)
                yield session
                await session.commit()

    async def fleet(self, mesh: Mesh, *, past: bool = False) -> Fleet:
        """Everything that the mesh is computed from, at one revision; with `past`, how it came to that.

        With `past`, temporary grants that ended within the last two days are there, too: this controller may have been
        started while its clock was wrong.
        """
        async with self.read() as tables:
            nodes = await tables.nodes.all()
            policy = await tables.policy.current()
            now = self._now()
            grants = (grant.record for grant in await tables.grants.active(now - _ENDED_KEPT if past else now))
            ended = await tables.grants.last_ended(now)
            return Fleet(
                revision=await tables.ledger.revision(),
                mesh=mesh,
                nodes={node.id: node.record for node in nodes},
                policy=PolicyRecord(policy.revision, policy.text) if policy else PolicyRecord(0, ""),
                services={service.name: service.record for service in await tables.services.all()},
                grants={grant.id: grant for grant in grants if grant is not None},
                past=await tables.ledger.past() if past else (),
                ended=ended.timestamp() if ended is not None else None,
            )

    async def begin(self, mesh: Mesh) -> Fleet:
        """The fleet to begin with, and its past: subscribers hear of everything that comes after it."""
        fleet = await self.fleet(mesh, past=True)
        self._known = fleet.revision
        return fleet

    async def catch_up(self) -> None:
        """Publish what other processes committed. Raises StoreError.

        One Change for all of it: each value is that of the newest revision, and none of one before, so there is no
        moment at which a map would have a part of a later revision.
        """
        async with self._following:
            if self._known is None:
                return
            news = await self.news_after(self._known)
            if news is not None and news.revision > self._known:  # else it was our own, and published meanwhile
                self._publish(news)

    async def news_after(self, revision: int) -> Change | None:
        """All that was committed after `revision` in one Change, with present values; None when nothing was."""
        async with self.read() as tables:
            rows = await tables.ledger.changes_after(revision)
            if not rows:
                return None
            ids = sorted({node_id for row in rows for node_id in row.nodes})
            nodes = {node.id: node.record for node in await tables.nodes.with_ids(ids)}
            policy = await tables.policy.current() if any(row.policy for row in rows) else None
            services = {name: await tables.services.get(name) for row in rows for name in row.services}
            grants = {grant_id: await tables.grants.get(grant_id) for row in rows for grant_id in row.grants}
            return Change(
                revision=rows[-1].revision,
                nodes={node_id: nodes.get(node_id) for node_id in ids},
                policy=PolicyRecord(policy.revision, policy.text) if policy else None,
                services={name: service.record if service else None for name, service in services.items()},
                grants={grant_id: grant.record if grant else None for grant_id, grant in grants.items()},
            )

    async def close(self) -> None:
        """Close every connection."""
        await self._engines.dispose()

    async def _commit(self, unit: Unit, mutation: Mutation, once: Once | None) -> None:
        if once is not None and mutation.answered is not None:
            unit.session.add(
                ResponseRow(
                    key=once.key, request=once.request, sealed=once.seal(mutation.answered), created=mutation.now
                )
            )
            await unit.session.execute(delete(ResponseRow).where(ResponseRow.created < mutation.now - KEEP))
        await ledger.append(
            unit,
            time=mutation.now,
            actor=mutation.entry.actor,
            action=mutation.entry.action,
            subject=mutation.entry.subject,
            old=mutation.old,
            new=mutation.new,
        )
        if not self._engines.sqlite:
            await ledger.announce(unit.session)
        await unit.session.commit()
        change = Change(
            revision=mutation.revision,
            nodes=unit.changed_nodes,
            policy=unit.changed_policy,
            services=unit.changed_services,
            grants=unit.changed_grants,
        )
        if self._known is None or self._known + 1 == change.revision:
            self._publish(change)
            return
        # Another process committed in between, and its changes come first. This one is among them then.
        try:
            await self.catch_up()
        except StoreError as error:
            _log.error("a change is committed, and hosts hear of it when the database answers again: %s", error)

    def _publish(self, change: Change) -> None:
        self._known = change.revision
        for hear in self._subscribers:
            hear(change)


async def _refuse_repetition(session: AsyncSession, once: Once) -> None:
    before = await session.get(ResponseRow, once.key)
    if before is None:
        return
    if before.request != once.request:
        raise Refused(
            Kind.IDEMPOTENCY_KEY_REUSED,
            "this Idempotency-Key was used for another request: make a new one for each request",
        )
    raise Replay(once.unseal(before.sealed))


async def _finish(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end even when the caller is cancelled meanwhile; the cancellation is delivered after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and task.exception() is None:
        raise cancelled
    return task.result()
