"""The allocator of addresses in the store, for nodes and for services, on SQLite and on PostgreSQL."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from sqlalchemy import event

from controller.admission import Admission
from controller.audit import Action
from controller.problems import Kind, Refused
from controller.records import Change, ServiceRecord
from controller.store.store import Store
from controller.store.values import StoredService

from .stores import MESH, QUARANTINE, add_node, remove_node
from .support import MovableClock, opened


class TestAddresses:
    async def test_are_given_in_order_and_stay(self, store: Store) -> None:
        nodes = [await add_node(store, f"n{n}") for n in range(3)]
        assert [node.addresses for node in nodes] == [
            ("100.88.0.2", "fd12:3456:789a::2"),
            ("100.88.0.3", "fd12:3456:789a::3"),
            ("100.88.0.4", "fd12:3456:789a::4"),
        ]

    async def test_a_requested_one_is_given_and_skipped_by_others(self, store: Store) -> None:
        assert (await add_node(store, "a", addresses=("100.88.0.3",))).addresses[0] == "100.88.0.3"
        assert (await add_node(store, "b", addresses=("fd12:3456:789a::4",))).addresses[0] == "100.88.0.4"
        assert [(await add_node(store, f"n{n}")).number for n in range(2)] == [2, 5]

    async def test_a_taken_one_is_refused_naming_its_node(self, store: Store) -> None:
        await add_node(store, "a", addresses=("100.88.0.9",))
        with pytest.raises(Refused, match="belongs to the node 'a'") as caught:
            await add_node(store, "b", addresses=("100.88.0.9",))
        assert caught.value.kind is Kind.ADDRESS_TAKEN

    async def test_a_released_one_rests(self, store: Store, clock: MovableClock) -> None:
        await remove_node(store, await add_node(store, "a"))
        with pytest.raises(Refused, match="rests until") as caught:
            await add_node(store, "b", addresses=("100.88.0.2",))
        assert caught.value.kind is Kind.ADDRESS_QUARANTINED
        assert (await add_node(store, "c")).number == 3
        clock.advance(hours=1, seconds=1)
        assert (await add_node(store, "d", addresses=("100.88.0.2",))).number == 2

    async def test_an_empty_pool_says_when_there_is_one_again(self, database_url: str, clock: MovableClock) -> None:
        async with opened(database_url, clock) as store:
            async with store.mutation("system", Action.MESH_CREATE, "mesh:m") as tx:
                await tx.create_mesh(MESH.model_copy(update={"prefix4": "100.88.0.0/29"}), "00" * 32)
            await store.load_mesh()
            nodes = [await add_node(store, f"n{n}") for n in range(store.plan.total)]
            assert [node.number for node in nodes] == [2, 3, 4, 5, 6]
            with pytest.raises(Refused, match="delete nodes that are gone") as caught:
                await add_node(store, "x")
            assert caught.value.kind is Kind.POOL_EMPTY
            await remove_node(store, nodes[1])
            clock.advance(minutes=1)
            await remove_node(store, nodes[0])
            with pytest.raises(Refused, match="the next is free at"):
                await add_node(store, "x")
            clock.advance(hours=2)
            assert [(await add_node(store, name)).number for name in ("x", "y")] == [3, 2]

    async def test_the_count_follows(self, store: Store) -> None:
        node = await add_node(store, "a")
        await add_node(store, "b")
        await remove_node(store, node)
        async with store.read() as tables:
            assert await tables.addresses.used() == 1

    async def test_thousands_cost_the_same_each(self, store: Store) -> None:
        """Statements are counted, not seconds: the cost of the last allocation is that of the first."""
        async with store.mutation("t", Action.NODE_ENROL, "nodes") as tx:
            for number in range(1000):
                await tx.addresses.take(await tx.addresses.next_new(tx.plan.last_number) or 0, f"n{number}")
        statements: list[str] = []
        async with store.mutation("t", Action.NODE_ENROL, "nodes") as tx:
            connection = (await tx.nodes._session.connection()).sync_connection
            event.listen(connection, "before_cursor_execute", lambda *call: statements.append(call[2]))
            last = await tx.addresses.next_new(tx.plan.last_number)
            tx.discard()
        assert last == 1002
        assert len(statements) == 3

    async def test_are_found_by_index(self, tmp_path: Path, clock: MovableClock) -> None:
        statements: list[tuple[str, Any]] = []
        async with (
            opened(f"sqlite:///{tmp_path / 'plans.db'}", clock) as store,
            store.mutation("system", Action.MESH_CREATE, "mesh:m") as tx,
        ):
            await tx.create_mesh(MESH, "00" * 32)
            connection = await tx.nodes._session.connection()
            event.listen(
                connection.sync_connection,
                "before_cursor_execute",
                lambda *call: statements.append((call[2], call[3])),
            )
            await tx.addresses.next_new(65534)
            await tx.addresses.next_rested(tx.now)
            await tx.addresses.oldest_release()
            await tx.addresses.held(5)
            plans = [
                str(row)
                for statement, parameters in list(statements)
                for row in await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
                if "addresses" in str(row)
            ]
        assert len(plans) == 4
        assert all("SEARCH addresses" in plan for plan in plans), plans


class TestServices:
    async def save(self, store: Store, name: str, holder: str | None = None) -> StoredService:
        async with store.mutation("test", Action.POLICY_APPLY, "policy") as tx:
            number = await Admission(QUARANTINE).allocate_for_service(tx, name)
            return await tx.services.save(name, number, holder, tx.now)

    async def remove(self, store: Store, service: StoredService) -> None:
        async with store.mutation("test", Action.POLICY_APPLY, "policy") as tx:
            await tx.services.remove(service.name)
            await tx.addresses.release(service.number, tx.now)

    async def test_are_part_of_the_fleet_and_of_the_change_that_made_them(self, store: Store) -> None:
        heard: list[Change] = []
        store.subscribe(heard.append)
        saved = await self.save(store, "github", holder="n1")
        record = ServiceRecord("github", ("100.88.0.2", "fd12:3456:789a::2"), "n1")
        assert heard == [Change(revision=2, services={"github": record})]
        assert [await store.news_after(1)] == heard
        assert (await store.fleet(MESH)).services == {"github": record}
        await self.remove(store, saved)
        assert heard[1:] == [await store.news_after(2)] == [Change(revision=3, services={"github": None})]
        assert (await store.fleet(MESH)).services == {}

    async def test_never_share_an_address_with_a_node(self, store: Store) -> None:
        one, service, other = await add_node(store, "a"), await self.save(store, "github"), await add_node(store, "b")
        assert [one.number, service.number, other.number] == [2, 3, 4]
        with pytest.raises(Refused, match=r"100\.88\.0\.3 belongs to the service 'github'"):
            await add_node(store, "c", addresses=service.addresses[:1])
        async with store.read() as tables:
            assert await tables.addresses.used() == 3

    async def test_get_the_address_back_that_they_had(self, store: Store) -> None:
        service = await self.save(store, "github")
        await self.remove(store, service)
        with pytest.raises(Refused, match="rests until"):
            await add_node(store, "a", addresses=service.addresses[:1])
        await self.save(store, "other")
        assert await self.save(store, "github") == replace(service, revision=5, since=ANY)
        async with store.read() as tables:
            assert await tables.addresses.used() == 2

    async def test_lose_the_address_that_a_node_asked_for_after_its_rest(
        self, store: Store, clock: MovableClock
    ) -> None:
        service = await self.save(store, "github")
        await self.remove(store, service)
        clock.advance(hours=2)
        node = await add_node(store, "a", addresses=service.addresses[:1])
        assert node.number == service.number
        assert (await self.save(store, "github")).number != service.number
