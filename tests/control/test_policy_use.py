"""What people ask of policies over REST: what a document would change, what was in force, why a flow passes."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.server import Running
from controller.wire.stream import Applied

from .hosts import Host, new_node
from .streams import agent, seen
from .support import Client, MovableClock
from .test_cli.bench import Cli

POLICY = """\
grants:
  - from: [tag:agents]
    to: [tag:tools]
    ip: [tcp:443, icmp]
    note: agents call tools
    expires: 2099-01-31T18:00:00Z
"""


async def put(admin: Client, text: str) -> int:
    response = await admin.put("/policy", json={"text": text}, headers={"if-match": "*"})
    assert response.status_code == 200, response.text
    return int(response.json()["revision"])


async def two_nodes(admin: Client, anyone: Client) -> tuple[Host, Host]:
    alice = await new_node(admin, anyone, "alice", tags=["tag:agents"])
    return alice, await new_node(admin, anyone, "bob", tags=["tag:tools"])


async def explain(admin: Client, source: str, destination: str, port: str) -> httpx.Response:
    return await admin.get("/policy/explain", params={"from": source, "to": destination, "port": port})


class TestHistory:
    async def test_has_every_document_newest_first(self, admin: Client) -> None:
        assert (await admin.get("/policy/history")).json() == {"items": [], "next": None}
        texts = [f"grants: [] # {number}\n" for number in range(3)]
        revisions = [await put(admin, text) for text in texts]
        found = (await admin.get("/policy/history")).json()["items"]
        assert [one["text"] for one in found] == texts[::-1]
        assert [one["revision"] for one in found] == revisions[::-1]
        assert found[0] == (await admin.get("/policy")).json()

    async def test_pages_without_gaps_while_documents_are_added(self, admin: Client) -> None:
        revisions = [await put(admin, f"grants: [] # {number}\n") for number in range(3)]
        first = (await admin.get("/policy/history?limit=2")).json()
        await put(admin, "grants: [] # later\n")
        rest = (await admin.get("/policy/history", params={"limit": 2, "cursor": first["next"]})).json()
        assert [one["revision"] for one in first["items"] + rest["items"]] == revisions[::-1]
        assert rest["next"] is None

    async def test_bad_cursor_is_refused(self, admin: Client) -> None:
        assert (await admin.get("/policy/history?cursor=nonsense")).status_code == 422


class TestDiff:
    async def test_names_pairs_that_gain_and_lose(self, admin: Client, anyone: Client) -> None:
        await two_nodes(admin, anyone)
        gain = (await admin.post("/policy/diff", json={"text": POLICY})).json()
        assert gain == {
            "changes": [{"source": "alice", "destination": "bob", "gained": ["icmp", "tcp:443"], "lost": []}],
            "pairs": 1,
        }
        await put(admin, POLICY)
        loss = (await admin.post("/policy/diff", json={"text": POLICY.replace("443", "80-90")})).json()
        assert loss["changes"] == [
            {"source": "alice", "destination": "bob", "gained": ["tcp:80-90"], "lost": ["tcp:443"]}
        ]
        assert (await admin.post("/policy/diff", json={"text": POLICY})).json() == {"changes": [], "pairs": 0}

    async def test_shows_what_a_document_would_do_whose_tests_fail(self, admin: Client, anyone: Client) -> None:
        await two_nodes(admin, anyone)
        text = POLICY + "tests: [{from: alice, to: bob, deny: ['tcp:443']}]\n"
        assert (await admin.post("/policy/check", json={"text": text})).json()["ok"] is False
        assert (await admin.post("/policy/diff", json={"text": text})).json()["pairs"] == 1

    @pytest.mark.parametrize(("bad", "line"), [("grants: x", 1), ("grants:\n- {from: alcie, to: bob, ip: icmp}", 2)])
    async def test_errors_are_located(self, admin: Client, anyone: Client, bad: str, line: int) -> None:
        await two_nodes(admin, anyone)
        response = await admin.post("/policy/diff", json={"text": bad})
        assert (response.status_code, response.json()["type"]) == (422, "urn:wardmesh:problem:policy-refused")
        assert response.json()["errors"][0]["line"] == line


class TestExplain:
    async def test_names_the_grant_and_its_place(self, admin: Client, anyone: Client) -> None:
        await two_nodes(admin, anyone)
        revision = await put(admin, POLICY)
        found = (await explain(admin, "alice", "bob", "tcp:443")).json()
        assert (found["allowed"], found["flow"], found["policy_revision"]) == (True, "tcp:443", revision)
        (grant,) = found["grants"]
        assert (grant["line"], grant["column"], grant["note"]) == (2, 5, "agents call tools")
        assert grant["expires"] == "2099-01-31T18:00:00Z"
        assert found["source"]["allows"]
        assert found["destination"]["allows"]

    @pytest.mark.parametrize(
        ("source", "destination", "port"),
        [
            ("alice", "bob", "tcp:444"),
            ("alice", "bob", "udp:443"),
            ("bob", "alice", "tcp:443"),
            ("bob", "alice", "icmp"),
        ],
    )
    async def test_what_no_grant_names_is_denied_by_both(
        self, admin: Client, anyone: Client, source: str, destination: str, port: str
    ) -> None:
        await two_nodes(admin, anyone)
        await put(admin, POLICY)
        found = (await explain(admin, source, destination, port)).json()
        assert (found["allowed"], found["grants"]) == (False, [])
        assert not found["source"]["allows"]
        assert not found["destination"]["allows"]

    async def test_an_expired_grant_allows_nothing(self, admin: Client, anyone: Client, clock: MovableClock) -> None:
        await two_nodes(admin, anyone)
        await put(admin, POLICY)
        clock.advance(days=100 * 366)
        found = (await explain(admin, "alice", "bob", "tcp:443")).json()
        assert (found["allowed"], found["source"]["allows"]) == (False, False)

    async def test_says_whether_the_host_has_it_in_force(
        self, controller: Running, admin: Client, anyone: Client, tmp_path: Path
    ) -> None:
        alice, _ = await two_nodes(admin, anyone)
        await put(admin, POLICY)

        async def source() -> dict[str, Any]:
            found: dict[str, Any] = (await explain(admin, "alice", "bob", "tcp:443")).json()["source"]
            return {key: found[key] for key in ("online", "current", "in_force", "error", "allows")}

        nothing = {"online": False, "current": False, "in_force": None, "error": None, "allows": True}
        assert await source() == nothing
        async with agent(controller, alice, tmp_path) as there:
            await there.hello()
            assert there.netmap is not None
            assert await source() == nothing | {"online": True}
            revision = there.netmap.revision
            await there.say(Applied(revision=revision))
            await seen(admin, alice, lambda node: node["in_force"] is not None)
            assert await source() == nothing | {"online": True, "current": True, "in_force": revision}
            await put(admin, "grants: []\n")
            assert await source() == nothing | {"online": True, "in_force": revision, "allows": False}

    async def test_nodes_may_be_given_by_id(self, admin: Client, anyone: Client) -> None:
        alice, bob = await two_nodes(admin, anyone)
        await put(admin, POLICY)
        found = (await explain(admin, alice.enrolled.node_id, bob.enrolled.node_id, "icmp")).json()
        assert (found["source"]["name"], found["destination"]["name"], found["allowed"]) == ("alice", "bob", True)

    async def test_a_disabled_node_is_allowed_nothing(self, admin: Client, anyone: Client) -> None:
        _, bob = await two_nodes(admin, anyone)
        await put(admin, POLICY)
        await admin.patch(f"/nodes/{bob.enrolled.node_id}", json={"state": "disabled"}, headers={"if-match": "*"})
        found = (await explain(admin, "alice", "bob", "tcp:443")).json()
        assert (found["allowed"], found["destination"]["state"]) == (False, "disabled")
        assert not found["source"]["allows"]
        assert not found["destination"]["allows"]

    @pytest.mark.parametrize(
        ("query", "status"),
        [
            ({"from": "alice", "to": "nobody", "port": "icmp"}, 404),
            ({"from": "alice", "to": "alice", "port": "icmp"}, 422),
            ({"from": "alice", "to": "bob", "port": "tcp"}, 422),
            ({"from": "alice", "to": "bob", "port": "tcp:0"}, 422),
            ({"from": "alice", "to": "bob", "port": "tcp:65536"}, 422),
            ({"from": "alice", "to": "bob", "port": "tcp:1-2"}, 422),
            ({"from": "alice", "to": "bob", "port": "sctp:1"}, 422),
            ({"from": "alice", "to": "bob"}, 422),
            ({"from": "a/b", "to": "bob", "port": "icmp"}, 422),
        ],
    )
    async def test_wrong_questions_are_refused(
        self, admin: Client, anyone: Client, query: dict[str, Any], status: int
    ) -> None:
        await two_nodes(admin, anyone)
        response = await admin.get("/policy/explain", params=query)
        assert response.status_code == status
        assert response.json()["detail"]


class TestApplyAndWait:
    """`wardmesh policy apply --wait`, the real command, with a host that takes its time."""

    @pytest.fixture
    def cli(self, controller: Running, tmp_path: Path) -> Cli:
        (tmp_path / "ca.pem").write_text(controller.context.authority.pem)
        (tmp_path / "policy.yaml").write_text(POLICY)
        environment = {
            "WARDMESH_URL": f"https://127.0.0.1:{controller.port}",
            "WARDMESH_TOKEN": controller.first_token or "",
            "WARDMESH_CA": str(tmp_path / "ca.pem"),
        }
        return Cli(tmp_path, environment)

    async def test_names_the_hosts_that_are_late_and_returns_when_none_is(
        self,
        *,
        controller: Running,
        admin: Client,
        anyone: Client,
        cli: Cli,
        tmp_path: Path,
        clock: MovableClock,
    ) -> None:
        alice, _ = await two_nodes(admin, anyone)
        async with agent(controller, alice, tmp_path) as there:
            await there.hello()
            assert there.netmap is not None
            await there.say(Applied(revision=there.netmap.revision))
            await seen(admin, alice, lambda node: node["in_force"] is not None)
            late = await asyncio.to_thread(cli, "policy", "apply", "policy.yaml", "--wait", "--timeout", "1s", "--json")
            assert "hosts-behind" in late.problem()["type"]
            assert [one["field"] for one in late.problem()["errors"]] == ["alice"]
            clock.advance(minutes=3)
            shown = [await asyncio.to_thread(cli, *words) for words in (("node", "list"), ("node", "show", "alice"))]
            assert all("(3 min behind)" in done.out for done in shown), shown
            assert "the longest for 3 min" in (await asyncio.to_thread(cli, "status")).out
            waiting = asyncio.create_task(
                asyncio.to_thread(cli, "policy", "apply", "policy.yaml", "--wait", "--timeout", "50s")
            )
            netmap = await there.take_until(lambda m: bool(m.rules))
            assert (await admin.get("/nodes?name=alice")).json()["items"][0]["behind"] is True
            await there.say(Applied(revision=netmap.revision))
            done = await waiting
            assert done.code == 0, done
            assert "Every host that is online has it in force" in done.err
            assert "away get it when they come back: bob." in done.err
