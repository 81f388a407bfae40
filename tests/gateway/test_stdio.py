"""Servers on standard input and output: one process, many callers, and nothing of one that reaches another."""

import asyncio
import json
from typing import Any

import pytest

from agentd.gateway.types import (
    TRANSPORT_RESPONSE,
    TRANSPORT_STREAM,
    TRANSPORT_TERMINATE,
    Call,
    Caller,
    UpstreamError,
    UpstreamRequest,
)

from .stdio_callers import ANN, BOB, begin, facts, messages, pool, request, result_of, tool, whole


async def test_callers_with_the_same_ids_and_tokens_get_their_own() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        held = [
            asyncio.create_task(
                stdio.open(tool(who, session, "hold", who.name, params={"_meta": {"progressToken": "t"}}))
            )
            for who, session in ((ANN, ann), (BOB, bob))
        ]
        responses = await asyncio.gather(*held)
        assert await result_of(stdio, tool(ANN, ann, "release", number=2)) == "released"
        for who, response in zip((ANN, BOB), responses, strict=True):
            progress, final = await messages(response)
            assert progress["params"] == {"progressToken": "t", "progress": 1}
            assert final["id"] == 1
            assert json.loads(final["result"]["content"][0]["text"]) == who.name


async def test_leaving_cancels_the_callers_request_and_no_other() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        streams = [
            await stdio.open(tool(who, session, "hold", who.name, params={"_meta": {"progressToken": 1}}))
            for who, session in ((ANN, ann), (BOB, bob))
        ]
        streams[0].close()
        heard = (await facts(stdio, BOB, bob))["heard"]
        (cancelled,) = [m for m in heard if m.get("method") == "notifications/cancelled"]
        (mine,) = [m for m in heard if m.get("params", {}).get("arguments") == "ann"]
        assert cancelled["params"]["requestId"] == mine["id"]
        await result_of(stdio, tool(BOB, bob, "release", number=2))
        assert (await messages(streams[1]))[-1]["id"] == 1
        with pytest.raises(UpstreamError):
            await whole(streams[0])


async def test_a_caller_cannot_cancel_anothers_request() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        held = await stdio.open(tool(ANN, ann, "hold", "ann", params={"_meta": {"progressToken": 1}}))
        cancel = request(BOB, "notifications/cancelled", {"requestId": 1}, number=None, session=bob)
        assert (await stdio.open(cancel)).status == 202
        await result_of(stdio, tool(BOB, bob, "release", number=2))
        assert (await messages(held))[-1]["id"] == 1


async def test_sessions_are_their_callers() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        assert (await stdio.open(tool(BOB, session, "facts"))).status == 404
        assert (await stdio.open(tool(ANN, "made-up", "facts"))).status == 404
        assert (await stdio.open(tool(ANN, None, "facts"))).status == 400
        assert (await stdio.open(request(ANN, TRANSPORT_TERMINATE, {}, number=None, session=session))).status == 200
        assert (await stdio.open(tool(ANN, session, "facts"))).status == 404


async def test_garbage_from_the_server_is_passed_over() -> None:
    async with pool(per="caller") as stdio:
        session = await begin(stdio, ANN)
        assert await result_of(stdio, tool(ANN, session, "garbage")) == "still here"


async def test_a_server_may_ask_the_caller_that_it_serves() -> None:
    async with pool(per="caller") as stdio:
        session = await begin(stdio, ANN, {"elicitation": {}})
        response = await stdio.open(tool(ANN, session, "ask"))
        first = json.loads((await response.read()).partition(b"data:")[2])
        assert first["method"] == "elicitation/create"
        assert first["id"] != "s1"

        async def respond(number: str, who: Caller = ANN) -> int:
            body = json.dumps({"jsonrpc": "2.0", "id": number, "result": {"action": "accept"}}).encode()
            call = Call("scripted", "legacy", TRANSPORT_RESPONSE, None, None, None, body)
            return (await stdio.open(UpstreamRequest("POST", b"/", (), body, who, call, session))).status

        assert await respond("s1") == 400
        assert await respond(first["id"]) == 202
        assert await respond(first["id"]) == 400
        final = json.loads((await whole(response)).partition(b"data:")[2])
        assert json.loads(final["result"]["content"][0]["text"])["result"] == {"action": "accept"}


async def test_a_shared_server_may_ask_nobody() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN, {"elicitation": {}})
        refusal = await result_of(stdio, tool(ANN, session, "ask"))
        assert refusal["error"]["code"] == -32601


async def test_the_servers_ping_is_answered_by_the_gateway() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        assert (await result_of(stdio, tool(ANN, session, "ping")))["result"] == {}


async def test_what_names_no_request_stays_out_of_a_shared_conversation() -> None:
    for per, count in (("service", 1), ("caller", 2)):
        async with pool(per=per) as stdio:
            session = await begin(stdio, ANN)
            assert len(await messages(await stdio.open(tool(ANN, session, "log")))) == count


async def test_updates_go_to_who_subscribed() -> None:
    async with pool() as stdio:
        ann, bob = await begin(stdio, ANN), await begin(stdio, BOB)
        streams = [
            await stdio.open(request(who, TRANSPORT_STREAM, {}, number=None, session=session))
            for who, session in ((ANN, ann), (BOB, bob))
        ]
        for who, session in ((ANN, ann), (BOB, bob)):
            uri = {"uri": f"file:///{who.name}"}
            await messages(await stdio.open(request(who, "resources/subscribe", uri, session=session)))
        for who, stream in zip((ANN, BOB), streams, strict=True):
            update = json.loads((await stream.read()).partition(b"data:")[2])
            assert update["params"]["uri"] == f"file:///{who.name}"


async def test_a_modern_caller_reaches_a_legacy_server() -> None:
    async with pool() as stdio:

        async def ask(method: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            meta = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "mine": 1}
            response = await stdio.open(request(ANN, method, {**params, "_meta": meta}, era="modern", number="a"))
            (message,) = await messages(response)
            assert message["id"] == "a"
            return response.status, message

        _, found = await ask("server/discover", {})
        assert found["result"]["supportedVersions"] == ["2026-07-28"]
        assert found["result"]["instructions"] == "Be kind"
        assert "logging" not in found["result"]["capabilities"]
        _, listed = await ask("tools/list", {})
        assert listed["result"] == {"tools": [], "ttlMs": 0, "cacheScope": "private", "resultType": "complete"}
        _, called = await ask("tools/call", {"name": "facts", "inputResponses": {}, "requestState": "x"})
        assert json.loads(called["result"]["content"][0]["text"])["params"] == {"name": "facts", "_meta": {"mine": 1}}
        status, missing = await ask("resources/read", {"uri": "x"})
        assert (status, missing["error"]["code"]) == (400, -32602)
        status, removed = await ask("resources/subscribe", {"uri": "x"})
        assert (status, removed["error"]["code"]) == (404, -32601)
        status, unknown = await ask("no/such", {})
        assert (status, unknown["error"]["code"]) == (404, -32601)


async def test_a_modern_caller_listens_to_a_legacy_server() -> None:
    async with pool() as stdio:
        wanted = {"notifications": {"resourceSubscriptions": ["file:///a"], "promptsListChanged": False}}
        stream = await stdio.open(request(ANN, "subscriptions/listen", wanted, era="modern", number=5))
        seen = b""
        while b"resources/updated" not in seen:
            seen += await stream.read()
        acknowledged, update = [json.loads(line[5:]) for line in seen.splitlines() if line.startswith(b"data:")]
        assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
        assert acknowledged["params"]["notifications"] == {"resourceSubscriptions": ["file:///a"]}
        assert update["params"]["_meta"] == {"io.modelcontextprotocol/subscriptionId": 5}
        stream.close()
        heard = (await facts(stdio, ANN, await begin(stdio, ANN)))["heard"]
        assert heard[-2]["method"] == "resources/unsubscribe"


async def test_a_reader_that_is_too_slow_loses_its_answer_and_holds_up_nobody() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        slow = await stdio.open(tool(ANN, session, "flood", params={"_meta": {"progressToken": 1}}))
        assert await result_of(stdio, tool(ANN, session, "echo", "quick", number=2)) == "quick"
        with pytest.raises(UpstreamError, match="too slowly"):
            await whole(slow)


async def test_a_silent_call_begins_as_a_stream() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        response = await stdio.open(tool(ANN, session, "hold", "x"))
        assert dict(response.headers)[b"content-type"] == b"text/event-stream"
        await result_of(stdio, tool(ANN, session, "release", number=2))
        (final,) = await messages(response)
        assert final["id"] == 1
