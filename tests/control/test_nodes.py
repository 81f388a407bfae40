"""What may happen to a node after it has joined, over REST, and what hosts report of themselves."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.problems import Kind, Refused
from controller.server import Running, running
from controller.settings import Settings
from controller.wire.stream import HostReport

from .hosts import Host, map_of, new_key, new_node, wireguard_key
from .streams import agent
from .support import Client, MovableClock

ALLOW_ALL = 'grants:\n  - {from: "*", to: "*", ip: "*"}\n'


async def patch(admin: Client, node_id: str, body: dict[str, Any], etag: str | None = "*") -> httpx.Response:
    return await admin.patch(f"/nodes/{node_id}", json=body, headers={"if-match": etag} if etag else {})


def report(host: Host, *endpoints: str, **changes: Any) -> HostReport:
    return HostReport(**{"agent_version": "1", "public_key": host.public_key, "endpoints": endpoints, **changes})


class TestEditing:
    @pytest.fixture
    async def node_id(self, admin: Client, anyone: Client) -> str:
        return (await new_node(admin, anyone, "web")).enrolled.node_id

    async def test_renames(self, admin: Client, node_id: str, controller: Running) -> None:
        response = await patch(admin, node_id, {"name": "www"})
        assert (response.status_code, response.json()["name"]) == (200, "www")
        assert map_of(controller, node_id).node.name == "www"
        [entry] = (await admin.get("/audit", params={"limit": 1})).json()["items"]
        assert (entry["action"], entry["old"], entry["new"]) == (
            "admin:node:rename",
            {"name": "web"},
            {"name": "www"},
        )

    @pytest.mark.parametrize(
        ("before", "body", "action"),
        [
            ({}, {"tags": ["tag:a", "tag:b"]}, "admin:node:tag"),
            ({}, {"state": "disabled"}, "admin:node:disable"),
            ({"state": "disabled"}, {"state": "active"}, "admin:node:enable"),
            ({}, {"state": "disabled", "name": "x"}, "admin:node:update"),
        ],
    )
    async def test_the_audit_names_what_was_done(
        self, admin: Client, node_id: str, before: dict[str, Any], body: dict[str, Any], action: str
    ) -> None:
        if before:
            await patch(admin, node_id, before)
        response = await patch(admin, node_id, body)
        assert {key: response.json()[key] for key in body} == body
        [entry] = (await admin.get("/audit", params={"limit": 1})).json()["items"]
        assert (entry["action"], entry["subject"]) == (action, f"node:{node_id}")
        assert entry["actor"].startswith("token:wma_")

    async def test_approves(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "late", approved=False)
        assert (await patch(admin, host.enrolled.node_id, {"state": "active"})).json()["state"] == "active"
        [entry] = (await admin.get("/audit", params={"limit": 1})).json()["items"]
        assert entry["action"] == "admin:node:approve"

    async def test_what_changes_nothing_leaves_no_trace(self, admin: Client, node_id: str) -> None:
        before = (await admin.get("/status")).json()["revision"]
        assert (await patch(admin, node_id, {"name": "web", "tags": [], "state": "active"})).status_code == 200
        assert (await admin.get("/status")).json()["revision"] == before

    async def test_needs_if_match(self, admin: Client, node_id: str) -> None:
        response = await patch(admin, node_id, {"name": "x"}, etag=None)
        assert (response.status_code, response.json()["type"]) == (428, "urn:wardmesh:problem:precondition-required")

    async def test_of_two_editors_the_second_is_told(self, admin: Client, node_id: str) -> None:
        seen = (await admin.get(f"/nodes/{node_id}")).headers["etag"]
        responses = await asyncio.gather(*(patch(admin, node_id, {"name": name}, seen) for name in ("x", "y", "z")))
        assert sorted(response.status_code for response in responses) == [200, 412, 412]
        [won] = [response for response in responses if response.status_code == 200]
        assert (await admin.get(f"/nodes/{node_id}")).json()["name"] == won.json()["name"]
        assert won.headers["etag"] != seen

    @pytest.mark.parametrize("etag", ['W/"3"', '"other"', "nonsense", '"1"', '""', '"99999999999999999999999"'])
    async def test_a_tag_that_is_not_the_nodes_does_not_match(self, admin: Client, node_id: str, etag: str) -> None:
        assert (await patch(admin, node_id, {"name": "x"}, etag)).status_code == 412

    async def test_one_of_several_tags_may_match(self, admin: Client, node_id: str) -> None:
        seen = (await admin.get(f"/nodes/{node_id}")).headers["etag"]
        assert (await patch(admin, node_id, {"name": "x"}, f'"1", {seen}')).status_code == 200

    async def test_a_name_in_use_is_refused(self, admin: Client, anyone: Client, node_id: str) -> None:
        await new_node(admin, anyone, "db")
        response = await patch(admin, node_id, {"name": "db"})
        assert (response.status_code, response.json()["errors"]) == (409, [{"free": "db-2"}])

    async def test_nothing_returns_to_pending(self, admin: Client, node_id: str) -> None:
        assert (await patch(admin, node_id, {"state": "pending"})).status_code == 422

    async def test_an_agents_endpoints_are_its_own(self, admin: Client, node_id: str) -> None:
        response = await patch(admin, node_id, {"endpoints": ["192.0.2.1:51820"]})
        assert (response.status_code, response.json()["type"]) == (409, "urn:wardmesh:problem:not-editable")

    async def test_a_node_that_does_not_exist_is_not_found(self, admin: Client) -> None:
        for response in (
            await admin.get("/nodes/none"),
            await patch(admin, "none", {"name": "x"}),
            await admin.delete("/nodes/none"),
            await admin.get("/static-peers/none/config"),
        ):
            assert (response.status_code, response.json()["type"]) == (404, "urn:wardmesh:problem:not-found")


class TestLeaving:
    async def test_an_admin_deletes(self, admin: Client, anyone: Client, controller: Running) -> None:
        node_id = (await new_node(admin, anyone, "web")).enrolled.node_id
        assert (await admin.delete(f"/nodes/{node_id}")).status_code == 204
        assert (await admin.get(f"/nodes/{node_id}")).status_code == 404
        assert controller.context.hub.netmap(node_id) is None
        assert (await admin.get("/status")).json()["addresses_used"] == 0

    async def test_deletion_may_be_conditional(self, admin: Client, anyone: Client) -> None:
        node_id = (await new_node(admin, anyone, "web")).enrolled.node_id
        assert (await admin.delete(f"/nodes/{node_id}", headers={"if-match": '"1"'})).status_code == 412
        etag = (await admin.get(f"/nodes/{node_id}")).headers["etag"]
        assert (await admin.delete(f"/nodes/{node_id}", headers={"if-match": etag})).status_code == 204

    async def test_a_host_leaves_with_its_certificate(
        self, admin: Client, anyone: Client, controller: Running, tmp_path: Path
    ) -> None:
        host = await new_node(admin, anyone, "web")
        tls = host.tls(controller, tmp_path)
        async with httpx.AsyncClient(base_url=str(anyone.base_url), verify=tls) as itself:
            assert (await itself.delete("/nodes/self")).status_code == 204
            assert (await itself.delete("/nodes/self")).status_code == 404
        [entry] = (await admin.get("/audit", params={"limit": 1})).json()["items"]
        assert (entry["action"], entry["actor"]) == ("host:node:leave", f"node:{host.enrolled.node_id}")

    async def test_nobody_leaves_for_another(self, admin: Client, anyone: Client) -> None:
        for client in (admin, anyone):
            response = await client.delete("/nodes/self")
            assert (response.status_code, response.json()["type"]) == (401, "urn:wardmesh:problem:certificate-required")

    async def test_a_released_address_rests_and_a_name_does_not(self, admin: Client, anyone: Client) -> None:
        first = await new_node(admin, anyone, "web")
        await admin.delete(f"/nodes/{first.enrolled.node_id}")
        second = await new_node(admin, anyone, "web")
        assert second.enrolled.addresses != first.enrolled.addresses

    async def test_ephemeral_nodes_go_when_they_stay_away(
        self, admin: Client, anyone: Client, controller: Running, clock: MovableClock
    ) -> None:
        started = clock()
        gone = await new_node(admin, anyone, "gone", ephemeral=True)
        kept = await new_node(admin, anyone, "kept")
        nodes = controller.context.nodes
        clock.advance(minutes=29)
        assert await nodes.expire(now=clock(), since=started, after=timedelta(minutes=30)) == []
        clock.advance(minutes=2)
        # A controller that has just come back gives them time to come back too.
        assert await nodes.expire(now=clock(), since=clock(), after=timedelta(minutes=30)) == []
        expired = await nodes.expire(now=clock(), since=started, after=timedelta(minutes=30))
        assert expired == [gone.enrolled.node_id]
        assert [node["id"] for node in (await admin.get("/nodes")).json()["items"]] == [kept.enrolled.node_id]


class TestReports:
    @pytest.fixture
    async def host(self, admin: Client, anyone: Client) -> Host:
        return await new_node(admin, anyone, "web")

    async def test_the_observed_address_is_the_best_candidate(
        self, admin: Client, controller: Running, host: Host
    ) -> None:
        nodes, node_id = controller.context.nodes, host.enrolled.node_id
        await nodes.report(node_id, report(host, "10.0.0.5:51820", listen_port=51821), "192.0.2.7")
        stored = await nodes.stored(node_id)
        assert stored.endpoints == ("192.0.2.7:51821", "10.0.0.5:51820")
        assert stored.behind_nat is True

    async def test_what_stun_says_of_an_address_takes_the_place_of_a_guess(
        self, controller: Running, host: Host
    ) -> None:
        nodes, node_id = controller.context.nodes, host.enrolled.node_id
        await nodes.report(node_id, report(host, "10.0.0.5:51820", reflexive=("192.0.2.7:40123",)), "192.0.2.7")
        stored = await nodes.stored(node_id)
        assert stored.endpoints == ("192.0.2.7:40123", "10.0.0.5:51820")
        assert stored.behind_nat is True

    async def test_a_host_seen_at_an_address_of_its_own_is_not_behind_nat(
        self, controller: Running, host: Host
    ) -> None:
        nodes, node_id = controller.context.nodes, host.enrolled.node_id
        await nodes.report(node_id, report(host, "10.0.0.5:51820", "192.0.2.7:51820"), "192.0.2.7")
        stored = await nodes.stored(node_id)
        assert stored.endpoints == ("192.0.2.7:51820", "10.0.0.5:51820")
        assert stored.behind_nat is False

    @pytest.mark.parametrize("observed", ["127.0.0.1", "::1", "fe80::1%eth0", "100.88.0.9", "::ffff:127.0.0.1"])
    async def test_an_address_that_says_nothing_to_peers_is_no_candidate(
        self, controller: Running, host: Host, observed: str
    ) -> None:
        nodes, node_id = controller.context.nodes, host.enrolled.node_id
        await nodes.report(node_id, report(host, "10.0.0.5:51820"), observed)
        stored = await nodes.stored(node_id)
        assert (stored.endpoints, stored.behind_nat) == (("10.0.0.5:51820",), False)

    async def test_a_mapped_ipv4_address_is_ipv4(self, controller: Running, host: Host) -> None:
        nodes, node_id = controller.context.nodes, host.enrolled.node_id
        await nodes.report(node_id, report(host), "::ffff:192.0.2.7")
        assert (await nodes.stored(node_id)).endpoints == ("192.0.2.7:51820",)

    async def test_the_same_report_again_changes_nothing(self, admin: Client, controller: Running, host: Host) -> None:
        nodes, node_id = controller.context.nodes, host.enrolled.node_id
        for _ in range(3):
            await nodes.report(node_id, report(host, "10.0.0.5:51820"), "192.0.2.7")
        entries = (await admin.get("/audit", params={"action": "host:node:report"})).json()["items"]
        assert len(entries) == 1

    async def test_a_new_key_reaches_the_peers(
        self, admin: Client, anyone: Client, controller: Running, host: Host
    ) -> None:
        peer = await new_node(admin, anyone, "peer")
        await admin.put("/policy", json={"text": ALLOW_ALL}, headers={"if-match": "*"})
        rotated = wireguard_key()
        await controller.context.nodes.report(host.enrolled.node_id, report(host, public_key=rotated), "192.0.2.7")
        netmap = map_of(controller, peer.enrolled.node_id)
        assert netmap.peers[host.enrolled.node_id].public_key == rotated
        assert (await admin.get("/audit", params={"limit": 1})).json()["items"][0]["action"] == "host:node:rotate"

    async def test_another_nodes_key_is_refused(
        self, admin: Client, anyone: Client, controller: Running, host: Host
    ) -> None:
        other = await new_node(admin, anyone, "other")
        with pytest.raises(Refused) as caught:
            await controller.context.nodes.report(
                host.enrolled.node_id, report(host, public_key=other.public_key), "192.0.2.7"
            )
        assert caught.value.kind is Kind.PUBLIC_KEY_IN_USE

    async def test_a_removed_node_is_refused(self, admin: Client, controller: Running, host: Host) -> None:
        await admin.delete(f"/nodes/{host.enrolled.node_id}")
        with pytest.raises(Refused) as caught:
            await controller.context.nodes.report(host.enrolled.node_id, report(host), "192.0.2.7")
        assert caught.value.kind is Kind.NODE_REMOVED


class TestListing:
    async def test_pages_cover_everything_once(self, admin: Client) -> None:
        names = [f"n{number:02}" for number in range(23)]
        for name in names:
            await admin.post("/static-peers", json={"name": name, "public_key": wireguard_key()})
        seen: list[str] = []
        cursor = None
        while True:
            page = (await admin.get("/nodes", params={"limit": 5, **({"cursor": cursor} if cursor else {})})).json()
            seen += [node["name"] for node in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
            await admin.post("/static-peers", json={"name": f"a{len(seen)}", "public_key": wireguard_key()})
        assert seen == names

    async def test_filters_combine(self, admin: Client, anyone: Client) -> None:
        await new_node(admin, anyone, "a", tags=["tag:x"])
        await new_node(admin, anyone, "b", tags=["tag:x"], approved=False)
        await admin.post("/static-peers", json={"name": "c", "public_key": wireguard_key(), "tags": ["tag:x"]})
        for params, names in (
            ({"tag": "tag:x"}, ["a", "b", "c"]),
            ({"tag": "tag:x", "state": "pending"}, ["b"]),
            ({"kind": "static"}, ["c"]),
            ({"name": "a"}, ["a"]),
            ({"name": "zzz"}, []),
        ):
            items = (await admin.get("/nodes", params=params)).json()["items"]
            assert [node["name"] for node in items] == names


class TestPresence:
    async def test_what_was_known_of_a_host_survives_a_restart(
        self, settings: Settings, clock: MovableClock, tmp_path: Path
    ) -> None:
        async with running(settings, clock) as first:
            token = first.first_token
            async with Client(first, token=token) as admin, Client(first) as anyone:
                host = await new_node(admin, anyone, "web")
                async with agent(first, host, tmp_path) as stream:
                    await stream.hello(agent_version="1.2.3", backend="userspace")
        stopped = clock()
        async with running(settings, clock) as second, Client(second, token=token) as admin:
            node = (await admin.get(f"/nodes/{host.enrolled.node_id}")).json()
        assert (node["online"], node["agent_version"], node["backend"]) == (False, "1.2.3", "userspace")
        assert abs(datetime.fromisoformat(node["last_seen"]) - stopped) < timedelta(minutes=1)

    async def test_is_written_down_coarsely(
        self, admin: Client, anyone: Client, controller: Running, clock: MovableClock, tmp_path: Path
    ) -> None:
        host = await new_node(admin, anyone, "web")
        nodes = controller.context.nodes

        async def noted() -> datetime | None:
            await nodes.note_presence(clock())
            return (await nodes.stored(host.enrolled.node_id)).last_seen

        assert await noted() is None
        async with agent(controller, host, tmp_path) as stream:
            await stream.hello()
            first = await noted()
            clock.advance(minutes=14)
            assert await noted() == first
            clock.advance(minutes=2)
            second = await noted()
            assert first is not None
            assert second is not None
            assert second > first
        revision = (await admin.get("/status")).json()["revision"]
        assert revision == (await nodes.stored(host.enrolled.node_id)).revision  # seeing a host changes nothing

    async def test_a_connected_ephemeral_node_stays(
        self, admin: Client, anyone: Client, controller: Running, clock: MovableClock, tmp_path: Path
    ) -> None:
        started = clock()
        host = await new_node(admin, anyone, "web", ephemeral=True)
        async with agent(controller, host, tmp_path) as stream:
            await stream.hello()
            clock.advance(days=2)
            nodes = controller.context.nodes
            assert await nodes.expire(now=clock(), since=started, after=timedelta(minutes=30)) == []


async def test_a_disabled_nodes_peers_lose_it(admin: Client, anyone: Client, controller: Running) -> None:
    a, b = [await new_node(admin, anyone, name) for name in "ab"]
    await admin.put("/policy", json={"text": ALLOW_ALL}, headers={"if-match": "*"})
    assert list(map_of(controller, a.enrolled.node_id).peers) == [b.enrolled.node_id]
    await patch(admin, b.enrolled.node_id, {"state": "disabled"})
    assert map_of(controller, a.enrolled.node_id).peers == {}


async def test_key_creation_reaches_no_host(admin: Client, anyone: Client, controller: Running) -> None:
    changes: list[Any] = []
    controller.context.store.subscribe(changes.append)
    await new_key(admin)
    assert [(change.nodes, change.policy) for change in changes] == [({}, None)]
