"""Temporary grants over REST, with a real controller: made, shown, extended, revoked, ended; and what hosts hear."""

import math
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.server import Running, running
from controller.settings import Settings

from .hosts import Host, new_node
from .streams import agent
from .support import Client, MovableClock

POLICY = """\
groups: {callers: [tag:agents]}
grants: [{from: tag:agents, to: tag:tools, ip: [tcp:443]}]
"""
WANTED = {"from": ["alice"], "to": ["tag:tools"], "ip": ["tcp:22"], "ttl": 3600, "reason": "INC-7: look at the disk"}


@pytest.fixture
async def hosts(admin: Client, anyone: Client) -> tuple[Host, Host]:
    alice = await new_node(admin, anyone, "alice", tags=["tag:agents"])
    bob = await new_node(admin, anyone, "bob", tags=["tag:tools"])
    await put(admin, POLICY)
    return alice, bob


async def put(admin: Client, text: str) -> None:
    response = await admin.put("/policy", json={"text": text}, headers={"if-match": "*"})
    assert response.status_code == 200, response.text


async def grant(admin: Client, **changes: Any) -> dict[str, Any]:
    response = await admin.post("/grants", json=WANTED | changes)
    assert response.status_code == 201, response.text
    created: dict[str, Any] = response.json()
    return created


async def extend(admin: Client, grant_id: str, ttl: int, match: str | None = "*") -> httpx.Response:
    return await admin.patch(f"/grants/{grant_id}", json={"ttl": ttl}, headers={"if-match": match} if match else {})


async def audit(admin: Client, grant_id: str) -> list[dict[str, Any]]:
    entries = (await admin.get("/audit", params={"subject": f"grant:{grant_id}"})).json()["items"]
    return [{key: entry[key] for key in ("action", "actor", "old", "new")} for entry in reversed(entries)]


async def allowed(admin: Client, source: str = "alice", to: str = "bob", port: str = "tcp:22") -> bool:
    found = (await admin.get("/policy/explain", params={"from": source, "to": to, "port": port})).json()
    assert found["allowed"] == found["source"]["allows"] == found["destination"]["allows"]
    return bool(found["allowed"])


@pytest.mark.usefixtures("hosts")
class TestCreate:
    async def test_it_is_in_force_at_once_and_shown_with_who_and_why(self, admin: Client, clock: MovableClock) -> None:
        before = clock()
        assert not await allowed(admin)
        created = await grant(admin)
        assert await allowed(admin)
        assert created["id"].startswith("t")
        assert (created["from"], created["to"], created["ip"]) == (["node:alice"], ["tag:tools"], ["tcp:22"])
        assert created["reason"] == WANTED["reason"]
        assert created["actor"].startswith("token:wma_")
        assert (created["state"], created["problem"], created["revoked"]) == ("active", None, None)
        end = datetime.fromisoformat(created["expires"])
        assert end.microsecond == 0
        assert timedelta(seconds=3600) <= end - before < timedelta(seconds=3620)
        shown = await admin.get(f"/grants/{created['id']}")
        assert shown.json() == created
        assert shown.headers["etag"] == f'"{created["revision"]}"'

    async def test_it_is_audited(self, admin: Client) -> None:
        created = await grant(admin)
        assert await audit(admin, created["id"]) == [
            {
                "action": "admin:grant:create",
                "actor": created["actor"],
                "old": None,
                "new": {key: created[key] for key in ("from", "to", "ip", "reason", "expires")},
            }
        ]

    async def test_the_calls_that_it_allows_are_shown_and_audited(self, admin: Client) -> None:
        await put(admin, "services: {github: {on: [tag:tools], mcp: {upstream: 'http://127.0.0.1:3000/mcp'}}}")
        mcp = {"tools": ["get_*"], "args": {"get_file": {"path": {"under": "/docs"}}}, "limits": {"get_*": "5/10s"}}
        created = await grant(admin, to=["svc:github"], ip=[], mcp=mcp)
        shown = (await admin.get(f"/grants/{created['id']}")).json()
        assert {key: value for key, value in shown["mcp"].items() if value} == mcp
        assert (await audit(admin, created["id"]))[0]["new"]["mcp"] == mcp

    async def test_a_request_that_is_repeated_makes_one(self, admin: Client) -> None:
        first, second = [await admin.post("/grants", json=WANTED, headers={"idempotency-key": "one"}) for _ in range(2)]
        assert (first.json(), first.headers["etag"]) == (second.json(), second.headers["etag"])
        assert second.headers["idempotency-replayed"] == "true"
        assert len((await admin.get("/grants")).json()["items"]) == 1

    @pytest.mark.parametrize(
        ("changes", "field", "message"),
        [
            ({"from": ["alcie"]}, "from", "there is no node, host or group 'alcie' (did you mean 'alice'?)"),
            ({"to": ["tag:tool"]}, "to", "did you mean 'tag:tools'?"),
            ({"from": ["group:caller"]}, "from", "there is no group 'caller' (did you mean 'callers'?)"),
            ({"ip": ["tcp:70000"]}, "ip", "70000"),
            ({"ip": ["gre"]}, "ip", "names no protocol that can pass"),
            ({"mcp": {"tools": ["x"]}}, "to", "tag:tools is no service with mcp"),
            ({"ttl": 30 * 86400 + 1}, "ttl", "longer than this controller allows"),
        ],
    )
    async def test_what_names_nothing_or_lasts_too_long_is_refused(
        self, admin: Client, changes: dict[str, Any], field: str, message: str
    ) -> None:
        response = await admin.post("/grants", json=WANTED | changes)
        problem = response.json()
        assert (response.status_code, problem["type"]) == (422, "urn:wardmesh:problem:grant-refused")
        assert message in problem["detail"]
        assert [error["field"] for error in problem["errors"]] == [field]
        assert (await admin.get("/grants")).json()["items"] == []

    @pytest.mark.parametrize(
        "changes",
        [{"ttl": 0}, {"ttl": -1}, {"reason": ""}, {"reason": "  "}, {"from": []}, {"to": ["x\0"]}, {"for": "x"}],
    )
    async def test_what_does_not_fit_the_schema_is_refused(self, admin: Client, changes: dict[str, Any]) -> None:
        response = await admin.post("/grants", json=WANTED | changes)
        assert (response.status_code, response.json()["type"]) == (422, "urn:wardmesh:problem:invalid")

    async def test_the_longest_and_the_shortest_are_accepted(self, admin: Client) -> None:
        await grant(admin, ttl=30 * 86400)
        await grant(admin, ttl=1)

    async def test_a_token_that_only_reads_may_look_and_not_grant(self, controller: Running, admin: Client) -> None:
        secret = (await admin.post("/tokens", json={"role": "read"})).json()["secret"]
        created = await grant(admin)
        async with Client(controller, token=secret) as reader:
            assert (await reader.get(f"/grants/{created['id']}")).status_code == 200
            assert (await reader.post("/grants", json=WANTED)).status_code == 403
            assert (await extend(reader, created["id"], 7200)).status_code == 403
            assert (await reader.delete(f"/grants/{created['id']}")).status_code == 403


@pytest.mark.usefixtures("hosts")
class TestEnd:
    async def test_it_ends_by_itself_and_is_listed_as_ended(self, admin: Client, clock: MovableClock) -> None:
        created = await grant(admin, ttl=60)
        clock.advance(seconds=62)
        assert not await allowed(admin)
        shown = (await admin.get(f"/grants/{created['id']}")).json()
        assert (shown["state"], shown["revoked"]) == ("ended", None)
        assert [entry["action"] for entry in await audit(admin, created["id"])] == ["admin:grant:create"]

    async def test_a_revoked_one_is_over_and_stays_on_record(self, admin: Client) -> None:
        created = await grant(admin)
        assert (await admin.delete(f"/grants/{created['id']}")).status_code == 204
        assert not await allowed(admin)
        shown = (await admin.get(f"/grants/{created['id']}")).json()
        assert shown["state"] == "ended"
        assert shown["revoked"] is not None
        last = (await audit(admin, created["id"]))[-1]
        assert (last["action"], last["old"]["reason"], last["new"]) == ("admin:grant:revoke", WANTED["reason"], None)

    async def test_to_revoke_again_changes_nothing(self, admin: Client) -> None:
        created = await grant(admin)
        for _ in range(2):
            assert (await admin.delete(f"/grants/{created['id']}")).status_code == 204
        assert len(await audit(admin, created["id"])) == 2

    async def test_a_stale_revocation_is_refused(self, admin: Client) -> None:
        created = await grant(admin)
        await extend(admin, created["id"], 7200)
        response = await admin.delete(f"/grants/{created['id']}", headers={"if-match": f'"{created["revision"]}"'})
        assert response.status_code == 412
        assert await allowed(admin)

    @pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH"])
    async def test_one_that_never_was_is_not_found(self, admin: Client, method: str) -> None:
        response = await admin.request(
            method,
            "/grants/t00",
            headers={"if-match": "*"},
            json={"ttl": 1} if method == "PATCH" else None,
        )
        assert response.status_code == 404
        assert "'t00'" in response.json()["detail"]


@pytest.mark.usefixtures("hosts")
class TestExtend:
    async def test_it_ends_that_long_from_now(self, admin: Client, clock: MovableClock) -> None:
        created = await grant(admin, ttl=60)
        clock.advance(seconds=30)
        now = clock()
        response = await extend(admin, created["id"], 600, f'"{created["revision"]}"')
        assert response.status_code == 200
        extended = response.json()
        assert datetime.fromisoformat(extended["expires"]) >= now + timedelta(seconds=600)
        assert response.headers["etag"] == f'"{extended["revision"]}"' != f'"{created["revision"]}"'
        clock.advance(seconds=500)
        assert await allowed(admin)
        clock.advance(seconds=120)
        assert not await allowed(admin)
        last = (await audit(admin, created["id"]))[-1]
        assert (last["action"], last["old"]["expires"], last["new"]["expires"]) == (
            "admin:grant:extend",
            created["expires"],
            extended["expires"],
        )

    async def test_without_or_with_a_stale_etag_is_refused(self, admin: Client) -> None:
        created = await grant(admin)
        assert (await extend(admin, created["id"], 7200, None)).status_code == 428
        assert (await extend(admin, created["id"], 7200, '"1"')).status_code == 412

    async def test_never_makes_it_shorter_nor_too_long(self, admin: Client) -> None:
        created = await grant(admin)
        for ttl, message in ((60, "no later than its present end"), (31 * 86400, "longer than")):
            response = await extend(admin, created["id"], ttl)
            assert (response.status_code, response.json()["type"]) == (422, "urn:wardmesh:problem:grant-refused")
            assert message in response.json()["detail"]
        assert (await admin.get(f"/grants/{created['id']}")).json() == created

    async def test_one_that_has_ended_stays_ended(self, admin: Client, clock: MovableClock) -> None:
        ended, revoked = await grant(admin, ttl=5), await grant(admin)
        await admin.delete(f"/grants/{revoked['id']}")
        clock.advance(seconds=10)
        for grant_id, how in ((ended["id"], "ended at"), (revoked["id"], "was revoked at")):
            response = await extend(admin, grant_id, 7200)
            assert (response.status_code, response.json()["type"]) == (409, "urn:wardmesh:problem:grant-ended")
            assert how in response.json()["detail"]
        assert not await allowed(admin)


@pytest.mark.usefixtures("hosts")
class TestList:
    async def test_newest_first_in_pages_and_by_state(self, admin: Client, clock: MovableClock) -> None:
        ids = []
        for number in range(4):
            ids.append((await grant(admin, ttl=60 if number < 2 else 7200))["id"])
            clock.advance(seconds=1)
        clock.advance(seconds=120)
        await admin.delete(f"/grants/{ids[3]}")

        async def listed(**query: Any) -> tuple[list[str], str | None]:
            found = (await admin.get("/grants", params=query)).json()
            return [one["id"] for one in found["items"]], found["next"]

        assert await listed() == (ids[::-1], None)
        assert await listed(state="active") == ([ids[2]], None)
        assert (await listed(state="ended"))[0] == [ids[3], ids[1], ids[0]]
        first, cursor = await listed(limit=3)
        assert first + (await listed(limit=3, cursor=cursor))[0] == ids[::-1]
        assert (await admin.get("/grants?state=gone")).status_code == 422


@pytest.mark.usefixtures("hosts")
class TestBesideThePolicy:
    async def test_a_policy_that_is_replaced_leaves_it_in_force(self, admin: Client) -> None:
        await grant(admin)
        await put(admin, "grants: []")
        assert await allowed(admin)
        assert not await allowed(admin, port="tcp:443")

    async def test_one_whose_group_is_gone_allows_nothing_and_says_so(self, admin: Client) -> None:
        created = await grant(admin, **{"from": ["group:callers"]})
        assert created["problem"] is None
        without = POLICY.replace("callers", "calling")
        report = (await admin.post("/policy/check", json={"text": without})).json()
        assert report["ok"]
        (warning,) = [one for one in report["findings"] if one["code"] == "temporary-grant"]
        assert created["id"] in warning["message"]
        await put(admin, without)
        assert not await allowed(admin)
        (listed,) = (await admin.get("/grants")).json()["items"]
        assert (listed["state"], "there is no group 'callers'" in listed["problem"]) == ("active", True)
        await put(admin, POLICY)
        assert await allowed(admin)
        assert (await admin.get("/grants")).json()["items"] == [created]

    async def test_one_whose_nodes_are_gone_says_so(self, admin: Client, hosts: tuple[Host, Host]) -> None:
        created = await grant(admin)
        await admin.delete(f"/nodes/{hosts[0].enrolled.node_id}")
        assert (await admin.get(f"/grants/{created['id']}")).json()["problem"] == (
            "nobody matches 'from' now: node:alice"
        )

    async def test_diff_takes_it_for_granted(self, admin: Client) -> None:
        await put(admin, POLICY.replace("tcp:443", "tcp:443, tcp:22"))
        await grant(admin)
        difference = (await admin.post("/policy/diff", json={"text": "grants: []"})).json()
        assert [(one["source"], one["lost"]) for one in difference["changes"]] == [("alice", ["tcp:443"])]

    async def test_explain_names_it_by_id_maker_reason_and_end(self, admin: Client) -> None:
        created = await grant(admin)
        found = await admin.get("/policy/explain", params={"from": "alice", "to": "bob", "port": "tcp:22"})
        assert found.json()["grants"] == [
            {
                "id": created["id"],
                "line": None,
                "column": None,
                "note": created["reason"],
                "expires": created["expires"],
                "actor": created["actor"],
            }
        ]


async def test_hosts_hear_of_it_by_its_id_with_its_end_and_when_it_is_revoked(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    async with agent(controller, hosts[0], tmp_path) as there:
        await there.hello()
        created = await grant(admin)
        end = math.ceil(datetime.fromisoformat(created["expires"]).timestamp())
        rule = f"{created['id']}.out.tcp"
        netmap = await there.take_until(lambda m: rule in m.rules)
        assert (netmap.rules[rule].grant, netmap.rules[rule].expires) == (created["id"], end)
        await extend(admin, created["id"], 7200)
        await there.take_until(lambda m: m.rules[rule].expires != end)
        await admin.delete(f"/grants/{created['id']}")
        await there.take_until(lambda m: rule not in m.rules)


async def test_grants_outlive_a_restart_of_the_controller(settings: Settings, clock: MovableClock) -> None:
    async with running(settings, clock) as first:
        token = first.first_token
        async with Client(first, token=token) as admin, Client(first) as anyone:
            for name in ("alice", "bob"):
                await new_node(admin, anyone, name, tags=["tag:tools"])
            lasting, short = await grant(admin), await grant(admin, ttl=60)
            await admin.delete(f"/grants/{(await grant(admin))['id']}")
    clock.advance(seconds=120)
    async with running(settings, clock) as second, Client(second, token=token) as admin:
        assert await allowed(admin)
        states = {one["id"]: one["state"] for one in (await admin.get("/grants")).json()["items"]}
        assert (states[lasting["id"]], states[short["id"]]) == ("active", "ended")
        assert second.context.hub.temporary_grant(short["id"]) is None
        await admin.delete(f"/grants/{lasting['id']}")
        assert not await allowed(admin)
