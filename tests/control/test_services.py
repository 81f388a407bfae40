"""Services in a running controller: their addresses, who holds them, and how they move; over REST, streams and command.

The hosts are real streams that send heartbeats, as agentd does. Times of several seconds are the service's own: three
heartbeats are six seconds.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.server import Running, running
from controller.settings import Settings

from .hosts import Host, new_node, wireguard_key
from .serving import GITHUB, POLICY, Server, all_healthy, held_by, is_healthy, move, server, until
from .streams import agent, patch
from .support import Client, MovableClock
from .test_cli.bench import Cli
from .test_policy_use import put


@pytest.fixture
async def hosts(admin: Client, anyone: Client) -> dict[str, Host]:
    """Two that may serve, and the policy that says so."""
    made = {name: await new_node(admin, anyone, name, tags=["tag:tools"]) for name in ("one", "two")}
    await put(admin, POLICY)
    return made


@pytest.fixture
async def servers(
    controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
) -> AsyncIterator[dict[str, Server]]:
    """Both connected and healthy, and one of them holds the service."""
    async with AsyncExitStack() as stack:
        made = {
            name: await stack.enter_async_context(server(controller, host, tmp_path)) for name, host in hosts.items()
        }
        await until(admin, lambda service: is_healthy(service) and all_healthy(service))
        yield made


async def holder_and_other(admin: Client, servers: dict[str, Server]) -> tuple[str, str]:
    holder = (await admin.get("/services/github")).json()["holder"]
    (other,) = servers.keys() - {holder}
    return holder, other


class TestAddresses:
    async def test_come_with_the_policy_and_are_nobody_elses(
        self, admin: Client, anyone: Client, hosts: dict[str, Host]
    ) -> None:
        (service,) = (await admin.get("/services")).json()["items"]
        nodes = (await admin.get("/nodes")).json()["items"]
        assert len(service["addresses"]) == 2
        assert not set(service["addresses"]) & {address for node in nodes for address in node["addresses"]}
        assert (service["name"], service["kind"], service["fqdn"]) == ("github", "mcp", "github.mesh.internal")
        assert (service["port"], service["path"], service["holder"]) == (80, "/mcp", None)
        assert [(host["name"], host["online"]) for host in service["hosts"]] == [("one", False), ("two", False)]
        entry = (await admin.get("/audit", params={"action": "admin:policy:apply"})).json()["items"][0]
        assert entry["new"]["services"] == {"github": service["addresses"]}

    async def test_stay_while_the_service_does_and_come_back_with_a_rollback(
        self, admin: Client, hosts: dict[str, Host]
    ) -> None:
        before = (await admin.get("/services/github")).json()["addresses"]
        await put(admin, POLICY.replace("search_", "list_"))
        assert (await admin.get("/services/github")).json()["addresses"] == before
        other = POLICY.replace("github", "gitlab")
        await put(admin, other)
        gone = await admin.get("/services/github")
        assert (gone.status_code, gone.json()["type"]) == (404, "urn:wardmesh:problem:not-found")
        assert (await admin.get("/services/gitlab")).json()["addresses"] != before
        await put(admin, POLICY)
        assert (await admin.get("/services/github")).json()["addresses"] == before

    async def test_services_on_their_hosts_own_addresses_have_none(self, admin: Client, hosts: dict[str, Host]) -> None:
        await put(admin, "services: {db: {on: tag:tools, port: 5432}}")
        assert (await admin.get("/services")).json() == {"items": [], "next": None}

    async def test_lists_have_pages(self, admin: Client, hosts: dict[str, Host]) -> None:
        names = ("a", "b", "c")
        await put(admin, "services:\n" + "".join(f"  {name}: {GITHUB}\n" for name in names))
        first = (await admin.get("/services?limit=2")).json()
        rest = (await admin.get("/services", params={"limit": 2, "cursor": first["next"]})).json()
        assert [one["name"] for one in first["items"] + rest["items"]] == list(names)
        assert rest["next"] is None


async def test_a_policy_with_more_services_than_there_are_addresses_is_refused_and_changes_nothing(
    settings: Settings, clock: MovableClock
) -> None:
    small = replace(settings, prefix4="100.88.0.0/29")  # five numbers
    async with running(small, clock) as controller, Client(controller, token=controller.first_token) as admin:
        await put(admin, POLICY)
        many = "services:\n" + "".join(f"  s{number}: {GITHUB}\n" for number in range(6))
        refused = await admin.put("/policy", json={"text": many}, headers={"if-match": "*"})
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:wardmesh:problem:address-pool-empty")
        assert (await admin.get("/policy")).json()["text"] == POLICY
        assert [one["name"] for one in (await admin.get("/services")).json()["items"]] == ["github"]


class TestMaps:
    async def test_say_who_holds_what_to_those_whom_it_concerns(
        self, controller: Running, admin: Client, anyone: Client, servers: dict[str, Server], tmp_path: Path
    ) -> None:
        holder, other = await holder_and_other(admin, servers)
        addresses = tuple((await admin.get("/services/github")).json()["addresses"])
        caller = await new_node(admin, anyone, "caller", tags=["tag:agents"])
        async with agent(controller, caller, tmp_path) as stream:
            await stream.hello()
            netmap = await stream.take_until(lambda m: len(m.peers) == 2)
            assert netmap.names == {"github": addresses}
            assert netmap.sets["svc:github"].addresses == frozenset(addresses)
            assert {peer.name: peer.held for peer in netmap.peers.values()} == {holder: addresses, other: ()}
            assert (netmap.services, netmap.calls, netmap.node.held) == ({}, {}, ())
            for name, one in servers.items():
                assert one.netmap.services["github"].addresses == addresses
                assert one.netmap.services["github"].names == ("github.mesh.internal", "github")
                assert one.netmap.node.held == (addresses if name == holder else ())
            (grant,) = servers[other].netmap.calls.values()
            assert (grant.tools, grant.peers) == (("search_*",), ("tag:agents",))
            assert (await move(admin, other)).status_code == 200
            moved = await stream.take_until(lambda m: any(p.name == other and p.held for p in m.peers.values()))
            assert {peer.name: peer.held for peer in moved.peers.values()} == {holder: (), other: addresses}
            assert moved.sets == netmap.sets

    async def test_files_of_static_peers_route_the_service_to_its_holder(
        self, admin: Client, servers: dict[str, Server]
    ) -> None:
        holder, _ = await holder_and_other(admin, servers)
        peer = {"name": "phone", "public_key": wireguard_key(), "tags": ["tag:agents"]}
        made = (await admin.post("/static-peers", json=peer)).json()
        config = (await admin.get(f"/static-peers/{made['id']}/config")).json()["wg_quick"]
        parts = [part for part in config.split("[Peer]") if f"# {holder}" in part or f"= {holder}" in part]
        address = (await admin.get("/services/github")).json()["addresses"][0]
        assert len(parts) == 1, config
        assert f"{address}/32" in parts[0]
        assert config.count(f"{address}/32") == 1


class TestHolder:
    async def test_is_replaced_when_its_stream_closes(
        self, controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
    ) -> None:
        async with AsyncExitStack() as first, AsyncExitStack() as second:
            stacks = {"one": first, "two": second}
            for name, stack in stacks.items():
                await stack.enter_async_context(server(controller, hosts[name], tmp_path))
            before = await until(admin, lambda service: is_healthy(service) and all_healthy(service))
            (other,) = stacks.keys() - {before["holder"]}
            await stacks[before["holder"]].aclose()
            await until(admin, held_by(other))
        entry = (await admin.get("/audit", params={"action": "system:service:move"})).json()["items"][0]
        assert (entry["subject"], entry["actor"], entry["old"]) == (
            "service:github",
            "system",
            {"holder": before["holder"]},
        )
        assert entry["new"]["holder"] == other
        assert "offline" in entry["new"]["reason"]

    async def test_is_replaced_when_what_is_behind_it_cannot_answer(
        self, admin: Client, servers: dict[str, Server]
    ) -> None:
        holder, other = await holder_and_other(admin, servers)
        servers[holder].error = "127.0.0.1:3000 refuses connections"
        await until(admin, held_by(other))
        found = await until(admin, lambda s: any(not h["healthy"] for h in s["hosts"]))
        errors = {host["name"]: host["error"] for host in found["hosts"]}
        assert errors == {holder: "127.0.0.1:3000 refuses connections", other: None}
        entry = (await admin.get("/audit", params={"action": "system:service:move"})).json()["items"][0]
        assert "127.0.0.1:3000 refuses connections" in entry["new"]["reason"]

    async def test_is_replaced_when_it_falls_silent_with_its_stream_open(
        self, admin: Client, servers: dict[str, Server]
    ) -> None:
        holder, other = await holder_and_other(admin, servers)
        servers[holder].silent = True
        await until(admin, held_by(other))

    async def test_stays_when_the_lost_one_comes_back(self, admin: Client, servers: dict[str, Server]) -> None:
        holder, other = await holder_and_other(admin, servers)
        servers[holder].error = "refused"
        await until(admin, held_by(other))
        servers[holder].error = None
        assert (await until(admin, all_healthy))["holder"] == other

    async def test_stays_while_nobody_else_is_healthy(self, admin: Client, servers: dict[str, Server]) -> None:
        holder, other = await holder_and_other(admin, servers)
        servers[other].error = "refused"
        await until(admin, lambda s: any(h["name"] == other and not h["healthy"] for h in s["hosts"]))
        servers[holder].silent = True
        found = await until(admin, lambda service: not is_healthy(service))
        assert found["holder"] == holder
        servers[other].error = None
        await until(admin, held_by(other))

    async def test_is_replaced_when_policy_does_not_let_it_serve(
        self, admin: Client, hosts: dict[str, Host], servers: dict[str, Server]
    ) -> None:
        holder, other = await holder_and_other(admin, servers)
        await patch(admin, hosts[holder], tags=[])
        found = await until(admin, held_by(other))
        assert [host["name"] for host in found["hosts"]] == [other]
        entry = (await admin.get("/audit", params={"action": "system:service:move"})).json()["items"][0]
        assert entry["new"]["reason"] == f"{holder} may not serve it any more"

    async def test_is_replaced_when_it_is_disabled(
        self, admin: Client, hosts: dict[str, Host], servers: dict[str, Server]
    ) -> None:
        holder, other = await holder_and_other(admin, servers)
        await patch(admin, hosts[holder], state="disabled")
        await until(admin, held_by(other))

    async def test_is_somebody_online_when_nobody_is_healthy_yet(
        self, controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
    ) -> None:
        async with server(controller, hosts["two"], tmp_path, error="it is starting"):
            found = await until(admin, held_by("two"))
            assert not found["healthy"]

    async def test_says_nothing_of_services_that_are_not_its_own(
        self, controller: Running, admin: Client, anyone: Client, hosts: dict[str, Host], tmp_path: Path
    ) -> None:
        stranger = await new_node(admin, anyone, "stranger", tags=["tag:agents"])
        async with (
            server(controller, stranger, tmp_path, names=("github", "nonsense")),
            server(controller, hosts["one"], tmp_path),
        ):
            found = await until(admin, is_healthy)
            assert found["holder"] == "one"
            assert "stranger" not in {host["name"] for host in found["hosts"]}


class TestMove:
    async def test_by_hand_stays(self, admin: Client, servers: dict[str, Server]) -> None:
        holder, other = await holder_and_other(admin, servers)
        answer = await move(admin, other)
        assert (answer.status_code, answer.json()["holder"]) == (200, other)
        revision = answer.json()["revision"]
        assert (await move(admin, other)).json()["revision"] == revision  # again: nothing to do
        entry = (await admin.get("/audit", params={"action": "admin:service:move"})).json()["items"]
        assert [(one["old"], one["new"]) for one in entry] == [({"holder": holder}, {"holder": other, "forced": False})]

    async def test_to_a_node_that_is_not_healthy_needs_force(self, admin: Client, servers: dict[str, Server]) -> None:
        _, other = await holder_and_other(admin, servers)
        servers[other].error = "out of order"
        await until(admin, lambda s: any(not h["healthy"] for h in s["hosts"]))
        refused = await move(admin, other)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:wardmesh:problem:node-not-healthy")
        assert "out of order" in refused.json()["detail"]
        assert (await move(admin, other, force=True)).json()["holder"] == other

    async def test_to_a_node_that_may_not_serve_is_refused(
        self, admin: Client, anyone: Client, servers: dict[str, Server]
    ) -> None:
        await new_node(admin, anyone, "stranger")
        refused = await move(admin, "stranger", force=True)
        assert (refused.status_code, refused.json()["type"]) == (409, "urn:wardmesh:problem:node-cannot-serve")
        assert "'one', 'two'" in refused.json()["detail"]
        assert (await move(admin, "nobody")).status_code == 404
        assert (await admin.post("/services/nothing/move", json={"node": "one"})).status_code == 404

    async def test_is_for_admins(self, controller: Running, admin: Client, servers: dict[str, Server]) -> None:
        token = (await admin.post("/tokens", json={"role": "read"})).json()["secret"]
        async with Client(controller, token=token) as reader:
            assert (await reader.get("/services/github")).status_code == 200
            assert (await move(reader, "one")).status_code == 403


async def test_a_controller_that_starts_again_gives_the_holder_time_to_come_back(
    settings: Settings, clock: MovableClock, tmp_path: Path
) -> None:
    async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
        token = controller.first_token
        async with Client(controller) as anyone:
            hosts = {name: await new_node(admin, anyone, name, tags=["tag:tools"]) for name in ("one", "two")}
        await put(admin, POLICY)
        async with server(controller, hosts["one"], tmp_path):
            await until(admin, held_by("one"))
    async with (
        running(settings, clock) as controller,
        Client(controller, token=token) as admin,
        server(controller, hosts["two"], tmp_path),
    ):
        found = await until(admin, lambda s: any(h["name"] == "two" and h["healthy"] for h in s["hosts"]))
        assert found["holder"] == "one"
        async with server(controller, hosts["one"], tmp_path):
            assert (await until(admin, is_healthy))["holder"] == "one"
    moves = [entry.new for entry in await _audit(settings, clock, token)]
    assert [one["holder"] for one in moves] == ["one"]


async def _audit(settings: Settings, clock: MovableClock, token: str | None) -> Any:
    async with running(settings, clock) as controller, controller.context.store.read() as tables:
        return await tables.ledger.audit_page(before=None, limit=10, action="system:service:move")


async def test_the_command_lists_shows_and_moves(
    controller: Running, admin: Client, servers: dict[str, Server], tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text(controller.context.authority.pem)
    environment = {
        "WARDMESH_URL": f"https://127.0.0.1:{controller.port}",
        "WARDMESH_TOKEN": controller.first_token or "",
        "WARDMESH_CA": str(tmp_path / "ca.pem"),
    }
    cli = Cli(tmp_path, environment)
    holder, other = await holder_and_other(admin, servers)
    listed = await asyncio.to_thread(cli, "service", "list")
    assert f"github  mcp   http://github.mesh.internal/mcp  {holder}" in listed.out
    moved = await asyncio.to_thread(cli, "service", "move", "svc:github", other)
    assert f"{other} holds github" in moved.err
    shown = await asyncio.to_thread(cli, "service", "show", "github", "--json")
    assert shown.json() == (await admin.get("/services/github")).json()
    assert shown.json()["holder"] == other
    people = await asyncio.to_thread(cli, "service", "show", "github")
    assert f"host {other}" in people.out
    assert "https://github.mesh.internal/mcp" in people.out
    printed = await asyncio.to_thread(cli, "ca")
    assert printed.out == controller.context.authority.pem
    unknown = await asyncio.to_thread(cli, "service", "show", "gitlab")
    assert unknown.code == 1
    assert "`wardmesh service list`" in unknown.err


class TestExplain:
    async def test_a_flow_to_a_service_is_one_to_its_holder_at_the_services_own_address(
        self, admin: Client, anyone: Client, servers: dict[str, Server]
    ) -> None:
        holder, _ = await holder_and_other(admin, servers)
        await new_node(admin, anyone, "caller", tags=["tag:agents"])
        asked = {"from": "caller", "to": "svc:github"}
        found = (await admin.get("/policy/explain", params={**asked, "port": "tcp:80"})).json()
        assert (found["allowed"], found["destination"]["name"]) == (True, holder)
        assert (found["source"]["allows"], found["destination"]["allows"]) == (True, True)
        assert [grant["line"] for grant in found["grants"]] == [4]
        other = (await admin.get("/policy/explain", params={**asked, "port": "tcp:81"})).json()
        assert (other["allowed"], other["source"]["allows"], other["destination"]["allows"]) == (False, False, False)
        own = (await admin.get("/policy/explain", params={"from": "caller", "to": holder, "port": "tcp:80"})).json()
        assert (own["allowed"], own["destination"]["allows"]) == (False, False)
        unknown = await admin.get("/policy/explain", params={"from": "caller", "to": "svc:gitlab", "port": "tcp:80"})
        assert unknown.status_code == 404

    async def test_a_call_is_judged_by_its_tool_and_says_what_is_needed(
        self, admin: Client, anyone: Client, hosts: dict[str, Host]
    ) -> None:
        await new_node(admin, anyone, "caller", tags=["tag:agents"])
        await new_node(admin, anyone, "stranger")

        async def ask(source: str, tool: str) -> dict[str, Any]:
            question = {"source": source, "service": "svc:github", "tool": tool}
            answer = await admin.post("/policy/explain-call", json=question)
            assert answer.status_code == 200, answer.text
            return dict(answer.json())

        allowed = await ask("caller", "search_code")
        assert (allowed["allowed"], [grant["line"] for grant in allowed["grants"]]) == (True, [4])
        denied = await ask("caller", "create_issue")
        assert (denied["allowed"], denied["grants"]) == (False, [])
        assert denied["needed"] == "a grant to svc:github with mcp: {tools: [create_issue]}"
        assert (await ask("stranger", "search_code"))["needed"] == (
            "a grant to svc:github with mcp: {tools: [search_code]}"
        )
        missing = await admin.post("/policy/explain-call", json={"source": "x", "service": "github", "tool": "y"})
        assert missing.status_code == 404

    async def test_the_command_judges_arguments(
        self, controller: Running, admin: Client, anyone: Client, hosts: dict[str, Host], tmp_path: Path
    ) -> None:
        await new_node(admin, anyone, "caller", tags=["tag:agents"])
        await put(
            admin,
            f"services: {{github: {GITHUB}}}\ngrants:\n  - {{from: tag:agents, to: svc:github,"
            " mcp: {tools: ['*'], deny_tools: [drop_*], args: {get_file: {path: {under: /project-x}}}}}\n",
        )
        (tmp_path / "ca.pem").write_text(controller.context.authority.pem)
        url = f"https://127.0.0.1:{controller.port}"
        token, ca = controller.first_token or "", str(tmp_path / "ca.pem")
        cli = Cli(tmp_path, {"WARDMESH_URL": url, "WARDMESH_TOKEN": token, "WARDMESH_CA": ca})
        ask = ["policy", "explain", "--from", "caller", "--to", "svc:github", "--tool", "get_file", "--args"]
        good = await asyncio.to_thread(cli, *ask, '{"path": "/project-x/a"}')
        assert (good.code, "allowed" in good.out) == (0, True)
        bad = await asyncio.to_thread(cli, *ask, '{"path": "/project-x/../etc"}')
        assert (bad.code, "denied" in bad.out) == (1, True)
        assert "get_file" in bad.out
        nonsense = await asyncio.to_thread(cli, *ask, "[1]")
        assert "is not a JSON object" in nonsense.err
        twice = await asyncio.to_thread(cli, *ask, '{"path": "/etc", "path": "/project-x/a"}')
        assert "the key 'path' comes twice" in twice.err
        dropping = [word if word != "get_file" else "drop_table" for word in ask]
        out = await asyncio.to_thread(cli, *dropping, "{}")
        assert out.code == 1
        assert "line 3, column 5: names it, and takes it out by deny_tools" in out.out
