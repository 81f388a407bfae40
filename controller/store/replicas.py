"""What controllers of one PostgreSQL tell each other: that they are there, and which hosts are connected to them.

Not mutations: nobody decided them, and they are worth nothing once their controller is gone. Ages are by the
database's clock, which all of them share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import bindparam, column, delete, func, or_, select, update
from sqlalchemy.dialects.postgresql import ARRAY, Insert, insert
from sqlalchemy.ext.asyncio import AsyncSession

from controller.mesh.elsewhere import Replica, Word
from controller.mesh.presence import Presence
from controller.store.engine import Engines, translated
from controller.store.models import Base, ReplicaRow, StreamRow
from controller.wire.netmap import NodeId

__all__ = ["PRESENCE_CHANNEL", "Told", "hear", "retire", "sweep", "tell"]

PRESENCE_CHANNEL: Final = "wardmesh_presence"
SILENCE: Final = timedelta(seconds=8)  # a controller that was not heard of for longer is taken for dead
_OVERLAP: Final = timedelta(seconds=5)  # rows may become visible this much after their time
_KEPT: Final = timedelta(hours=24)  # hosts may come back at a controller that is away for less
_BATCH: Final = 500
_FACTS: Final = tuple(field.name for field in fields(Presence) if field.name != "since")  # that is a column


@dataclass(frozen=True, slots=True)
class Told:
    """What is new. `now`: the database's time, to continue from; `urls`: of controllers there now or lately."""

    replicas: list[Replica]
    urls: frozenset[str]
    words: dict[NodeId, Word]
    now: datetime


async def tell(engines: Engines, replica: Replica, words: Mapping[NodeId, Word]) -> None:
    """Write that this controller is there and what is new of its hosts, and wake the others. Raises StoreError.

    A host that connected elsewhere later is the other's: what is said of its old stream is not kept.
    """
    with translated(engines.url):
        async with AsyncSession(engines.write) as session:
            items = sorted(words.items())  # in one order, so that two writers never wait for each other
            for start in range(0, len(items), _BATCH):
                batch = items[start : start + _BATCH]
                await session.execute(
                    _WORDS,
                    {
                        "replica": replica.id,
                        "node_ids": [node_id for node_id, _ in batch],
                        "sinces": [word.since for _, word in batch],
                        "all_facts": [_facts(word) for _, word in batch],
                    },
                )
            mine = {"id": replica.id, "url": replica.url, "revision": replica.as_of, "seen": func.now()}
            await session.execute(
                insert(ReplicaRow).values(mine).on_conflict_do_update(index_elements=["id"], set_=mine)
            )
            await session.execute(select(func.pg_notify(PRESENCE_CHANNEL, replica.id)))
            await session.commit()


async def hear(engines: Engines, own: str, after: datetime | None) -> Told:
    """The other controllers that are there, and their words that are new since `after`. Raises StoreError."""
    with translated(engines.url):
        async with AsyncSession(engines.read) as session:
            now = _aware(await session.scalar(select(func.now())))
            rows = list(await session.scalars(select(ReplicaRow).where(ReplicaRow.seen > now - _KEPT)))
            alive = [row for row in rows if row.id != own and row.seen > now - SILENCE]
            replicas = [Replica(row.id, row.url, row.revision) for row in alive]
            query = select(StreamRow).where(StreamRow.replica != own)
            if after is not None:
                query = query.where(StreamRow.written > after - _OVERLAP)
            words = {row.node_id: _word(row) for row in await session.scalars(query)}
    return Told(replicas, frozenset(row.url for row in rows), words, now)


async def retire(engines: Engines, own: str) -> None:
    """Say that this controller ends: its hosts are offline from now on. Raises StoreError."""
    with translated(engines.url):
        async with AsyncSession(engines.write) as session:
            gone = update(ReplicaRow).where(ReplicaRow.id == own).values(seen=func.now() - SILENCE)
            await session.execute(gone)
            await session.execute(select(func.pg_notify(PRESENCE_CHANNEL, own)))
            await session.commit()


async def sweep(engines: Engines) -> None:
    """Delete what controllers that are long gone have left. Raises StoreError."""
    with translated(engines.url):
        async with AsyncSession(engines.write) as session:
            await session.execute(delete(ReplicaRow).where(ReplicaRow.seen < func.now() - _KEPT))
            there = select(ReplicaRow.id)
            await session.execute(
                delete(StreamRow).where(StreamRow.replica.not_in(there), StreamRow.written < func.now() - _KEPT)
            )
            await session.commit()


def _words() -> Insert:
    """One statement for any number of hosts, in arrays, which is compiled and planned once.

    A row of VALUES for each host would be another statement for each number of hosts, and 0.1 ms of this process's
    time for each host, in one piece: hosts would wait for their changes meanwhile.
    """
    table = Base.metadata.tables[StreamRow.__tablename__]  # the class would make it a bulk insert of the ORM
    arrays = {"node_id": "node_ids", "since": "sinces", "facts": "all_facts"}
    told = (
        func.unnest(*(bindparam(array, type_=ARRAY(table.c[name].type)) for name, array in arrays.items()))
        .table_valued(*(column(name, table.c[name].type) for name in arrays))
        .render_derived()
        .c
    )
    replica = bindparam("replica", type_=table.c.replica.type)
    new = insert(table).from_select(
        ["node_id", "replica", "since", "facts", "written"],
        select(told.node_id, replica, told.since, told.facts, func.now()),
    )
    values = {name: new.excluded[name] for name in ("replica", "since", "facts", "written")}
    is_ours = or_(table.c.replica == new.excluded.replica, new.excluded.since >= table.c.since)
    return new.on_conflict_do_update(index_elements=["node_id"], set_=values, where=is_ours)


_WORDS: Final = _words()


def _facts(word: Word) -> dict[str, Any]:
    facts = {name: getattr(word.presence, name) for name in _FACTS}
    seen = word.presence.last_seen
    return {**facts, "last_seen": seen.isoformat() if seen else None, "services": dict(word.services)}


def _word(row: StreamRow) -> Word:
    facts = {
        name: row.facts[name] for name in _FACTS if name in row.facts
    }  # a controller of another version may differ
    seen = facts.pop("last_seen")
    presence = Presence(**facts, last_seen=datetime.fromisoformat(seen) if seen else None)
    return Word(row.replica, row.since, presence, row.facts["services"])


def _aware(value: Any) -> datetime:
    assert isinstance(value, datetime)
    return value.astimezone(UTC)
