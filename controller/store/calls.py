"""The records of gateways: appended in batches, read newest first or as they came, deleted when they are old."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, and_, delete, insert, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from controller.store.models import CallRow, NodeRow, SpoolRow
from controller.store.unit import Unit
from controller.wire.call_records import CallEntry, CallRecord, Verdict
from controller.wire.netmap import NodeId

__all__ = ["CallFilter", "CallTable", "append_calls", "delete_calls"]

_MISSING = "gateway:audit:missing"  # records that the host has lost: they were written, and came never


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which records a list shows; None does not restrict. `since` is inclusive, `until` is not: the host's clock."""

    caller: NodeId | None = None
    node: NodeId | None = None
    service: str | None = None
    tool: str | None = None
    decisions: tuple[Verdict, ...] = ()
    since: datetime | None = None
    until: datetime | None = None


class CallTable:
    """Reading the records in one transaction."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    async def page(self, wanted: CallFilter, *, before: tuple[datetime, int] | None, limit: int) -> list[CallEntry]:
        """At most `limit` records, newest first by the hosts' clocks, from before a record's time and number."""
        query = _filtered(wanted).order_by(CallRow.time.desc(), CallRow.number.desc()).limit(limit)
        if before is not None:
            time, number = before
            # The first comparison alone can use an index.
            query = query.where(CallRow.time <= time, or_(CallRow.time < time, CallRow.number < number))
        return await self._entries(query)

    async def after(self, wanted: CallFilter, number: int, limit: int) -> list[CallEntry]:
        """At most `limit` records that came after record `number`, in the order in which they came."""
        query = _filtered(wanted).where(CallRow.number > number).order_by(CallRow.number).limit(limit)
        return await self._entries(query)

    async def _entries(self, query: Select[CallRow]) -> list[CallEntry]:
        return [
            _entry(row, CallRecord.model_validate_json(row.record)) for row in await self._unit.session.scalars(query)
        ]


def _entry(row: CallRow, record: CallRecord) -> CallEntry:
    claimed = record.service is not None and row.service is None
    return CallEntry(number=row.number, node=row.node, received=row.received, claimed=claimed, record=record)


def _filtered(wanted: CallFilter) -> Select[CallRow]:
    conditions = [
        column == value
        for column, value in (
            (CallRow.caller, wanted.caller),
            (CallRow.node, wanted.node),
            (CallRow.service, wanted.service),
            (CallRow.tool, wanted.tool),
        )
        if value is not None
    ]
    if wanted.decisions:
        conditions.append(CallRow.decision.in_(wanted.decisions))
    if wanted.since is not None:
        conditions.append(CallRow.time >= wanted.since)
    if wanted.until is not None:
        conditions.append(CallRow.time < wanted.until)
    return select(CallRow).where(and_(True, *conditions))


async def append_calls(
    session: AsyncSession,
    node: NodeId,
    *,
    spool: str,
    first: int,
    records: Sequence[CallRecord],
    own: Container[str],
    now: datetime,
) -> int:
    """Add those of `records` that are not there yet; returns the number of the spool's last that is.

    The column of the service is empty where it is not one of the node's `own`, so that it is a claim and no more.
    A hole between the last and `first` becomes a record of its own: what is missing must be seen.
    """
    row = await session.scalar(select(SpoolRow).where(SpoolRow.node == node, SpoolRow.spool == spool))
    if row is None:
        row = SpoolRow(node=node, spool=spool, through=first - 1, updated=now)
        session.add(row)
        await session.flush()
    rows = []
    if first > row.through + 1:
        lost = CallRecord(event=_MISSING, time=now, dropped=first - row.through - 1)
        rows.append(_row(row, node, first - 1, lost, own=own, now=now))
    rows += [
        _row(row, node, seq, record, own=own, now=now) for seq, record in enumerate(records, first) if seq > row.through
    ]
    if rows:
        await session.execute(insert(CallRow), rows)
        row.through, row.updated = max(row.through, first + len(records) - 1), now
        await session.flush()
    return row.through


def _row(
    spool: SpoolRow, node: NodeId, seq: int, record: CallRecord, *, own: Container[str], now: datetime
) -> dict[str, Any]:
    return {
        "spool": spool.number,
        "seq": seq,
        "node": node,
        "received": now,
        "time": record.time,
        "event": record.event,
        "service": record.service if record.service in own else None,
        "caller": record.caller.node if record.caller is not None else None,
        "tool": record.call.name if record.call is not None else None,
        "decision": record.verdict,
        "record": record.model_dump_json(exclude_none=True),
    }


async def delete_calls(session: AsyncSession, before: datetime, most: int) -> int:
    """Delete what was received before a moment, the oldest `most`, and what is known of spools of nodes that are gone.

    Numbers and moments of receipt grow together, so the oldest are found by number, without an index of the moments.
    """
    oldest = await session.execute(select(CallRow.number, CallRow.received).order_by(CallRow.number).limit(most))
    old = [number for number, received in oldest if received < before]
    if old:
        await session.execute(delete(CallRow).where(CallRow.number <= old[-1]))
    gone = SpoolRow.node.not_in(select(NodeRow.id))
    await session.execute(delete(SpoolRow).where(SpoolRow.updated < before, gone))
    return len(old)
