"""What revision 2026-07-28 demands of an intermediary, line by line, in front of a real MCP server."""

import base64
import json
from urllib.parse import urlsplit

import pytest

from agentd.gateway.types import AuditEvent, Code
from tests.gateway.harness import ALICE, BOB, META, MODERN, Lab, body, modern, tool
from tests.gateway.upstream import Seen

BOBS_GRANT = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["add", "count"]}


async def test_a_call_is_answered(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    answer = await client.call(tool("add", a=2, b=3))
    assert answer.status == 200
    assert answer.json["result"]["structuredContent"] == {"result": 5}
    assert answer.get("mcp-session-id") is None


async def test_the_sdk_says_the_same_with_and_without_the_gateway(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    through = await lab.client(running)
    direct = await lab.connect(ALICE, urlsplit(server).port or 0)
    for request in (
        tool("add", a=1, b=1),
        tool("add", a="x"),
        tool("nothing"),
        modern("resources/read", name="test://one"),
        modern("resources/read", name="test://none"),
        modern("prompts/get", name="greet", arguments={"who": "you"}),
        modern("server/discover"),
        modern("no/such/method"),
    ):
        expected, got = await direct.call(request), await through.call(request)
        assert (got.status, got.json) == (expected.status, expected.json), request


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"mcp-method": None}, 400, -32020),
        ({"mcp-method": "TOOLS/CALL"}, 400, -32020),
        ({"mcp-method": "tools/list"}, 400, -32020),
        ({"mcp-name": None}, 400, -32020),
        ({"mcp-name": "ADD"}, 400, -32020),
        ({"mcp-name": "echo"}, 400, -32020),
        ({"mcp-name": "=?base64?!!!?="}, 400, -32020),
        ({"mcp-name": "=?base64?YWRkZA=?="}, 400, -32020),
        ({"mcp-name": "=?base64?YWRl?="}, 400, -32020),
        ({"mcp-name": "=?BASE64?YWRk?="}, 400, -32020),
        ({"mcp-name": "ad\u00e4"}, 400, -32020),
        ({"mcp-protocol-version": None}, 400, -32020),
        ({"mcp-protocol-version": "2025-11-25"}, 400, -32020),
        ({"mcp-protocol-version": "1900-01-01"}, 400, -32020),
    ],
)
async def test_headers_that_contradict_the_body_are_refused(
    lab: Lab, server: str, change: dict[str, str], status: int, code: int
) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    data, headers = tool("add", a=1, b=2)
    answer = await client.ask("POST", data, {**headers, **change})
    assert (answer.status, answer.code, answer.json["id"]) == (status, code, 1)
    assert running.records.of(AuditEvent.CALL_ALLOWED) == []
    assert len(running.records.of(AuditEvent.REQUEST_REFUSED)) == 1


@pytest.mark.parametrize("name", ["  add \t", "=?base64?YWRk?="])
async def test_a_padded_or_encoded_name_is_accepted(lab: Lab, server: str, name: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    data, headers = tool("add", a=1, b=2)
    assert (await client.ask("POST", data, {**headers, "mcp-name": name})).status == 200


@pytest.mark.parametrize("name", ["Mcp-Name: add", "Mcp-Method: tools/call", f"Mcp-Protocol-Version: {MODERN}"])
async def test_a_routing_header_that_comes_twice_is_refused(lab: Lab, server: str, name: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    data, headers = tool("add", a=1, b=2)
    first, _, value = name.partition(": ")
    answer = await client.ask("POST", data, {**headers, first.upper(): value})
    assert (answer.status, answer.code) == (400, -32020)


async def test_an_unknown_version_is_told_which_ones_are_known(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    meta = {**META, "io.modelcontextprotocol/protocolVersion": "2099-01-01"}
    data = body("tools/list", meta=meta)
    answer = await client.ask("POST", data, {"mcp-protocol-version": "2099-01-01", "mcp-method": "tools/list"})
    assert (answer.status, answer.code) == (400, -32022)
    assert MODERN in answer.json["error"]["data"]["supported"]
    assert answer.json["error"]["data"]["requested"] == "2099-01-01"


@pytest.mark.parametrize("missing", sorted(META.keys() - {"io.modelcontextprotocol/clientInfo"}))
async def test_missing_meta_is_refused(lab: Lab, server: str, missing: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    data = body("tools/list", meta={key: value for key, value in META.items() if key != missing})
    answer = await client.ask("POST", data, {"mcp-protocol-version": MODERN, "mcp-method": "tools/list"})
    assert (answer.status, answer.code) == (400, -32602)


async def test_an_unknown_method_is_not_found(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    answer = await client.call(modern("no/such/method"))
    assert (answer.status, answer.code) == (404, -32601)


async def test_an_annotated_header_that_contradicts_its_argument_is_refused(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    request = tool("by_region", region="eu", query="q")
    assert (await client.call(request, mcp_param_region="eu")).json["result"]["structuredContent"] == {"result": "eu:q"}
    wrong = await client.call(request, mcp_param_region="us")
    assert (wrong.status, wrong.code) == (400, -32020)
    without = await client.call(request)
    assert (without.status, without.code) == (400, -32020)


async def test_unknown_parameter_headers_are_forwarded_untouched(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    odd = '=?base64?not base64?= \u00e4;,"x"'
    await client.call((tool()[0], {**tool()[1], "Mcp-Param-x": odd, "Mcp-Param-a_b": "c", "X-Custom": "a, b"}))
    assert upstream.seen[0].get("mcp-param-x") == odd
    assert upstream.seen[0].get("mcp-param-a_b") == "c"
    assert upstream.seen[0].get("x-custom") == "a, b"
    assert upstream.seen[0].body == tool()[0]


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "PATCH", "HEAD", "OPTIONS"])
async def test_the_modern_endpoint_takes_only_posts(lab: Lab, server: str, method: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    answer = await client.ask(method, headers={"mcp-protocol-version": MODERN, "content-type": "text/plain"})
    assert (answer.status, answer.get("allow")) == (405, "POST")


async def test_session_headers_are_ignored_and_never_made(lab: Lab) -> None:
    async def minting(seen: Seen) -> None:
        seen.reply(json.dumps({"jsonrpc": "2.0", "id": 1, "result": {}}).encode(), mcp_session_id="abc")

    upstream = await lab.upstream(minting)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.call(tool(), mcp_session_id="foreign", last_event_id="7")
    assert answer.status == 200
    assert answer.get("mcp-session-id") is None
    assert upstream.seen[0].get("mcp-session-id") is None
    assert upstream.seen[0].get("last-event-id") is None


async def test_a_notification_is_accepted_with_an_empty_body(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    answer = await client.ask("POST", body("notifications/x", None, None), {"mcp-protocol-version": MODERN})
    assert (answer.status, answer.body) == (202, b"")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"[" + tool()[0] + b"]", -32600),
        (b"[]", -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"tools/list"}', -32600),
        (b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"add"}}', -32600),
        (b"not json", -32700),
        (b"", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","method":"b"}', -32600),
        (b"\xff\xfe", -32700),
        (b"[" * 100_000, -32700),
    ],
)
async def test_what_is_not_one_request_is_refused(lab: Lab, server: str, data: bytes, code: int) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    answer = await client.ask("POST", data, {"mcp-protocol-version": MODERN, "mcp-method": "tools/call"})
    assert (answer.status, answer.code) == (400, code)


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
@pytest.mark.parametrize("path", ["/mcp", "/.well-known/oauth-protected-resource"])
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://svc.mesh.internal.evil.example", "x"])
async def test_a_foreign_page_is_refused_everywhere(lab: Lab, server: str, method: str, path: str, origin: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    data, headers = tool("add", a=1, b=2) if method == "POST" else (b"", {})
    assert (await client.ask(method, data, {**headers, "origin": origin}, path)).status == 403


async def test_our_own_and_named_pages_are_welcome(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    for origin in (f"http://svc.mesh.internal:{running.port}", "https://console.example"):
        assert (await client.call(tool("add", a=1, b=2), origin=origin)).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "svc.mesh.internal:1", "svc", ""])
async def test_a_host_that_is_not_ours_is_misdirected(lab: Lab, server: str, host: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    assert (await client.call(tool("add", a=1, b=2), host=host)).status == 421


async def test_another_path_is_not_found(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    assert (await client.ask("POST", *tool(), path="/other")).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=utf-16"},
        {"content-type": None},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-encoding": "gzip"},
    ],
)
async def test_a_body_that_is_not_plain_json_is_refused(lab: Lab, server: str, headers: dict[str, str]) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    data, given = tool("add", a=1, b=2)
    assert (await client.ask("POST", data, {**given, **headers})).status == 415


async def test_lists_show_what_the_caller_may_use_and_are_private(lab: Lab, server: str) -> None:
    running = await lab.gateway(server, grants=[BOBS_GRANT])
    for address, names in ((ALICE, {"add", "echo", "secret", "by_region", "count"}), (BOB, {"add", "count"})):
        client = await lab.client(running, address)
        first, second = (await client.call(modern("tools/list")), await client.call(modern("tools/list")))
        result = first.json["result"]
        assert {one["name"] for one in result["tools"]} == names
        assert result["cacheScope"] == "private"
        assert first.body == second.body


async def test_a_denied_tool_is_an_error_that_names_the_grant(lab: Lab, server: str) -> None:
    running = await lab.gateway(server, grants=[BOBS_GRANT])
    client = await lab.client(running, BOB)
    answer = await client.call(tool("secret"))
    assert (answer.status, answer.code, answer.json["id"]) == (200, Code.DENIED, 1)
    assert "secret" in answer.json["error"]["data"]["grant_needed"]
    assert [record.caller.name for record in running.records.of(AuditEvent.CALL_DENIED)] == ["bob"]
    assert running.records.of(AuditEvent.CALL_ALLOWED) == []


async def test_identity_is_passed_on_and_cannot_be_forged(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, grants=[BOBS_GRANT])
    client = await lab.client(running, BOB)
    forged = {
        "Wardmesh-Node": "alice",
        "WARDMESH-TAGS": "tag:admin",
        "Wardmesh_Node": "alice",
        "wardmesh-node_id": "node-alice",
        "X-Forwarded-For": ALICE,
        "X_Forwarded_For": ALICE,
        "Forwarded": f"for={ALICE}",
        "Mcp_Name": "secret",
        "Content_Length": "0",
        "Connection": "keep-alive, x-secret-hop",
        "X-Secret-Hop": "1",
        "Keep-Alive": "timeout=1",
        "Proxy-Authorization": "Basic eA==",
        "TE": "trailers",
    }
    data, headers = tool("add", a=1, b=2)
    assert (await client.ask("POST", data, {**headers, **forged})).status == 200
    (seen,) = upstream.seen
    got = [(name, value) for name, value in seen.headers if "wardmesh" in name]
    assert got == [("wardmesh-node", "bob"), ("wardmesh-node-id", "node-bob"), ("wardmesh-tags", "tag:bob")]
    names = [name for name, _ in seen.headers]
    for name in (
        "x-forwarded-for",
        "forwarded",
        "keep-alive",
        "proxy-authorization",
        "te",
        "x-secret-hop",
        "connection",
    ):
        assert name not in names
    assert not any("_" in name for name in names)
    assert len(names) == len(set(names))
    assert ALICE not in dict(seen.headers).get("host", "") or seen.get("host") == f"127.0.0.1:{upstream.port}"


@pytest.mark.parametrize("size", [1, 900_000])
async def test_names_beyond_ascii_travel_in_base64(lab: Lab, size: int) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    name = "w\u00e9ather"
    data, headers = modern("tools/call", name=name, arguments={"text": "\u4e16" * size})
    headers["mcp-name"] = f"=?base64?{base64.b64encode(name.encode()).decode()}?="
    assert (await client.ask("POST", data, headers)).status == 200
    assert upstream.seen[0].body == data


async def test_what_cannot_be_recorded_is_not_done(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    running.records.room = False
    client = await lab.client(running)
    answer = await client.call(tool())
    assert (answer.status, answer.code) == (503, Code.AUDIT_FULL)
    assert upstream.seen == []


async def test_every_call_is_recorded_twice_with_what_happened(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.call(tool("add", a=1))
    allowed, ended = running.records.all
    assert (allowed.event, ended.event) == (AuditEvent.CALL_ALLOWED, AuditEvent.CALL_ENDED)
    assert allowed.id == ended.id
    assert ended.caller.name == "alice"
    assert ended.call is not None
    assert (ended.call.name, ended.call.arguments) == ("add", {"a": 1})
    assert ended.call.client_info is not None
    assert ended.call.client_info.name == "test"
    assert ended.outcome is not None
    assert (ended.outcome.status, ended.outcome.bytes_out) == (200, len(answer.body))
    assert ended.outcome.problem is None


async def test_one_caller_has_only_so_many_requests_under_way(lab: Lab) -> None:
    async def silent(seen: Seen) -> None:
        seen.start_events()
        await seen.gone.wait()

    upstream = await lab.upstream(silent)
    running = await lab.gateway(upstream, grants=[{**BOBS_GRANT, "tools": ["*"]}], limits={"streams": 2})
    for number in range(2):
        client = await lab.client(running)
        client.send("POST", *tool(number=number))
        assert (await client.head())[0] == 200
    refused = await (await lab.client(running)).call(tool(number=3))
    assert refused.code == Code.TOO_MANY_STREAMS
    other = await lab.client(running, BOB)
    other.send("POST", *tool())
    assert (await other.head())[0] == 200
