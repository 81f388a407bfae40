"""Upstreams that fail, at every point: what the caller gets is an error, never an empty success or half an answer."""

import asyncio
import json
import socket

import pytest

from agentd.gateway.http import pool
from agentd.gateway.types import AuditEvent, Code
from tests.gateway.harness import BOUND, Lab, body, free_port, modern, soon, tool
from tests.gateway.upstream import Seen

RESULT = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete"}}'


async def test_one_that_is_not_there_is_unreachable(lab: Lab) -> None:
    running = await lab.gateway(f"http://127.0.0.1:{free_port()}/mcp")
    client = await lab.client(running)
    answer = await client.call(tool())
    assert (answer.status, answer.code, answer.json["id"]) == (502, Code.UPSTREAM_UNREACHABLE, 1)
    assert (await client.call(tool())).status == 502, "the connection was lost with it"


async def test_a_legacy_client_hears_it_with_200(lab: Lab) -> None:
    """Old clients wait for ever for the answer to a request whose status is 5xx."""
    running = await lab.gateway(f"http://127.0.0.1:{free_port()}/mcp")
    client = await lab.client(running)
    answer = await client.ask("POST", body("tools/list", 1, None))
    assert (answer.status, answer.code) == (200, Code.UPSTREAM_UNREACHABLE)
    assert (await client.ask("POST", body("notifications/x", None, None))).status == 502


async def test_one_that_takes_no_connections_is_unreachable(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_CONNECT_SECONDS", 0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        running = await lab.gateway(f"http://127.0.0.1:{port}/mcp")
        client = await lab.client(running)
        assert (await client.call(tool())).code == Code.UPSTREAM_UNREACHABLE
        for filler in fillers:
            filler.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
DEATHS = {
    "before a byte": b"",
    "in the status line": b"HTTP/1.1 20",
    "in the headers": HEAD + b"content-le",
    "before the body": HEAD + b"content-length: %d\r\n\r\n" % len(RESULT),
    "in the body": HEAD + b"content-length: %d\r\n\r\n" % len(RESULT) + RESULT[:20],
    "in a chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n40\r\n" + RESULT[:20],
    "between chunks": HEAD + b"transfer-encoding: chunked\r\n\r\n14\r\n" + RESULT[:20] + b"\r\n",
    "before the last chunk": HEAD + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(RESULT), RESULT),
    "where only closing could end it": HEAD + b"\r\n" + RESULT[:20],
    "after an interim answer": b"HTTP/1.1 103 Early Hints\r\n\r\n",
}


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("where", DEATHS)
async def test_one_that_dies_is_broken(lab: Lab, where: str, reset: bool) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.write(DEATHS[where])
        await seen.writer.drain()
        await asyncio.sleep(0.02)
        seen.writer.transport.abort() if reset else seen.writer.close()

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    answer = await client.call(tool())
    assert (answer.status, answer.code, answer.json["id"]) == (502, Code.UPSTREAM_BROKEN, 1)
    assert len(upstream.seen) == 1, "a tools/call was sent twice"
    (ended,) = running.records.of(AuditEvent.CALL_ENDED)
    assert ended.outcome is not None
    assert ended.outcome.problem


LIES = {
    "both lengths": HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    "bare LF": b"HTTP/1.1 200 OK\ncontent-length: 2\n\n{}",
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "another version": b"HTTP/9.9 200 OK\r\ncontent-length: 2\r\n\r\n{}",
    "a switch of protocols": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
    "endless headers": HEAD + b"x: " + b"y" * 200_000,
    "header flood": HEAD + b"x: yyyyyyyyyyyyyyyyyyyyyyy\r\n" * 5000 + b"\r\n",
    "another id": HEAD + b'content-length: 35\r\n\r\n{"jsonrpc":"2.0","id":2,"result":{}}',
    "id of another type": HEAD + b'content-length: 38\r\n\r\n{"jsonrpc":"2.0","id":"1","result":{}}',
    "no id": HEAD + b'content-length: 29\r\n\r\n{"jsonrpc":"2.0","result":{}}',
    "neither result nor error": HEAD + b'content-length: 24\r\n\r\n{"jsonrpc":"2.0","id":1}',
    "both result and error": HEAD + b'content-length: 49\r\n\r\n{"jsonrpc":"2.0","id":1,"result":{},"error":null} ',
    "nothing": HEAD + b"content-length: 0\r\n\r\n",
    "not JSON": HEAD + b"content-length: 4\r\n\r\noops",
    "an array": HEAD + b"content-length: 2\r\n\r\n[]",
    "text": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\nhi",
    "accepted": b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n",
    "no content": b"HTTP/1.1 204 No Content\r\n\r\n",
    "elsewhere": b"HTTP/1.1 307 Temporary\r\nlocation: http://127.0.0.1/mcp/\r\ncontent-length: 0\r\n\r\n",
}


@pytest.mark.parametrize("how", LIES)
async def test_one_that_does_not_answer_the_call_is_broken(lab: Lab, how: str) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.write(LIES[how])
        await seen.writer.drain()
        await seen.gone.wait()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    answer = await client.call(tool())
    assert (answer.status, answer.code) == (502, Code.UPSTREAM_BROKEN)


EVENT = b'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\n'


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("legacy", [True, False])
async def test_a_stream_without_an_answer_ends_with_an_error(lab: Lab, clean: bool, legacy: bool) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(EVENT)
        if clean:
            seen.end_chunks()
        await seen.writer.drain()
        await asyncio.sleep(0.02)
        seen.writer.close()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    request = (body("tools/call", 1, None, name="add", arguments={}), {}) if legacy else tool()
    answer = await client.call(request)
    assert answer.body.startswith(EVENT)
    (last,) = [line for line in answer.body.removeprefix(EVENT).splitlines() if line.startswith(b"data: ")]
    told = json.loads(last[6:])
    assert (told["id"], told["error"]["code"]) == (1, Code.UPSTREAM_BROKEN)


async def test_a_stream_that_dies_in_an_event_breaks_off(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(EVENT + EVENT[:10])
        await seen.writer.drain()
        await asyncio.sleep(0.02)
        seen.writer.close()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    client.send("POST", *tool())
    said = await client.rest()
    assert said.endswith(EVENT[:10] + b"\r\n")
    assert not said.endswith(b"0\r\n\r\n")


async def test_a_legacy_stream_that_can_be_resumed_is_not_answered_for(lab: Lab) -> None:
    resumable = b"id: 1\ndata:\n\n"

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(resumable)
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    answer = await client.ask("POST", body("tools/call", 1, None, name="add", arguments={}))
    assert answer.body == resumable


async def test_an_answer_to_another_request_in_a_stream_is_no_answer(lab: Lab) -> None:
    foreign = b'data: {"jsonrpc":"2.0","id":2,"result":{}}\n\n'

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(foreign)
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    answer = await client.call(tool())
    assert answer.body.startswith(foreign)
    assert b'"id":1,"error"' in answer.body


async def test_a_kept_connection_is_used_again(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for _ in range(20):
        assert (await client.call(tool())).status == 200
    assert upstream.connections == 1


@pytest.mark.parametrize("together", [True, False])
async def test_unasked_bytes_on_a_kept_connection_answer_nobody(lab: Lab, together: bool) -> None:
    poison = HEAD + b"content-length: 47\r\n\r\n" + b'{"jsonrpc":"2.0","id":1,"result":{"poison":1}} '

    async def behaviour(seen: Seen) -> None:
        seen.write(HEAD + b"content-length: %d\r\n\r\n%b" % (len(RESULT), RESULT) + (poison if together else b""))
        if not together:
            await answered.wait()
            seen.write(poison)
        await seen.gone.wait()

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for number in range(3):
        answered = asyncio.Event()
        assert b"poison" not in (await client.call(tool())).body
        answered.set()
        await asyncio.wait_for(upstream.seen[number].gone.wait(), BOUND)  # whoever says too much is left


async def test_a_dead_kept_connection_is_replaced_for_what_may_be_done_twice(lab: Lab) -> None:
    served = 0

    async def behaviour(seen: Seen) -> None:
        nonlocal served
        served += 1
        if served == 2:
            seen.writer.transport.abort()  # as if it had been closing when the request arrived
            return
        listed = {"jsonrpc": "2.0", "id": 1, "result": {"tools": [], "cacheScope": "private"}}
        seen.reply(json.dumps(listed).encode())

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    assert (await client.call(modern("tools/list"))).status == 200
    assert (await client.call(modern("tools/list"))).status == 200
    assert upstream.connections == 2


async def test_a_dead_kept_connection_fails_what_must_not_be_done_twice(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        if len(upstream.seen) == 2:
            seen.writer.transport.abort()
            return
        seen.result(resultType="complete")

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    assert (await client.call(tool())).status == 200
    assert (await client.call(tool())).code == Code.UPSTREAM_BROKEN
    assert (await client.call(tool())).status == 200
    assert len(upstream.seen) == 3


async def test_a_connection_that_the_server_closes_is_not_used_again(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.reply(RESULT, connection="close")
        await seen.writer.drain()
        seen.writer.close()

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for _ in range(5):
        assert (await client.call(tool())).status == 200
    assert upstream.connections == 5


async def test_what_an_upstream_says_in_its_headers_passes_but_for_this_hop(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.reply(RESULT, connection="keep-alive, x-hop", keep_alive="timeout=5", x_hop="1", x_end="2", vary="Accept")

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    answer = await client.call(tool())
    assert (answer.get("x-end"), answer.get("vary")) == ("2", "Accept")
    assert (answer.get("x-hop"), answer.get("keep-alive"), answer.get("connection")) == (None, None, None)


async def test_an_early_refusal_of_a_large_body_is_passed_on(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.reply(b"no\n", "413 Too Large", "text/plain")

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    answer = await client.call(tool("add", text="x" * 3_000_000))
    assert (answer.status, answer.body) == (413, b"no\n")


async def test_a_result_larger_than_what_is_held_is_streamed(lab: Lab) -> None:
    large = b'{"jsonrpc":"2.0","id":1,"result":{"x":"' + b"y" * (17 << 20) + b'"}}'

    async def behaviour(seen: Seen) -> None:
        seen.reply(large)
        await seen.writer.drain()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    assert (await client.call(tool())).body == large


async def test_stopping_ends_streams_and_refuses_calls(lab: Lab) -> None:
    async def endless(seen: Seen) -> None:
        seen.start_events()
        await seen.gone.wait()

    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.send("POST", *tool())
    await client.head()
    await running.runtime.close(0.1)
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)
    assert await soon(lambda: running.records.of(AuditEvent.CALL_ENDED))
