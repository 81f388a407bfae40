"""One contract for the store, on SQLite and on PostgreSQL."""

import asyncio
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from controller.audit import Action, BrokenChain, verify_chain
from controller.idempotency import Once, Replay
from controller.identity.secret import digest
from controller.keys import FirstContact, Keys
from controller.problems import Kind, Refused
from controller.records import Change
from controller.store.engine import Engines, StoreError
from controller.store.models import AuditRow, ChangeRow, ResponseRow
from controller.store.store import Store
from controller.store.unit import ReadOnlyError
from controller.store.values import NodeFilter, StoredGrant, StoredNode
from controller.wire.enrol import JoinString
from controller.wire.rest import EnrolmentKeyCreate, Health

from .stores import MESH, add_node, remove_node, write_node
from .support import MovableClock, opened


class TestMutation:
    async def test_writes_rows_change_and_audit_entry_together(self, store: Store) -> None:
        heard: list[Change] = []
        store.subscribe(heard.append)
        async with store.mutation("token:t", Action.NODE_ENROL, "node:id-a") as tx:
            node = await write_node(tx, "a")
            tx.record(new={"name": "a"})
        async with store.read() as tables:
            assert await tables.ledger.revision() == node.revision == 2
            [change] = await tables.ledger.changes_after(1)
            [entry] = await tables.ledger.audit_after(1)
        assert (change.revision, change.nodes, change.policy) == (2, ["id-a"], False)
        assert (entry.seq, entry.actor, entry.action, entry.new) == (2, "token:t", "host:node:enrol", {"name": "a"})
        assert heard == [Change(revision=2, nodes={"id-a": node.record})]

    async def test_leaves_nothing_when_its_body_fails(self, store: Store) -> None:
        async def fail() -> None:
            async with store.mutation("t", Action.NODE_ENROL, "node:id-a") as tx:
                await write_node(tx, "a")
                raise LookupError

        with pytest.raises(LookupError):
            await fail()
        async with store.read() as tables:
            assert await tables.nodes.all() == []
            assert await tables.ledger.revision() == 1
            assert await tables.addresses.used() == 0

    async def test_leaves_nothing_when_discarded(self, store: Store) -> None:
        async with store.mutation("t", Action.NODE_ENROL, "node:id-a") as tx:
            await write_node(tx, "a")
            tx.discard()
        async with store.read() as tables:
            assert await tables.nodes.all() == []
            assert await tables.ledger.revision() == 1

    async def test_is_published_even_when_its_caller_is_cancelled_at_the_commit(self, store: Store) -> None:
        for after in range(40):  # cancel at each step of the event loop in turn
            heard: list[Change] = []
            store._subscribers[:] = [heard.append]
            task = asyncio.create_task(add_node(store, f"n{after}"))
            for _ in range(after * 3):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            async with store.read() as tables:
                committed = await tables.nodes.get(f"id-n{after}") is not None
            assert bool(heard) == committed

    async def test_revisions_and_chain_have_no_gaps_with_concurrent_writers(self, store: Store) -> None:
        await asyncio.gather(*(add_node(store, f"n{n}") for n in range(25)))
        async with store.read() as tables:
            entries = await tables.ledger.audit_after(0)
            revisions = [change.revision for change in await tables.ledger.changes_after(0)]
        assert revisions == list(range(1, 27))
        assert verify_chain(entries)[0] == 26

    async def test_writers_in_several_processes_keep_the_chain(self, store: Store, database_url: str) -> None:
        writers = [
            subprocess.Popen([sys.executable, "-m", "tests.control.writer", database_url, str(n), "8"])
            for n in range(2)
        ]
        await asyncio.gather(*(add_node(store, f"here{n}") for n in range(8)))
        assert [await asyncio.to_thread(writer.wait, 60) for writer in writers] == [0, 0]
        async with store.read() as tables:
            assert verify_chain(await tables.ledger.audit_after(0))[0] == 1 + 3 * 8
            numbers = [node.number for node in await tables.nodes.all()]
        assert len(set(numbers)) == len(numbers) == 24

    async def test_changes_of_other_processes_can_be_caught_up(self, store: Store, database_url: str) -> None:
        node = await add_node(store, "a")
        async with opened(database_url, MovableClock()) as other:
            await other.load_mesh()
            other_node = await add_node(other, "b")
            async with other.mutation("t", Action.NODE_DELETE, "node:id-a") as tx:
                await tx.nodes.remove(node.id)
        assert await store.news_after(2) == Change(4, {"id-a": None, "id-b": other_node.record})
        assert await store.news_after(4) is None

    async def test_subscribers_hear_of_other_processes_commits_once_and_before_their_own(
        self, store: Store, database_url: str
    ) -> None:
        fleet = await store.begin(MESH)
        heard: list[Change] = []
        store.subscribe(heard.append)
        async with opened(database_url, MovableClock()) as other:
            await other.load_mesh()
            for name in ("b", "c"):
                await add_node(other, name)
            await add_node(store, "own")
            await add_node(other, "d")
        await store.catch_up()
        await store.catch_up()
        await add_node(store, "last")
        assert [(change.revision - fleet.revision, sorted(change.nodes)) for change in heard] == [
            (3, ["id-b", "id-c", "id-own"]),
            (4, ["id-d"]),
            (5, ["id-last"]),
        ]


class TestReading:
    async def test_cannot_write_through_the_tables(self, store: Store) -> None:
        async with store.read() as tables:
            with pytest.raises(ReadOnlyError):
                await tables.nodes.remove("x")

    async def test_cannot_write_through_sql(self, store: Store) -> None:
        with pytest.raises(StoreError):
            async with store.read() as tables:
                await tables.nodes._session.execute(text("DELETE FROM mesh"))
        assert await store.load_mesh() is not None

    async def test_sees_one_moment(self, store: Store) -> None:
        async with store.read() as tables:
            assert await tables.ledger.revision() == 1
            await add_node(store, "a")
            assert await tables.ledger.revision() == 1
            assert await tables.nodes.all() == []

    async def test_an_id_that_no_database_can_hold_finds_nothing(self, store: Store) -> None:
        async def find() -> StoredNode | Kind | None:
            try:
                async with store.read() as tables:
                    return await tables.nodes.get("a\0b")
            except Refused as refused:
                return refused.kind

        assert await find() in {None, Kind.INVALID}  # the one or the other, by database

    async def test_filters_and_pages_nodes_by_name(self, store: Store) -> None:
        for name in ("c", "a", "b", "d"):
            await add_node(store, name, tags=("tag:x",) if name in "ad" else ("tag:y",))
        async with store.read() as tables:
            first = await tables.nodes.page(NodeFilter(), after=None, limit=3)
            rest = await tables.nodes.page(NodeFilter(), after=first[-1].name, limit=3)
            tagged = await tables.nodes.page(NodeFilter(tag="tag:x"), after=None, limit=9)
        assert [node.name for node in first + rest] == ["a", "b", "c", "d"]
        assert [node.name for node in tagged] == ["a", "d"]

    async def test_fleet_is_what_the_changes_add_up_to(self, store: Store) -> None:
        nodes: dict[str, object] = {}
        store.subscribe(lambda change: nodes.update(change.nodes))
        node = await add_node(store, "a", tags=("tag:x",))
        await add_node(store, "b")
        async with store.mutation("t", Action.NODE_RENAME, "node:id-a") as tx:
            await tx.nodes.save(replace(node, name="z", tags=frozenset({"tag:y"})))
        await remove_node(store, await add_node(store, "c"))
        fleet = await store.fleet(MESH)
        assert fleet.revision == 6
        assert dict(fleet.nodes) == {key: value for key, value in nodes.items() if value is not None}
        assert fleet.nodes["id-a"].tags == {"tag:y"}


class TestAudit:
    async def test_an_altered_entry_breaks_the_chain(self, store: Store, database_url: str) -> None:
        for n in range(3):
            await add_node(store, f"n{n}")
        engines = Engines(database_url)
        async with AsyncSession(engines.write) as session:
            row = (await session.scalars(select(AuditRow).where(AuditRow.seq == 3))).one()
            row.actor = "somebody-else"
            await session.commit()
        await engines.dispose()
        async with store.read() as tables:
            entries = await tables.ledger.audit_after(0)
        with pytest.raises(BrokenChain) as caught:
            verify_chain(entries)
        assert caught.value.seq == 3

    async def test_a_removed_entry_breaks_the_chain(self, store: Store) -> None:
        for n in range(3):
            await add_node(store, f"n{n}")
        async with store.read() as tables:
            entries = await tables.ledger.audit_after(0)
        with pytest.raises(BrokenChain):
            verify_chain([entry for entry in entries if entry.seq != 2])

    async def test_is_read_newest_first_by_its_filters(self, store: Store) -> None:
        a = await add_node(store, "a")
        await add_node(store, "b")
        await remove_node(store, a)
        async with store.read() as tables:
            everything = await tables.ledger.audit_page(before=None, limit=10)
            about_a = await tables.ledger.audit_page(before=None, limit=10, subject="node:id-a")
            enrolments = await tables.ledger.audit_page(before=4, limit=10, action=Action.NODE_ENROL)
        assert [entry.seq for entry in everything] == [4, 3, 2, 1]
        assert [entry.action for entry in about_a] == ["admin:node:delete"]
        assert [entry.seq for entry in enrolments] == [3, 2]


class TestOnce:
    def once(self, *, actor: str = "token:t", key: str = "k", body: bytes = b"{}") -> Once:
        return Once.of(actor=actor, credential="wma_secret", idempotency_key=key, method="POST", path="/p", body=body)

    async def run(self, store: Store, once: Once, detail: str = "first") -> None:
        async with store.mutation("t", Action.KEY_CREATE, "key:k", once) as tx:
            tx.answer(Health(status="ok", version="1", detail=detail))

    async def test_a_repeated_request_gets_the_first_answer(self, store: Store) -> None:
        await self.run(store, self.once())
        with pytest.raises(Replay) as caught:
            await self.run(store, self.once(), "second")
        assert b'"first"' in caught.value.body
        async with store.read() as tables:
            assert await tables.ledger.revision() == 2

    async def test_concurrent_repetitions_happen_once(self, store: Store) -> None:
        outcomes = await asyncio.gather(*(self.run(store, self.once()) for _ in range(10)), return_exceptions=True)
        assert sum(isinstance(outcome, Replay) for outcome in outcomes) == 9
        assert outcomes.count(None) == 1

    async def test_another_request_with_the_same_key_is_refused(self, store: Store) -> None:
        await self.run(store, self.once())
        with pytest.raises(Refused) as caught:
            await self.run(store, self.once(body=b"{1}"))
        assert caught.value.kind is Kind.IDEMPOTENCY_KEY_REUSED

    async def test_another_actor_may_use_the_same_key(self, store: Store) -> None:
        await self.run(store, self.once())
        await self.run(store, self.once(actor="token:u"))

    async def test_the_stored_answer_is_sealed(self, store: Store, database_url: str) -> None:
        await self.run(store, self.once(), "wmk_very_secret")
        engines = Engines(database_url)
        async with AsyncSession(engines.read) as session:
            row = (await session.scalars(select(ResponseRow))).one()
        await engines.dispose()
        assert "very_secret" not in f"{row.key} {row.request} {row.sealed}"

    async def test_is_forgotten_after_a_day(self, store: Store, clock: MovableClock) -> None:
        await self.run(store, self.once())
        clock.advance(hours=25)
        await self.run(store, self.once(key="other"))
        await self.run(store, self.once())


class TestPresence:
    async def test_is_replaced_and_forgotten_with_its_node(self, store: Store, clock: MovableClock) -> None:
        nodes = [await add_node(store, name) for name in "ab"]
        before = clock()
        await store.note_presence([(nodes[0].id, before, "1", "kernel"), ("gone", before, "1", "kernel")])
        clock.advance(minutes=5)
        await store.note_presence([(node.id, clock(), "2", None) for node in nodes])
        async with store.read() as tables:
            a, b = [await tables.nodes.get(node.id) for node in nodes]
            assert await tables.ledger.revision() == 3
        assert a is not None
        assert b is not None
        assert (a.agent_version, a.backend, b.agent_version) == ("2", None, "2")
        assert a.last_seen is not None
        assert before < a.last_seen <= clock()
        await remove_node(store, nodes[0])
        again = await add_node(store, "a")
        async with store.read() as tables:
            found = await tables.nodes.get(again.id)
        assert found is not None
        assert found.last_seen is None


class TestKeys:
    async def test_redeeming_is_atomic_across_processes(self, store: Store, database_url: str) -> None:
        created = await Keys(store, FirstContact("https://h", "system")).create("t", EnrolmentKeyCreate(uses=5))
        secret = JoinString.decode(created.join).key

        async def redeem(by: Store) -> bool:
            async with by.mutation("t", Action.NODE_ENROL, "node:x") as tx:
                redeemed = await tx.keys.redeem(digest(secret), tx.now)
                if redeemed is None:
                    tx.discard()
                return redeemed is not None

        async with opened(database_url, MovableClock()) as other:
            outcomes = await asyncio.gather(*(redeem(by) for by in [store, other] * 10))
        assert sum(outcomes) == 5


class TestGrants:
    async def test_a_change_states_the_grants_that_it_is_about(self, store: Store, clock: MovableClock) -> None:
        heard: list[Change] = []
        store.subscribe(heard.append)
        grant = await save_grant(store, "t1", clock() + timedelta(hours=1))
        await save_grant(store, "t1", grant.expires, revoked=clock())
        assert grant.record is not None
        assert heard == [Change(2, grants={"t1": grant.record}), Change(3, grants={"t1": None})]
        assert await store.news_after(1) == Change(3, grants={"t1": None})

    async def test_the_fleet_has_those_that_have_not_ended(self, store: Store, clock: MovableClock) -> None:
        end = (clock() + timedelta(hours=1)).replace(microsecond=0)
        lasting = await save_grant(store, "t1", end)
        await save_grant(store, "t2", end, revoked=clock())
        await save_grant(store, "t3", end - timedelta(minutes=30))
        clock.advance(minutes=45)
        assert lasting.mcp == {"tools": ["get_*"]}
        assert (await store.fleet(MESH)).grants == {"t1": lasting.record}
        async with store.read() as tables:
            assert await tables.grants.get("t1") == lasting


async def save_grant(store: Store, grant_id: str, expires: datetime, revoked: datetime | None = None) -> StoredGrant:
    async with store.mutation("t", Action.GRANT_CREATE, f"grant:{grant_id}") as tx:
        return await tx.grants.save(
            StoredGrant(
                id=grant_id,
                from_=("tag:a", "node:b"),
                to=("*",),
                ip=("icmp",),
                mcp={"tools": ["get_*"]},
                reason="for a test",
                actor="t",
                created=tx.now,
                expires=expires.replace(microsecond=0),
                revoked=revoked,
            )
        )


async def test_changes_hold_no_rows_of_discarded_work(store: Store) -> None:
    async with store.read() as tables:
        rows = await tables.ledger.changes_after(0)
    assert [type(row) for row in rows] == [ChangeRow]
