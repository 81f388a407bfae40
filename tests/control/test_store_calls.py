"""Records of calls in the store, on both databases: each once, in order, found by filters, deleted when old."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from controller.audit import Action
from controller.calls import CallBook
from controller.store import backup
from controller.store.calls import CallFilter
from controller.store.engine import Engines
from controller.store.store import Store
from controller.wire.call_records import CallEntry, CallRecord

from .calls import NOON, SPOOL, ended, record
from .stores import MESH
from .support import MovableClock, opened

OWN = frozenset({"github", "files"})


async def keep(store: Store, node: str, spool: str, first: int, records: list[CallRecord]) -> int:
    return await store.keep_calls(node, spool, first, records, OWN)


async def newest(store: Store, wanted: CallFilter | None = None, limit: int = 1000) -> list[CallEntry]:
    async with store.read() as tables:
        return await tables.calls.page(wanted or CallFilter(), before=None, limit=limit)


async def ids(store: Store, **wanted: Any) -> list[str | None]:
    return [entry.record.id for entry in await newest(store, CallFilter(**wanted))]


async def test_a_record_is_read_as_it_was_told(store: Store) -> None:
    told = ended(
        1,
        call={
            "era": "legacy",
            "method": "tools/call",
            "name": "get\x1b[2Jé",
            "request_id": 7,
            "arguments_digest": "sha256:" + "0" * 64,
            "arguments": {"null": None, "list": [1, {"a": "\x00"}]},
        },
        session="sha256:" + "a" * 32,
    )
    assert await keep(store, "n1", SPOOL, 1, [told]) == 1
    (entry,) = await newest(store)
    assert (entry.record, entry.node) == (told, "n1")


async def test_what_is_told_again_is_kept_once(store: Store) -> None:
    records = [record(number) for number in range(1, 6)]
    assert await keep(store, "n1", SPOOL, 1, records[:3]) == 3
    assert await keep(store, "n1", SPOOL, 1, records[:3]) == 3
    assert await keep(store, "n1", SPOOL, 2, records[1:]) == 5
    assert await keep(store, "n1", SPOOL, 1, records[:1]) == 5
    assert await ids(store) == ["r5", "r4", "r3", "r2", "r1"]


async def test_spools_of_two_hosts_are_two_also_with_one_id(store: Store) -> None:
    for node in ("n1", "n2"):
        assert await keep(store, node, SPOOL, 1, [record(1)]) == 1
    assert sorted(entry.node for entry in await newest(store)) == ["n1", "n2"]


async def test_two_that_tell_at_once_are_both_kept(store: Store) -> None:
    async def tell(node: str) -> None:
        for first in range(1, 101, 10):
            await keep(store, node, SPOOL, first, [record(n) for n in range(first, first + 10)])

    await asyncio.gather(*(tell(f"n{number}") for number in range(4)), tell("n0"))
    assert len(await newest(store)) == 400


async def test_what_is_missing_between_is_a_record(store: Store) -> None:
    await keep(store, "n1", SPOOL, 1, [record(1)])
    assert await keep(store, "n1", SPOOL, 10, [record(10)]) == 10
    async with store.read() as tables:
        entries = await tables.calls.after(CallFilter(), 0, 10)
    assert [(entry.record.event, entry.record.dropped) for entry in entries] == [
        ("gateway:call:denied", None),
        ("gateway:audit:missing", 8),
        ("gateway:call:denied", None),
    ]


async def test_a_spool_whose_beginning_another_controller_has_misses_nothing(store: Store) -> None:
    assert await keep(store, "n1", SPOOL, 500, [record(1)]) == 500
    assert await ids(store) == ["r1"]


async def test_records_are_found_by_what_they_say(store: Store) -> None:
    told = record().caller
    assert told is not None
    other = {"node": "n-other", "name": "other", "address": "100.88.0.3", "key": told.key}
    gap = CallRecord(event="gateway:audit:gap", time=NOON + timedelta(seconds=4), dropped=2, refused=0)
    records = [ended(1), record(2, caller=other), record(3, service="files", event="gateway:request:refused"), gap]
    records[2] = records[2].model_copy(update={"decision": None})
    await keep(store, "n1", SPOOL, 1, records[:2])
    await keep(store, "n2", SPOOL, 1, records[2:])
    assert await ids(store, decisions=("allowed",)) == ["r1"]
    assert await ids(store, decisions=("denied", "refused")) == ["r3", "r2"]
    assert await ids(store, caller="n-other") == ["r2"]
    assert await ids(store, service="files") == ["r3"]
    assert await ids(store, tool="tool-1") == ["r1"]
    assert await ids(store, node="n2") == [None, "r3"]
    second = timedelta(seconds=1)
    assert await ids(store, since=NOON + 2 * second, until=NOON + 4 * second) == ["r3", "r2"]


async def test_pages_go_on_where_they_ended_also_within_one_moment(store: Store) -> None:
    await keep(store, "n1", SPOOL, 1, [record(1, id=f"r{number}") for number in range(1, 8)])
    found, before = [], None
    while True:
        async with store.read() as tables:
            entries = await tables.calls.page(CallFilter(), before=before, limit=3)
        if not entries:
            break
        found += [entry.record.id for entry in entries]
        before = entries[-1].record.time, entries[-1].number
    assert found == [f"r{number}" for number in range(7, 0, -1)]


async def test_who_follows_sees_what_came_late_after_what_came_before(store: Store) -> None:
    await keep(store, "n1", SPOOL, 1, [record(100)])
    (last,) = await newest(store)
    await keep(store, "n2", SPOOL, 1, [record(1)])
    async with store.read() as tables:
        entries = await tables.calls.after(CallFilter(), last.number, 10)
    assert [entry.record.id for entry in entries] == ["r1"]


async def test_old_records_go_by_when_they_came_and_numbers_are_not_used_again(
    store: Store, clock: MovableClock
) -> None:
    book = CallBook(store, lambda _: OWN, timedelta(days=30), clock)
    await book.heard("n1", SPOOL, 1, [record(1), record(2)])
    clock.advance(days=29)
    await book.heard("n1", SPOOL, 3, [record(3)])
    assert await book.expire() == 0
    clock.advance(days=2)
    assert await book.expire() == 2
    assert await ids(store) == ["r3"]
    (kept,) = await newest(store)
    clock.advance(days=60)
    assert await book.expire() == 1
    # Neither does a host that tells again what has gone: it had its answer, or gets it now.
    assert await book.heard("n1", SPOOL, 2, [record(2), record(3)]) == 3 or not await newest(store)
    await book.heard("n1", SPOOL, 4, [record(4)])
    (entry,) = [entry for entry in await newest(store) if entry.record.id == "r4"]
    assert entry.number > kept.number


async def test_old_records_go_in_bounded_transactions(store: Store, clock: MovableClock) -> None:
    await keep(store, "n1", SPOOL, 1, [record(number) for number in range(25)])
    clock.advance(days=1)
    assert [await store.expire_calls(clock(), 10) for _ in range(4)] == [10, 10, 5, 0]


async def test_a_flood_of_records_does_not_hold_up_a_mutation(store: Store) -> None:
    """However many hosts tell at once, a mutation waits for one batch at most: here 20 hosts, without a pause."""
    batch = [record(number) for number in range(250)]
    waited: list[float] = []
    done = asyncio.Event()

    async def flood(node: str) -> int:
        first = 1
        while not done.is_set():
            await keep(store, node, SPOOL, first, batch)
            first += len(batch)
        return first - 1

    floods = [asyncio.create_task(flood(f"n{number}")) for number in range(20)]
    try:
        for number in range(10):
            began = time.perf_counter()
            async with store.mutation("test", Action.POLICY_APPLY, "policy") as tx:
                await tx.policy.apply(f"# {number}", actor="test", now=tx.now)
            waited.append(time.perf_counter() - began)
    finally:
        done.set()
        kept = await asyncio.gather(*floods)
    assert sum(kept) >= 20 * 250
    assert sorted(waited)[5] < 1.0, waited


async def test_a_restored_database_keeps_records_of_calls_and_goes_on_counting_them(
    database_url: str, clock: MovableClock, tmp_path: Path
) -> None:
    source = Engines(f"sqlite:///{tmp_path / 'source.db'}")
    async with opened(f"sqlite:///{tmp_path / 'source.db'}", clock) as before:
        async with before.mutation("system", Action.MESH_CREATE, "mesh:m1") as tx:
            await tx.create_mesh(MESH, "00" * 32)
        await keep(before, "n1", SPOOL, 1, [record(1), record(2)])
    target = Engines(database_url)
    await backup.fill(target, source, "later")
    for engines in (source, target):
        await engines.dispose()
    async with opened(database_url, clock) as store:
        assert await keep(store, "n1", SPOOL, 2, [record(2), record(3)]) == 3
        assert await keep(store, "n2", SPOOL, 1, [record(4)]) == 1
        async with store.read() as tables:
            entries = await tables.calls.after(CallFilter(), 0, 10)
    assert [(entry.number, entry.record.id) for entry in entries] == [(1, "r1"), (2, "r2"), (3, "r3"), (4, "r4")]


async def test_what_a_host_says_of_services_of_others_is_a_claim_that_no_filter_finds(
    store: Store, clock: MovableClock
) -> None:
    own = {"n1": frozenset({"github"}), "n2": frozenset()}
    book = CallBook(store, lambda node: own[node], timedelta(days=30), clock)
    await book.heard("n1", SPOOL, 1, [record(1)])
    await book.heard("n2", SPOOL, 1, [record(2)])
    assert await ids(store, service="github") == ["r1"]
    assert [(entry.record.id, entry.claimed) for entry in await newest(store)] == [("r2", True), ("r1", False)]
    # What it recorded before policy took the service away may come after.
    own["n1"] = frozenset()
    await book.heard("n1", SPOOL, 2, [record(3)])
    assert await ids(store, service="github") == ["r3", "r1"]
