"""Calls like one before are passed on without a task: each is judged, recorded and answered as itself.

`warm` sends a call until the next one like it takes the shortcut; `taken` counts those that did.
"""

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from agentd.gateway import shortcut
from agentd.gateway.http.client import UpstreamConnection
from agentd.gateway.http.exchange import Exchange
from agentd.gateway.http.heads import KnownAnswers
from agentd.gateway.identity import StaticIdentity
from agentd.gateway.types import AuditEvent, Code, TraceContext
from tests.gateway.harness import ALICE, BOB, CALLERS, Answer, Lab, body, modern, soon, tool
from tests.gateway.upstream import Seen, echo
from tests.gateway.warming import LEGACY, changed, legacy, warm

GRANT = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["add", "other"]}


async def test_each_call_is_passed_answered_and_recorded_as_itself(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    del upstream.seen[:], running.records.all[:], taken[:]
    numbers: list[object] = [7, "seven", 'quo"te %d', -1, 2**60]
    for number in numbers:
        answer = await client.call(tool(number=number, text=f"for {number}"))
        assert (answer.status, answer.json["id"]) == (200, number)
    assert len(taken) == len(numbers)
    assert [seen.body for seen in upstream.seen] == [tool(number=one, text=f"for {one}")[0] for one in numbers]
    assert all(seen.get("content-length") == str(len(seen.body)) for seen in upstream.seen)
    allowed, ended = running.records.of(AuditEvent.CALL_ALLOWED), running.records.of(AuditEvent.CALL_ENDED)
    assert [record.call.request_id for record in allowed if record.call is not None] == numbers
    assert [record.call.arguments for record in allowed if record.call] == [{"text": f"for {one}"} for one in numbers]
    assert [record.id for record in ended] == [record.id for record in allowed]
    assert len({record.id for record in ended}) == len(numbers)
    told = [record.outcome.bytes_in for record in ended if record.outcome is not None]
    assert told == [len(seen.body) for seen in upstream.seen]


async def test_callers_with_the_same_bytes_stay_who_they_are(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, grants=[GRANT])
    alice, bob = await lab.client(running, ALICE), await lab.client(running, BOB)
    await warm(alice, taken)
    await warm(bob, taken)
    del upstream.seen[:]
    for client in (alice, bob, alice):
        assert (await client.call(tool())).status == 200
    assert [seen.get("wardmesh-node") for seen in upstream.seen] == ["alice", "bob", "alice"]


async def test_a_session_in_a_known_head_is_its_callers_alone(lab: Lab, taken: list[Exchange]) -> None:
    async def behaviour(seen: Seen) -> None:
        if seen.json["method"] == "initialize":
            data = json.dumps({"jsonrpc": "2.0", "id": seen.json["id"], "result": {}}).encode()
            seen.reply(data, mcp_session_id="upstreams-own")
        else:
            await echo(seen)

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream, grants=[GRANT])
    alice, bob = await lab.client(running, ALICE), await lab.client(running, BOB)
    opened = await alice.ask("POST", body("initialize", 0, None, protocolVersion="2025-06-18"), LEGACY)
    session = opened.get("mcp-session-id") or ""
    request = legacy(**{"mcp-session-id": session})
    await warm(alice, taken, request)
    assert upstream.seen[-1].get("mcp-session-id") == "upstreams-own"
    assert (await bob.call(request)).status == 404
    assert (await alice.call(request)).status == 200


async def test_a_policy_that_changed_between_two_equal_calls_decides_the_second(
    lab: Lab, taken: list[Exchange]
) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    await running.adopt([], without_alice=True)
    seen = len(upstream.seen)
    assert (await client.call(tool())).code == Code.DENIED
    assert len(upstream.seen) == seen


async def test_a_grant_that_expired_between_two_equal_calls_allows_no_more(
    lab: Lab, taken: list[Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await lab.gateway(await lab.upstream(), grants=[{**GRANT, "expires": 2e9}])
    client = await lab.client(running, BOB)
    await warm(client, taken)
    monkeypatch.setattr("time.time", lambda: 2e9 + 1)
    assert (await client.call(tool())).code == Code.DENIED


async def test_a_caller_that_left_between_two_equal_calls_gets_no_answer(lab: Lab, taken: list[Exchange]) -> None:
    identity = StaticIdentity(CALLERS)
    running = await lab.gateway(await lab.upstream(), identity=identity)
    client = await lab.client(running)
    await warm(client, taken)
    del identity.callers[ALICE]
    client.send("POST", *tool())
    assert await client.rest() == b""


async def test_an_address_that_became_another_callers_is_judged_as_theirs(lab: Lab, taken: list[Exchange]) -> None:
    identity = StaticIdentity(CALLERS)
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, identity=identity)
    client = await lab.client(running)
    await warm(client, taken)
    identity.callers[ALICE] = CALLERS[BOB]
    assert (await client.call(tool())).code == Code.DENIED


async def test_arguments_are_judged_for_every_call(lab: Lab, taken: list[Exchange]) -> None:
    rule = {"argument": "text", "tests": [{"test": "pattern", "pattern": "[a-z]*"}]}
    rules = {**GRANT, "args": [{"tools": ["add"], "arguments": [rule]}]}
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, grants=[rules])
    client = await lab.client(running, BOB)
    await warm(client, taken, tool(text="good"))
    seen = len(upstream.seen)
    assert (await client.call(tool(text="Evil"))).code == Code.ARGUMENT_DENIED
    assert (await client.call(tool(nothing="good"))).code == Code.ARGUMENT_DENIED
    assert len(upstream.seen) == seen
    assert (await client.call(tool(text="good"))).status == 200


RATE = {"calls": 8, "seconds": 3600}


@pytest.mark.parametrize(
    ("grant", "service"),
    [({"limits": [{"tools": ["add"], "rate": RATE}]}, {}), ({}, {"limits": {"calls": RATE}})],
    ids=["of a grant", "of the service"],
)
async def test_a_rate_is_counted_for_every_call(
    lab: Lab, taken: list[Exchange], grant: dict[str, Any], service: dict[str, Any]
) -> None:
    running = await lab.gateway(await lab.upstream(), grants=[{**GRANT, **grant}], **service)
    client = await lab.client(running, BOB)
    answers = [await client.call(tool()) for _ in range(10)]
    assert [b'"error"' in answer.body for answer in answers] == [False] * 8 + [True] * 2
    assert taken
    assert {answer.code for answer in answers[8:]} == {Code.TOO_MANY_CALLS}
    assert len(running.records.of(AuditEvent.LIMIT_BREACHED)) == 1


@pytest.mark.parametrize(
    "request_",
    [
        modern("prompts/get", 1, "greet", arguments={"who": "you"}),
        modern("prompts/get", 1, "greet"),
        modern("resources/read", 1, "test://one"),
        legacy("add"),
        (body("resources/read", 1, None, uri="test://one"), LEGACY),
    ],
    ids=["a prompt", "a prompt without arguments", "a resource", "a legacy call", "a legacy resource"],
)
async def test_what_names_one_thing_takes_the_shortcut_and_is_recorded_alike(
    lab: Lab, taken: list[Exchange], request_: tuple[bytes, dict[str, str]]
) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    assert (await client.call(request_)).status == 200
    await warm(client, taken, request_)
    await soon(lambda: running.records.all[-1].event is AuditEvent.CALL_ENDED)
    first, *_, last = (replace(record, time=0.0, id="") for record in running.records.of(AuditEvent.CALL_ALLOWED))
    assert first.call is not None
    assert last.call is not None
    assert replace(first, call=replace(first.call, params={})) == replace(last, call=replace(last.call, params={}))


async def test_what_a_caller_may_not_use_is_denied_behind_a_known_head(lab: Lab, taken: list[Exchange]) -> None:
    grants = [{**GRANT, "prompts": ["greet"], "resources": ["test://one"]}]
    upstream = await lab.upstream()
    client = await lab.client(await lab.gateway(upstream, grants=grants), BOB)
    await warm(client, taken, (body("resources/read", 1, None, uri="test://one"), LEGACY))
    await warm(client, taken, (body("prompts/get", 1, None, name="greet"), LEGACY))
    seen = len(upstream.seen)
    for method, named in (("resources/read", {"uri": "greet"}), ("prompts/get", {"name": "test://one"})):
        answer = await client.ask("POST", body(method, 1, None, **named), LEGACY)
        assert answer.code == Code.DENIED
    assert (await client.call(legacy("greet"))).code == Code.DENIED
    assert len(upstream.seen) == seen


async def test_each_call_is_recorded_with_its_own_trace(lab: Lab, taken: list[Exchange]) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    await warm(client, taken, (changed(meta={"traceparent": "00-first-01"}), tool()[1]))
    traces = [{"traceparent": "00-a-01", "tracestate": "x=1"}, {}, {"traceparent": "00-b-01"}]
    before = len(taken)
    for trace in traces:
        assert (await client.ask("POST", changed(meta=trace), tool()[1])).status == 200
    assert len(taken) == before + 3
    recorded = [record.call.trace for record in running.records.of(AuditEvent.CALL_ALLOWED)[-3:] if record.call]
    assert recorded == [TraceContext("00-a-01", "x=1"), None, TraceContext("00-b-01")]


async def test_a_legacy_call_with_another_progress_token_is_a_call_like_the_others(
    lab: Lab, taken: list[Exchange]
) -> None:
    client = await lab.client(await lab.gateway(await lab.upstream()))
    await warm(client, taken, legacy())
    before = len(taken)
    for number in range(3):
        meta = {"progressToken": number}
        request = body("tools/call", number, meta, name="add", arguments={"a": number}), LEGACY
        assert (await client.call(request)).json["id"] == number
    assert len(taken) == before + 3


async def test_what_follows_a_call_in_one_segment_is_served_after_it(lab: Lab, taken: list[Exchange]) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    await warm(client, taken)
    for number in range(3):
        client.send("POST", *tool(number=number))
    assert [(await client.answer()).json["id"] for _ in range(3)] == [0, 1, 2]


async def test_a_call_that_comes_while_another_runs_is_answered_after_it(lab: Lab, taken: list[Exchange]) -> None:
    held: list[Seen] = []

    async def behaviour(seen: Seen) -> None:
        if seen.json["id"] == "slow":
            held.append(seen)
        else:
            await echo(seen)

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    await warm(client, taken)
    client.send("POST", *tool(number="slow"))
    await soon(lambda: held)
    client.send("POST", *tool(number="next"))
    held[0].result()
    assert [(await client.answer()).json["id"] for _ in range(2)] == ["slow", "next"]


async def test_a_stream_begins_after_the_shortcut_and_passes_whole(lab: Lab, taken: list[Exchange]) -> None:
    async def behaviour(seen: Seen) -> None:
        if seen.json["id"] != "stream":
            await echo(seen)
            return
        seen.start_events()
        for data in (b'{"jsonrpc":"2.0","method":"notifications/x"}', b'{"jsonrpc":"2.0","id":"stream","result":{}}'):
            seen.chunk(b"data: " + data + b"\n\n")
            await seen.writer.drain()
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    await warm(client, taken)
    before = len(taken)
    answer = await client.call(tool(number="stream"))
    assert len(taken) == before + 1
    assert answer.body.count(b"data: ") == 2
    assert b'"id":"stream"' in answer.body
    await warm(client, taken)


async def begun_and_held(lab: Lab, taken: list[Exchange], request: tuple[bytes, dict[str, str]], **more: Any) -> Any:
    """A call that took the shortcut and has no answer."""
    held: list[Seen] = []

    async def behaviour(seen: Seen) -> None:
        if seen.json["id"] == "held":
            held.append(seen)
            await seen.gone.wait()
        else:
            await echo(seen)

    running = await lab.gateway(await lab.upstream(behaviour), **more)
    client = await lab.client(running)
    await warm(client, taken, request)
    before = len(taken)
    data, headers = request
    client.send("POST", data.replace(b'"id":1', b'"id":"held"'), headers)
    await soon(lambda: held)
    assert len(taken) == before + 1
    return running, client, held[0]


async def test_a_modern_client_that_goes_cancels_its_call(lab: Lab, taken: list[Exchange]) -> None:
    running, client, held = await begun_and_held(lab, taken, tool())
    client.vanish()
    await asyncio.wait_for(held.gone.wait(), 30)
    await soon(lambda: len(running.gateway.live) == 0)
    (ended,) = [one for one in running.records.of(AuditEvent.CALL_ENDED) if one.call.request_id == "held"]
    assert ended.outcome.problem == "the client went away"


async def test_a_legacy_client_that_goes_has_not_cancelled(lab: Lab, taken: list[Exchange]) -> None:
    running, client, held = await begun_and_held(lab, taken, legacy())
    client.vanish()
    await soon(lambda: taken[-1].gone)
    held.result(said="to nobody")
    await soon(lambda: running.records.all[-1].event is AuditEvent.CALL_ENDED)
    assert not held.gone.is_set()
    assert len(running.gateway.live) == 0


async def test_a_call_is_revoked_while_it_has_no_answer(lab: Lab, taken: list[Exchange]) -> None:
    running, client, held = await begun_and_held(lab, taken, tool())
    await running.adopt([], without_alice=True)
    assert await client.rest() == b""
    await asyncio.wait_for(held.gone.wait(), 30)
    await soon(lambda: running.records.of(AuditEvent.STREAM_REVOKED))


async def test_calls_under_way_count_against_the_bound(lab: Lab, taken: list[Exchange]) -> None:
    running, _, _ = await begun_and_held(lab, taken, tool(), limits={"streams": 1}, grants=[GRANT])
    assert (await (await lab.client(running, BOB)).call(tool())).status == 200  # leaves a kept connection
    other = await lab.client(running)
    assert (await other.call(tool())).code == Code.TOO_MANY_STREAMS


async def test_a_call_that_cannot_be_recorded_is_not_made(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    running.records.room = False
    seen = len(upstream.seen)
    assert (await client.call(tool())).code == Code.AUDIT_FULL
    assert len(upstream.seen) == seen
    running.records.room = True
    assert (await client.call(tool())).status == 200


async def test_a_gateway_that_stops_lets_the_call_end_and_says_that_it_was_the_last(
    lab: Lab, taken: list[Exchange]
) -> None:
    running, client, held = await begun_and_held(lab, taken, tool())
    closing = asyncio.create_task(running.runtime.close(30))
    await soon(lambda: running.gateway.stopping)
    held.result()
    answer: Answer = await client.answer()
    assert (answer.json["id"], answer.get("connection")) == ("held", "close")
    await closing


async def test_a_call_that_is_cancelled_as_its_answer_comes_leaves_the_connection_to_the_next(lab: Lab) -> None:
    async def silent(seen: Seen) -> None:
        await seen.gone.wait()

    upstream, released = await lab.upstream(silent), asyncio.Event()
    answer, known = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", KnownAnswers()
    known.learn(answer, 200, [(b"content-length", b"2")], b"{}")
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: UpstreamConnection(lambda _connection, _keep: released.set(), known), "127.0.0.1", upstream.port
    )
    asking = asyncio.create_task(connection.ask(b"POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n", b""))
    await soon(lambda: upstream.seen)
    connection.data_received(answer)
    assert released.is_set()
    asking.cancel()
    assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)
    assert not connection.closed
    connection.abort()


@pytest.mark.parametrize(
    "request_",
    [
        tool("a" * 300),
        (changed(meta={"io.modelcontextprotocol/clientInfo": {"name": "n" * 3000, "version": "1"}}), tool()[1]),
        (tool()[0], {**tool()[1], "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}),
    ],
    ids=["a long name", "a large _meta", "a trace"],
)
async def test_what_would_fill_memory_or_differs_every_time_is_not_remembered(
    lab: Lab, taken: list[Exchange], request_: tuple[bytes, dict[str, str]]
) -> None:
    client = await lab.client(await lab.gateway(await lab.upstream()))
    for _ in range(4):
        assert (await client.call(request_)).status == 200
    assert not taken


async def test_what_is_remembered_is_forgotten_before_it_fills_memory(
    lab: Lab, taken: list[Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shortcut, "_MOST", 3)
    client = await lab.client(await lab.gateway(await lab.upstream()))
    for number in range(5):
        await warm(client, taken, legacy(f"tool{number}"))
    before = len(taken)
    assert (await client.call(legacy("tool0"))).status == 200
    assert len(taken) == before
