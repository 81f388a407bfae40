"""What revisions up to 2025-11-25 demand of an intermediary: sessions, streams, resuming; and eras that do not meet."""

import asyncio
import json
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentd.gateway.eras import LEGACY_VERSIONS
from agentd.gateway.types import AuditEvent, Code
from tests.gateway import sdk_server
from tests.gateway.harness import ALICE, BOB, BOUND, Answer, Client, Lab, Running, body, tool
from tests.gateway.upstream import Seen

VERSION = "2025-11-25"
BOBS_GRANT = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["add"]}
INITIALIZE = body(
    "initialize", 0, None, protocolVersion=VERSION, capabilities={}, clientInfo={"name": "old", "version": "0"}
)


def data_of(stream: bytes) -> list[Any]:
    """The messages of a stream of events."""
    return [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]


async def open_session(client: Client) -> str:
    answer = await client.ask("POST", INITIALIZE)
    assert answer.status == 200, answer
    session = answer.get("mcp-session-id")
    assert session is not None
    initialized = body("notifications/initialized", None, None)
    assert (await client.ask("POST", initialized, in_session(session))).status == 202
    return session


def in_session(session: str) -> dict[str, str]:
    return {"mcp-session-id": session, "mcp-protocol-version": VERSION}


async def call(client: Client, session: str, name: str, number: int = 1, **arguments: object) -> Answer:
    data = body("tools/call", number, None, name=name, arguments=arguments)
    return await client.ask("POST", data, in_session(session))


async def test_a_session_works_from_end_to_end(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    session = await open_session(client)
    answer = await call(client, session, "add", a=2, b=3)
    assert answer.get("mcp-session-id") in {None, session}
    (message,) = data_of(answer.body)
    assert message["result"]["structuredContent"] == {"result": 5}
    assert (await client.ask("DELETE", headers=in_session(session))).status == 200
    assert (await call(client, session, "add", a=2, b=3)).status == 404
    events = [record.event for record in running.records.all]
    assert AuditEvent.SESSION_OPENED in events
    assert AuditEvent.SESSION_CLOSED in events


async def test_a_session_is_its_callers_alone(lab: Lab, server: str) -> None:
    running = await lab.gateway(server, grants=[BOBS_GRANT])
    alice, bob = await lab.client(running), await lab.client(running, BOB)
    session = await open_session(alice)
    for method in ("POST", "GET", "DELETE"):
        data = body("tools/list", 5, None) if method == "POST" else b""
        answer = await bob.ask(method, data, in_session(session))
        assert (answer.status, answer.code) == (404, -32600)
    assert (await call(alice, session, "add", a=1, b=1)).status == 200
    assert [record.caller.name for record in running.records.of(AuditEvent.SESSION_REFUSED)] == ["bob"] * 3


@pytest.mark.parametrize("forged", ["", "x", "wms1.", "wms1.x.y", "wms1.\u00e4.b", "ORIGINAL", "CUT", "OTHER"])
async def test_an_id_that_was_not_issued_is_not_found(lab: Lab, server: str, forged: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    session = await open_session(client)
    known = {"ORIGINAL": session.split(".")[-1], "CUT": session[:-1], "OTHER": session[:-1] + "~"}
    answer = await client.ask("POST", body("tools/list", 1, None), in_session(known.get(forged, forged)))
    assert answer.status == 404


async def test_two_session_ids_are_none(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    session = await open_session(client)
    both = {**in_session(session), "Mcp-Session-Id": session}
    assert (await client.ask("POST", body("tools/list", 1, None), both)).status == 404


async def test_the_upstream_sees_its_own_id(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.reply(json.dumps({"jsonrpc": "2.0", "id": seen.json["id"], "result": {}}).encode(), mcp_session_id="s.e=1")

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    session = (await client.ask("POST", INITIALIZE)).get("mcp-session-id")
    assert session is not None
    assert session != "s.e=1"
    assert (await client.ask("POST", body("ping", 1, None), in_session(session))).status == 200
    assert upstream.seen[-1].get("mcp-session-id") == "s.e=1"


async def test_an_impossible_session_id_is_the_upstreams_mistake(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.reply(json.dumps({"jsonrpc": "2.0", "id": 0, "result": {}}).encode(), mcp_session_id="two words")

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    assert (await client.ask("POST", INITIALIZE)).code == Code.UPSTREAM_BROKEN


@pytest.mark.parametrize("version", [None, *LEGACY_VERSIONS])
async def test_every_legacy_version_passes(lab: Lab, version: str | None) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.ask("POST", body("ping", 1, None), {"mcp-protocol-version": version} if version else {})
    assert answer.status == 200
    assert running.records.all[0].call is not None
    assert running.records.all[0].call.era == "legacy"


@pytest.mark.parametrize("version", ["1999-01-01", "x", ""])
async def test_an_invalid_version_is_refused(lab: Lab, version: str) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    assert (await client.ask("POST", body("ping", 1, None), {"mcp-protocol-version": version})).status == 400
    assert upstream.seen == []


@pytest.mark.parametrize("headers", [{"mcp-method": "tools/list"}, {"mcp-name": "other"}, {"mcp-name": "=?base64?!?="}])
async def test_mirrored_headers_must_agree_in_this_era_too(lab: Lab, headers: dict[str, str]) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.ask("POST", body("tools/call", 1, None, name="add", arguments={}), headers)
    assert (answer.status, answer.code) == (400, -32020)
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("name", ["Mcp-Method", "Mcp-Name", "MCP-Protocol-Version"])
async def test_a_routing_header_that_comes_twice_is_refused_without_a_body_too(
    lab: Lab, method: str, name: str
) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.ask(method, headers={name: VERSION, name.lower(): VERSION})
    assert (answer.status, answer.code) == (400, -32020)
    assert upstream.seen == []


async def test_the_get_stream_carries_what_the_server_says(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client, listener = await lab.client(running), await lab.client(running)
    session = await open_session(client)
    listener.send("GET", headers={**in_session(session), "accept": "text/event-stream"})
    status, headers = await listener.head()
    assert status == 200
    assert dict(headers)["content-type"].startswith("text/event-stream")


async def test_a_lost_stream_is_resumed_and_the_call_was_not_cancelled(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client, caller = await lab.client(running), await lab.client(running)
    session = await open_session(client)
    data = body("tools/call", 9, None, name="count", arguments={"to": 30, "name": "resumed", "pause": 0.02})
    caller.send("POST", data, in_session(session))
    await caller.head()
    first = await caller.chunk()
    while b"id: " not in first:
        first += await caller.chunk()
    last = [line[4:] for line in first.splitlines() if line.startswith(b"id: ")][-1].decode()
    caller.vanish()
    seen = await resume_until_answered(lab, running, session, last)
    assert data_of(seen)[-1]["id"] == 9
    assert "resumed" in sdk_server.finished
    assert "resumed" not in sdk_server.cancelled


async def resume_until_answered(lab: Lab, running: Running, session: str, last: str) -> bytes:
    """What a client gets that comes back whenever its stream ends or is silent, as real ones do.

    They have to: the SDK's server replays without listening while it still takes the lost stream for a read one, and
    forgets who listens to what is said between the end of its replay and the beginning of its listening.
    """
    seen = b""
    async with asyncio.timeout(BOUND):
        while b'"result"' not in seen:
            client = await lab.client(running)
            client.send("GET", headers={**in_session(session), "accept": "text/event-stream", "last-event-id": last})
            assert (await client.head())[0] == 200
            with suppress(TimeoutError):
                while b'"result"' not in seen and (part := await asyncio.wait_for(client.chunk(), 1)):
                    seen += part
            client.vanish()
            whole = seen[: seen.rfind(b"\r\n\r\n") + 4]
            last = [last, *(line[4:].decode() for line in whole.splitlines() if line.startswith(b"id: "))][-1]
    return seen


async def test_a_resumed_list_is_filtered_too(lab: Lab) -> None:
    listed = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "add"}, {"name": "secret"}]}}

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        whole = b"id: 8\ndata: " + json.dumps(listed).encode() + b"\n\n"
        seen.chunk(whole[:30])
        seen.chunk(whole[30:])
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour), grants=[BOBS_GRANT])
    client = await lab.client(running, BOB)
    answer = await client.ask("GET", headers={"accept": "text/event-stream", "last-event-id": "7"})
    assert b"secret" not in answer.body
    assert b"add" in answer.body
    assert b"id: 8" in answer.body


async def test_get_is_refused_where_the_server_refuses_it(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.reply(b"", "405 Method Not Allowed", allow="POST")

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    assert (await client.ask("GET", headers={"accept": "text/event-stream"})).status == 405
    assert (await client.ask("DELETE")).status == 405


async def test_a_client_answers_the_servers_requests(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.ask("POST", b'{"jsonrpc":"2.0","id":7,"result":{"roots":[]}}')
    assert (answer.status, answer.body) == (202, b"")
    assert upstream.seen[0].json["result"] == {"roots": []}


async def test_somebody_without_any_grant_gets_no_stream(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    bob = await lab.client(running, BOB)
    for method, data in (("GET", b""), ("DELETE", b""), ("POST", b'{"jsonrpc":"2.0","id":7,"result":{}}')):
        assert (await bob.ask(method, data)).status == 403


# --- eras that do not meet


async def test_a_modern_call_to_a_legacy_server_is_told_the_versions(lab: Lab) -> None:
    answers = [
        b'{"jsonrpc":"2.0","id":"server-error","error":{"code":-32600,"message":"Bad Request: Unsupported protocol"}}',
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: Server not initialized"}}',
        b"Bad Request",
        b"",
    ]

    async def behaviour(seen: Seen) -> None:
        data = answers[len(upstream.seen) - 1]
        seen.reply(data, "400 Bad Request", "application/json" if data.startswith(b"{") else "text/plain")

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for _ in answers:
        answer = await client.call(tool())
        assert (answer.status, answer.code) == (400, -32022)
        assert answer.json["error"]["data"]["supported"] == list(LEGACY_VERSIONS)


@pytest.mark.parametrize(("status", "code"), [(400, -32602), (400, -32020), (404, -32601)])
async def test_an_initialize_to_a_modern_server_is_told_the_versions(lab: Lab, status: int, code: int) -> None:
    async def behaviour(seen: Seen) -> None:
        error = {"jsonrpc": "2.0", "id": 0, "error": {"code": code, "message": "no"}}
        seen.reply(json.dumps(error).encode(), f"{status} No")

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    answer = await client.ask("POST", INITIALIZE)
    assert (answer.status, answer.code) == (400, -32022)
    assert answer.json["error"]["data"] == {"supported": ["2026-07-28"], "requested": VERSION}
    assert "2026-07-28" in answer.json["error"]["message"]


async def test_a_modern_servers_own_errors_pass(lab: Lab) -> None:
    errors = [(400, -32020), (400, -32021), (400, -32022), (400, -32602), (404, -32601), (429, -32000)]

    async def behaviour(seen: Seen) -> None:
        status, code = errors[len(upstream.seen) - 1]
        error = {"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "mine", "data": {"supported": ["x"]}}}
        seen.reply(json.dumps(error).encode(), f"{status} No")

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for status, code in errors:
        answer = await client.call(tool())
        assert (answer.status, answer.code, answer.json["error"]["message"]) == (status, code, "mine")


def test_the_fixture_is_where_it_says(server: str) -> None:
    assert urlsplit(server).hostname == ALICE
