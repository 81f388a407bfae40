"""What every part of the API promises: problems, roles, cursors, idempotency, limits, secrets that stay secret."""

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.problems import Kind
from controller.server import Running
from controller.wire.enrol import JoinString

from .hosts import Host, new_key, new_node, wireguard_key
from .support import Client, MovableClock, trust


async def token(admin: Client, controller: Running, **wanted: Any) -> Client:
    created = (await admin.post("/tokens", json=wanted)).json()
    return Client(controller, token=created["secret"])


# Bodies with a certificate request, which no example could be: it is signed with the sender's key.
SIGNED = {"/api/v1/enrol", "/api/v1/renew", "/api/v1/services/{name}/certificate"}


class TestProblems:
    @pytest.mark.parametrize(
        ("method", "path", "status", "slug"),
        [
            ("GET", "/nowhere", 404, "not-found"),
            ("GET", "/nodes/", 404, "not-found"),
            ("PUT", "/nodes", 405, "method-not-allowed"),
            ("GET", "/nodes?limit=0", 422, "invalid"),
            ("GET", "/nodes?limit=501", 422, "invalid"),
            ("GET", "/nodes?tag=x", 422, "invalid"),
            ("GET", "/nodes?tags=tag:x", 422, "invalid"),
            ("GET", "/health?x=1", 422, "invalid"),
            ("GET", "/nodes/a%2fb", 404, "not-found"),
            ("GET", "/nodes/a%20b", 422, "invalid"),
            ("GET", "/nodes?cursor=nonsense", 422, "invalid-cursor"),
            ("GET", "/nodes?cursor=WzFd", 422, "invalid-cursor"),
            ("GET", "/audit?cursor=WyJ4Il0", 422, "invalid-cursor"),
            ("GET", "/enrolment-keys?cursor=WyJ4IiwieSJd", 422, "invalid-cursor"),
            ("GET", "/audit?action=nonsense", 422, "invalid"),
        ],
    )
    async def test_are_problem_json(self, admin: Client, method: str, path: str, status: int, slug: str) -> None:
        response = await admin.request(method, path)
        problem = response.json()
        assert response.status_code == status
        assert response.headers["content-type"] == "application/problem+json"
        assert (problem["type"], problem["status"]) == (f"urn:wardmesh:problem:{slug}", status)
        assert problem["detail"]
        assert problem["instance"].endswith(response.headers["x-request-id"])

    async def test_an_unknown_parameter_is_answered_with_those_that_the_description_has(self, admin: Client) -> None:
        paths = (await admin.get("/openapi.json")).json()["paths"]
        lists = {
            path: operations["get"] for path, operations in paths.items() if "get" in operations and "{" not in path
        }
        assert len(lists) > 10
        for path, operation in lists.items():
            described = [found["name"] for found in operation.get("parameters", ()) if found["in"] == "query"]
            problem = (await admin.get(f"https://127.0.0.1:{admin.base_url.port}{path}?zzzzzz=1")).json()
            assert problem["detail"].endswith(f"there is {', '.join(described) or 'none'}"), path

    async def test_method_not_allowed_names_the_allowed(self, admin: Client) -> None:
        assert "GET" in (await admin.put("/nodes")).headers["allow"]

    @pytest.mark.parametrize("body", [b"{", b"", b"[]", b'"x"', b"null", b"[" * 50_000, b"\xff\xfe"])
    async def test_a_body_that_is_not_the_right_json_is_refused(self, admin: Client, body: bytes) -> None:
        response = await admin.post("/static-peers", content=body, headers={"content-type": "application/json"})
        assert response.status_code in {400, 422}
        assert response.headers["content-type"] == "application/problem+json"

    async def test_a_body_that_is_not_called_json_is_refused(self, admin: Client) -> None:
        response = await admin.post("/tokens", content=b"{}", headers={"content-type": "text/plain"})
        assert response.status_code == 422

    async def test_a_mistake_of_ours_is_a_problem_too(
        self, admin: Client, controller: Running, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def mistake() -> None:
            raise ZeroDivisionError("secret detail")

        monkeypatch.setattr(type(controller.context.policy), "current", lambda _self: mistake())
        response = await admin.get("/policy")
        assert (response.status_code, response.json()["type"]) == (500, "urn:wardmesh:problem:internal")
        assert "secret detail" not in response.text

    async def test_kinds_are_distinct(self) -> None:
        assert len({kind.urn for kind in Kind}) == len(Kind)

    async def test_text_that_postgresql_cannot_hold_is_refused(self, admin: Client) -> None:
        assert (await admin.post("/tokens", json={"note": "a\0b"})).status_code == 422
        assert (await admin.post("/enrolment-keys", json={"note": "a\0b"})).status_code == 422

    async def test_numbers_that_no_database_can_hold_are_refused(self, admin: Client) -> None:
        assert (await admin.post("/enrolment-keys", json={"uses": 2**70})).status_code == 422


class TestLimits:
    async def test_a_large_body_is_refused(self, admin: Client) -> None:
        response = await admin.post("/tokens", json={"note": "x" * 100_000})
        assert (response.status_code, response.json()["type"]) == (413, "urn:wardmesh:problem:too-large")

    async def test_a_large_body_without_length_is_refused(self, admin: Client) -> None:
        async def endless() -> Any:
            for _ in range(200):
                yield b" " * 1024

        response = await admin.post("/tokens", content=endless(), headers={"content-type": "application/json"})
        assert (response.status_code, response.json()["type"]) == (413, "urn:wardmesh:problem:too-large")

    async def test_a_policy_may_be_larger(self, admin: Client) -> None:
        text = "# " + "x" * 200_000 + "\n"
        assert (await admin.post("/policy/check", json={"text": text})).status_code == 200


class TestAccess:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"authorization": "Bearer nonsense"},
            {"authorization": "Bearer wma_0000000000_nonsense"},
            {"authorization": "Basic eDp5"},
            {"authorization": "Bearer"},
            {"authorization": "nonsense"},
        ],
    )
    async def test_without_a_good_token_there_is_nothing(self, anyone: Client, headers: dict[str, str]) -> None:
        for path in ("/nodes", "/status", "/policy", "/audit", "/tokens", "/enrolment-keys"):
            response = await anyone.get(path, headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")

    async def test_a_client_with_many_wrong_tokens_waits_and_others_do_not(
        self, anyone: Client, admin: Client, controller: Running
    ) -> None:
        for _ in range(20):
            assert (await anyone.get("/nodes", headers={"authorization": "Bearer wma_0_wrong"})).status_code == 401
        response = await anyone.get("/nodes", headers={"authorization": "Bearer wma_0_wrong"})
        assert (response.status_code, response.json()["type"]) == (429, "urn:wardmesh:problem:too-many-failures")
        assert 0 < int(response.headers["retry-after"]) <= 60
        assert "127.0.0.1" in response.json()["detail"]
        assert (await admin.get("/nodes")).status_code == 429  # the right token, from the address that guesses
        elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2", verify=trust(controller))
        async with Client(controller, token=controller.first_token, transport=elsewhere) as other:
            assert (await other.get("/nodes")).status_code == 200
        assert (await anyone.get("/health")).status_code == 200

    async def test_a_request_without_a_token_guesses_nothing(self, anyone: Client, admin: Client) -> None:
        for _ in range(30):
            assert (await anyone.get("/nodes")).status_code == 401
        assert (await admin.get("/nodes")).status_code == 200

    async def test_a_reader_reads_and_changes_nothing(self, admin: Client, controller: Running) -> None:
        async with await token(admin, controller, role="read") as reader:
            before = (await reader.get("/status")).json()["revision"]
            for path in ("/nodes", "/policy", "/audit", "/enrolment-keys"):
                assert (await reader.get(path)).status_code == 200
            assert (await reader.post("/policy/check", json={"text": ""})).status_code == 200
            match = {"if-match": "*"}
            for response in (
                await reader.post("/tokens", json={}),
                await reader.get("/tokens"),
                await reader.post("/enrolment-keys", json={}),
                await reader.post("/static-peers", json={"name": "x", "public_key": wireguard_key()}),
                await reader.put("/policy", json={"text": ""}, headers=match),
                await reader.patch("/nodes/x", json={}, headers=match),
                await reader.delete("/nodes/x"),
                await reader.delete("/enrolment-keys/x"),
                await reader.delete("/tokens/x"),
            ):
                assert (response.status_code, response.json()["type"]) == (403, "urn:wardmesh:problem:forbidden")
            assert (await reader.get("/status")).json()["revision"] == before

    async def test_a_token_ends(self, admin: Client, controller: Running, clock: MovableClock) -> None:
        async with await token(admin, controller, role="read", ttl=60) as reader:
            assert (await reader.get("/nodes")).status_code == 200
            clock.advance(seconds=61)
            assert (await reader.get("/nodes")).status_code == 401

    async def test_a_revoked_token_is_worth_nothing(self, admin: Client, controller: Running) -> None:
        created = (await admin.post("/tokens", json={"note": "ci"})).json()
        async with Client(controller, token=created["secret"]) as other:
            assert (await other.get("/nodes")).status_code == 200
            assert (await admin.delete(f"/tokens/{created['token']['id']}")).status_code == 204
            assert (await admin.delete(f"/tokens/{created['token']['id']}")).status_code == 204
            assert (await other.get("/nodes")).status_code == 401
        listed = {item["id"]: item for item in (await admin.get("/tokens")).json()["items"]}
        assert listed[created["token"]["id"]]["revoked"] is not None

    async def test_anyone_may_ask_for_health(self, anyone: Client) -> None:
        assert (await anyone.get("/health")).json()["status"] == "ok"


class TestIdempotency:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/enrolment-keys", {"note": "x"}),
            ("/tokens", {"note": "x"}),
            ("/static-peers", {"name": "phone", "public_key": wireguard_key()}),
        ],
    )
    async def test_a_repeated_post_happens_once(self, admin: Client, path: str, body: dict[str, Any]) -> None:
        once = {"idempotency-key": "k1"}
        first, *rest = await asyncio.gather(*(admin.post(path, json=body, headers=once) for _ in range(5)))
        assert {response.status_code for response in (first, *rest)} == {201}
        assert len({response.text for response in (first, *rest)}) == 1
        assert sum("idempotency-replayed" in response.headers for response in (first, *rest)) == 4
        assert len((await admin.get("/audit")).json()["items"]) == 3  # mesh, first token, this

    async def test_another_body_is_refused(self, admin: Client) -> None:
        headers = {"idempotency-key": "k1"}
        await admin.post("/tokens", json={"note": "x"}, headers=headers)
        response = await admin.post("/tokens", json={"note": "y"}, headers=headers)
        assert (response.status_code, response.json()["type"]) == (422, "urn:wardmesh:problem:idempotency-key-reused")

    async def test_another_path_is_refused(self, admin: Client) -> None:
        headers = {"idempotency-key": "k1"}
        await admin.post("/tokens", json={}, headers=headers)
        assert (await admin.post("/enrolment-keys", json={}, headers=headers)).status_code == 422

    async def test_another_admin_does_not_see_the_answer(self, admin: Client, controller: Running) -> None:
        async with await token(admin, controller) as other:
            headers = {"idempotency-key": "k1"}
            first = await admin.post("/tokens", json={}, headers=headers)
            second = await other.post("/tokens", json={}, headers=headers)
        assert first.json()["secret"] != second.json()["secret"]

    async def test_a_refused_post_may_be_repeated_after_the_remedy(self, admin: Client, anyone: Client) -> None:
        taken = await new_node(admin, anyone, "phone")
        send: dict[str, Any] = {
            "json": {"name": "phone", "public_key": wireguard_key()},
            "headers": {"idempotency-key": "k1"},
        }
        assert (await admin.post("/static-peers", **send)).status_code == 409
        await admin.delete(f"/nodes/{taken.enrolled.node_id}")
        assert (await admin.post("/static-peers", **send)).status_code == 201


class TestPolicy:
    GOOD = 'grants:\n  - {from: tag:a, to: tag:b, ip: ["tcp:443"]}\n'

    async def test_there_is_none_at_first(self, admin: Client) -> None:
        response = await admin.get("/policy")
        assert (response.json()["revision"], response.json()["text"]) == (0, "")
        assert response.headers["etag"] == '"0"'

    async def test_is_kept_as_written(self, admin: Client) -> None:
        put = await admin.put("/policy", json={"text": self.GOOD}, headers={"if-match": '"0"'})
        assert put.status_code == 200, put.text
        got = await admin.get("/policy")
        assert got.json() == put.json()
        assert (got.json()["text"], got.headers["etag"]) == (self.GOOD, put.headers["etag"])
        [entry] = (await admin.get("/audit", params={"limit": 1})).json()["items"]
        assert (entry["action"], entry["old"], entry["new"]) == ("admin:policy:apply", None, {"text": self.GOOD})

    async def test_of_two_writers_the_second_is_told(self, admin: Client) -> None:
        put = await admin.put("/policy", json={"text": self.GOOD}, headers={"if-match": '"0"'})
        late = await admin.put("/policy", json={"text": "grants: []\n"}, headers={"if-match": '"0"'})
        assert (put.status_code, late.status_code) == (200, 412)
        assert (await admin.put("/policy", json={"text": self.GOOD})).status_code == 428

    async def test_a_bad_one_is_refused_with_findings_and_the_old_one_stands(self, admin: Client) -> None:
        await admin.put("/policy", json={"text": self.GOOD}, headers={"if-match": "*"})
        response = await admin.put("/policy", json={"text": "grants: nonsense\n"}, headers={"if-match": "*"})
        assert (response.status_code, response.json()["type"]) == (422, "urn:wardmesh:problem:policy-refused")
        assert response.json()["errors"][0]["line"] == 1
        assert (await admin.get("/policy")).json()["text"] == self.GOOD

    async def test_checking_changes_nothing(self, admin: Client) -> None:
        before = (await admin.get("/status")).json()["revision"]
        report = (await admin.post("/policy/check", json={"text": "grants: nonsense\n"})).json()
        assert report["ok"] is False
        assert (await admin.get("/status")).json()["revision"] == before


class TestAudit:
    async def test_pages_and_filters(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "web")
        await admin.delete(f"/nodes/{host.enrolled.node_id}")
        about = (await admin.get("/audit", params={"subject": f"node:{host.enrolled.node_id}"})).json()["items"]
        assert [entry["action"] for entry in about] == ["admin:node:delete", "host:node:enrol"]
        page = (await admin.get("/audit", params={"limit": 2})).json()
        rest = (await admin.get("/audit", params={"cursor": page["next"]})).json()
        assert [entry["seq"] for entry in page["items"] + rest["items"]] == [5, 4, 3, 2, 1]
        by_system = (await admin.get("/audit", params={"actor": "system"})).json()["items"]
        assert [entry["action"] for entry in by_system] == ["system:token:create", "system:mesh:create"]


async def test_secrets_are_in_no_log_and_not_in_the_database(
    admin: Client, anyone: Client, controller: Running, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every secret that was ever shown, after use and misuse, against every log line and every byte on disk."""
    caplog.set_level(logging.DEBUG)
    headers = {"idempotency-key": "k1"}
    joins = [(await admin.post("/enrolment-keys", json={}, headers=headers)).json()["join"] for _ in range(2)]
    key = JoinString.decode(joins[0]).key
    secret = (await admin.post("/tokens", json={}, headers={"idempotency-key": "k2"})).json()["secret"]
    host = Host("web")
    await host.enrol(anyone, key)
    await Host("late").ask(anyone, key)
    broken = host.request(key)
    del broken["name"]
    refused = await anyone.post("/enrol", json=broken)
    misplaced = await anyone.post("/enrol", json={**host.request(key), "surprise": key})
    await anyone.get("/nodes", headers={"authorization": f"Bearer {secret}"})
    await anyone.get(f"/nodes?name={key}")
    assert key not in refused.text + misplaced.text
    audit = (await admin.get("/audit")).text
    stored = b"".join(path.read_bytes() for path in (tmp_path / "state").glob("controller.db*"))
    # The client of this test runs in the same process, and its own log is its own business.
    logged = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("http"))
    assert re.search(r"POST /api/v1/enrol 200", logged)
    for known in (key, secret, controller.first_token or "", joins[0]):
        assert known not in logged
        assert known not in audit
        assert known.encode() not in stored
    assert "PRIVATE KEY" not in logged


async def test_status_counts(admin: Client, anyone: Client) -> None:
    await new_node(admin, anyone, "a")
    await new_node(admin, anyone, "b", approved=False)
    status = (await admin.get("/status")).json()
    assert {key: status[key] for key in ("nodes", "online", "pending", "behind", "addresses_used")} == {
        "nodes": 2,
        "online": 0,
        "pending": 1,
        "behind": 0,
        "addresses_used": 2,
    }
    assert status["addresses_total"] == 65533


async def test_the_openapi_document_is_3_1_and_names_every_problem(anyone: Client) -> None:
    document = (await anyone.get("/openapi.json")).json()
    text = json.dumps(document)
    assert document["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in text
    identifiers = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(set(identifiers)) == len(identifiers)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            problems = [code for code in operation["responses"] if code.startswith(("4", "5"))]
            assert "500" in problems, (method, path)
            if "requestBody" in operation and path not in SIGNED:
                assert operation["requestBody"]["content"]["application/json"]["examples"], (method, path)


async def test_keys_are_shown_without_the_key(admin: Client) -> None:
    key = await new_key(admin, note="for web", tags=["tag:b", "tag:a", "tag:a"])
    [shown] = (await admin.get("/enrolment-keys")).json()["items"]
    assert key.startswith(shown["prefix"] + "_")
    assert (shown["note"], shown["tags"]) == ("for web", ["tag:a", "tag:b"])
    assert (await admin.get(f"/enrolment-keys/{shown['id']}")).json() == shown
