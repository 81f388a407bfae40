"""Who may give a tag to a node: over REST, with tokens of members."""

from typing import Any

import httpx
import pytest

from controller.server import Running

from .hosts import new_node, wireguard_key
from .support import Client

POLICY = """\
tags:
  tag:agents: [group:ops]
  tag:gpu: [user:alice]
  tag:tools: []
groups:
  ops: [user:alice, user:bob]
"""


async def member(admin: Client, controller: Running, user: str, role: str = "member") -> Client:
    response = await admin.post("/tokens", json={"role": role, "user": user})
    assert response.status_code == 201, response.text
    return Client(controller, token=response.json()["secret"])


@pytest.fixture
async def alice(admin: Client, controller: Running) -> Any:
    answer = await admin.put("/policy", json={"text": POLICY}, headers={"if-match": "*"})
    assert answer.status_code == 200, answer.text
    async with await member(admin, controller, "alice") as client:
        yield client


async def tag(client: Client, node_id: str, *tags: str) -> httpx.Response:
    return await client.patch(f"/nodes/{node_id}", json={"tags": list(tags)}, headers={"if-match": "*"})


class TestMember:
    async def test_gives_and_takes_the_tags_that_its_user_owns(
        self, admin: Client, anyone: Client, alice: Client
    ) -> None:
        node_id = (await new_node(admin, anyone, "web", tags=["tag:tools"])).enrolled.node_id
        assert (await tag(alice, node_id, "tag:tools", "tag:agents", "tag:gpu")).status_code == 200
        assert (await tag(alice, node_id, "tag:tools")).status_code == 200
        [entry] = (await admin.get("/audit", params={"limit": 1})).json()["items"]
        assert entry["actor"].startswith("user:alice:wma_")

    @pytest.mark.parametrize("tags", [["tag:tools", "tag:agents"], [], ["tag:unknown", "tag:tools"]])
    async def test_neither_gives_nor_takes_a_tag_of_others(
        self, admin: Client, anyone: Client, alice: Client, tags: list[str]
    ) -> None:
        before = ["tag:agents"] if "tag:tools" in tags else ["tag:tools"]
        node_id = (await new_node(admin, anyone, "web", tags=before)).enrolled.node_id
        response = await tag(alice, node_id, *tags)
        assert (response.status_code, response.json()["type"]) == (403, "urn:wardmesh:problem:forbidden")
        assert "'alice' does not own tag:" in response.json()["detail"]
        assert (await admin.get(f"/nodes/{node_id}")).json()["tags"] == before

    @pytest.mark.parametrize("patch", [{"name": "db1"}, {"state": "disabled"}, {"tags": ["tag:gpu"], "name": "x"}])
    async def test_changes_nothing_else_of_a_node(
        self, admin: Client, anyone: Client, alice: Client, patch: dict[str, Any]
    ) -> None:
        node_id = (await new_node(admin, anyone, "web")).enrolled.node_id
        response = await alice.patch(f"/nodes/{node_id}", json=patch, headers={"if-match": "*"})
        assert response.status_code == 403
        assert (await admin.get(f"/nodes/{node_id}")).json()["name"] == "web"

    @pytest.mark.parametrize(("tags", "status"), [(["tag:agents"], 201), (["tag:agents", "tag:tools"], 403), ([], 403)])
    async def test_makes_enrolment_keys_and_static_peers_of_its_own_tags_only(
        self, alice: Client, tags: list[str], status: int
    ) -> None:
        key = await alice.post("/enrolment-keys", json={"tags": tags})
        peer = {"name": "phone", "public_key": wireguard_key(), "tags": tags}
        assert (key.status_code, (await alice.post("/static-peers", json=peer)).status_code) == (status, status)

    async def test_reads_but_writes_no_policy_and_no_tokens(self, alice: Client) -> None:
        assert (await alice.get("/policy")).status_code == 200
        assert (await alice.get("/tokens")).status_code == 403
        assert (await alice.put("/policy", json={"text": ""}, headers={"if-match": "*"})).status_code == 403
        assert (await alice.post("/tokens", json={})).status_code == 403

    async def test_loses_a_tag_with_the_policy_that_gave_it(self, admin: Client, anyone: Client, alice: Client) -> None:
        node_id = (await new_node(admin, anyone, "web")).enrolled.node_id
        text = POLICY.replace("user:alice, ", "")
        assert (await admin.put("/policy", json={"text": text}, headers={"if-match": "*"})).status_code == 200
        assert (await tag(alice, node_id, "tag:agents")).status_code == 403
        assert (await tag(alice, node_id, "tag:gpu")).status_code == 200


async def test_a_reader_gives_no_tags_even_as_an_owner(
    admin: Client, anyone: Client, alice: Client, controller: Running
) -> None:
    node_id = (await new_node(admin, anyone, "web")).enrolled.node_id
    async with await member(admin, controller, "alice", role="read") as reader:
        assert (await tag(reader, node_id, "tag:gpu")).status_code == 403


async def test_an_admin_gives_any_tag(admin: Client, anyone: Client, alice: Client) -> None:
    node_id = (await new_node(admin, anyone, "web")).enrolled.node_id
    assert (await tag(admin, node_id, "tag:tools", "tag:undeclared")).status_code == 200


async def test_a_member_is_somebody(admin: Client) -> None:
    response = await admin.post("/tokens", json={"role": "member"})
    assert response.status_code == 422
    assert "needs a user" in response.text
    assert (await admin.post("/tokens", json={"role": "member", "user": "Not A Name"})).status_code == 422
