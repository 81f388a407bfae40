"""Streams of events: as they come, byte by byte, for as long as it takes; ended when they are no longer allowed."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from agentd.gateway.http.limits import HttpLimits
from agentd.gateway.identity import StaticIdentity
from agentd.gateway.passage import Patience
from agentd.gateway.types import AuditEvent, Code
from tests.gateway.harness import ALICE, BOB, BOUND, CALLERS, Lab, body, modern, soon, tool
from tests.gateway.upstream import Seen

FINAL = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete","content":[]}}'
PROGRESS = b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"message":"h\xc3\xa4\xe4\xb8\x96"}}'
BOBS_GRANT = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["add"]}


def event(data: bytes, end: bytes = b"\n", before: bytes = b"event: message") -> bytes:
    return before + end + b"data: " + data + end + end


STREAMS = {
    "LF": event(PROGRESS) + event(FINAL),
    "CRLF": event(PROGRESS, b"\r\n") + event(FINAL, b"\r\n"),
    "CR": event(PROGRESS, b"\r") + event(FINAL, b"\r"),
    "comments, ids and retries": b": hi\n\nid: 1\nretry: 9\ndata:\n\n" + event(FINAL, before=b"id: 2"),
    "byte order mark": b"\xef\xbb\xbf" + event(FINAL),
    "two lines of data": event(b'{"jsonrpc":"2.0","id":1,\ndata:"result":{"resultType":"complete"}}'),
}


def sending(pieces: list[bytes], pause: float = 0) -> Callable[[Seen], Awaitable[None]]:
    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        for piece in pieces:
            seen.chunk(piece)
            await seen.writer.drain()
            await asyncio.sleep(pause)
        seen.end_chunks()

    return behaviour


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_split_anywhere_arrives_as_it_was_sent(lab: Lab, name: str) -> None:
    stream = STREAMS[name]
    cut = 0

    async def behaviour(seen: Seen) -> None:
        await sending([part for part in (stream[:cut], stream[cut:]) if part])(seen)

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    for cut in range(len(stream) + 1):
        answer = await client.call(tool())
        assert answer.status == 200
        assert answer.body == stream, cut
    ends = running.records.of(AuditEvent.CALL_ENDED)
    assert [record.outcome.problem for record in ends if record.outcome] == [None] * (len(stream) + 1)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_stream_in_single_bytes_arrives_as_it_was_sent(lab: Lab, name: str) -> None:
    stream = STREAMS[name]
    running = await lab.gateway(await lab.upstream(sending([bytes([byte]) for byte in stream])))
    client = await lab.client(running)
    assert (await client.call(tool())).body == stream


LISTED = {
    "jsonrpc": "2.0",
    "id": 1,
    "result": {"tools": [{"name": "add"}, {"name": "secret"}], "ttlMs": 1, "cacheScope": "public", "nextCursor": "c"},
}


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_a_list_in_a_stream_split_anywhere_is_filtered(lab: Lab, end: bytes) -> None:
    stream = event(PROGRESS, end) + event(json.dumps(LISTED).encode(), end)
    cut = 0

    async def behaviour(seen: Seen) -> None:
        await sending([part for part in (stream[:cut], stream[cut:]) if part])(seen)

    running = await lab.gateway(await lab.upstream(behaviour), grants=[BOBS_GRANT])
    client = await lab.client(running, BOB)
    for cut in range(len(stream) + 1):
        answer = await client.call(modern("tools/list"))
        assert answer.body.startswith(event(PROGRESS, end)), cut
        last = [line for line in answer.body.splitlines() if line.startswith(b"data: ")][-1]
        result = json.loads(last[6:])["result"]
        assert result["tools"] == [{"name": "add"}]
        assert (result["cacheScope"], result["nextCursor"]) == ("private", "c")


@pytest.mark.parametrize(
    "spelled",
    [
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[]},"result":{"tools":[{"name":"secret"}]}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":[],"tools":[{"name":"secret"}]}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"tools":"secret"}}',
        b'{"jsonrpc":"2.0","id":1,"result":{"no":"secret"}}',
        b'{"jsonrpc":"2.0","id":1,"r\\u0065sult":{"tools":[{"name":"secret"}]}}',
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_a_list_that_cannot_be_filtered_is_not_shown(lab: Lab, spelled: bytes, streamed: bool) -> None:
    async def behaviour(seen: Seen) -> None:
        if streamed:
            await sending([event(spelled)])(seen)
        else:
            seen.reply(spelled)

    running = await lab.gateway(await lab.upstream(behaviour), grants=[BOBS_GRANT])
    client = await lab.client(running, BOB)
    answer = await client.call(modern("tools/list"))
    assert b"secret" not in answer.body
    assert answer.status in {200, 502}


async def test_the_head_and_every_event_come_before_anything_follows_them(lab: Lab) -> None:
    """The upstream says nothing before the client has all that was said: a proxy that buffers would wait for ever."""
    arrived = asyncio.Semaphore(0)

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        for _ in range(50):
            await arrived.acquire()
            seen.chunk(event(PROGRESS))
        await arrived.acquire()
        seen.chunk(event(FINAL))
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    client.send("POST", *tool())
    await client.head()
    arrived.release()
    for _ in range(50):
        assert await client.chunk() == event(PROGRESS)
        arrived.release()
    assert await client.chunks() == event(FINAL)


async def test_a_silent_stream_is_kept_alive_between_events_only(lab: Lab) -> None:
    half, rest = event(PROGRESS)[:30], event(PROGRESS)[30:]
    go_on = asyncio.Event()

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        await asyncio.sleep(0.3)
        seen.chunk(half)
        await asyncio.sleep(0.3)
        seen.chunk(rest)
        await go_on.wait()
        seen.chunk(event(FINAL))
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour), patience=Patience(silence=0.05))
    client = await lab.client(running)
    client.send("POST", *tool())
    await client.head()
    got = b""
    while rest not in got:
        got += await client.chunk()
    assert got.startswith(b":\r\n\r\n")
    assert half + rest in got, "a comment was put into an event"
    assert await client.chunk() == b":\r\n\r\n"
    go_on.set()
    assert (await client.chunks()).endswith(event(FINAL))


async def test_nothing_limits_how_long_a_stream_may_last(lab: Lab) -> None:
    """Every bound on time is far shorter here than the stream."""
    hurried = HttpLimits(head_seconds=0.1, body_pause=0.1, body_seconds=0.1, idle_seconds=0.1, stalled=0.1, tick=0.01)
    running = await lab.gateway(await lab.upstream(sending([event(PROGRESS), event(FINAL)], 0.6)), http=hurried)
    client = await lab.client(running)
    assert (await client.call(tool())).body == event(PROGRESS) + event(FINAL)


async def test_a_slow_reader_holds_back_the_upstream_and_loses_nothing(lab: Lab) -> None:
    sent = 0
    block = event(b'{"jsonrpc":"2.0","method":"notifications/x","params":{"y":"' + b"z" * 60_000 + b'"}}')

    async def behaviour(seen: Seen) -> None:
        nonlocal sent
        seen.start_events()
        for _ in range(400):
            seen.chunk(block)
            await seen.writer.drain()
            sent += 1
        seen.chunk(event(FINAL))
        seen.end_chunks()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    transport: Any = client.writer.transport
    transport.pause_reading()
    client.send("POST", *tool())
    before = -1
    while before != sent:
        before = sent
        await asyncio.sleep(0.3)
    assert sent < 390, "the upstream was never held back"
    transport.resume_reading()
    answer = await client.answer()
    assert answer.body == block * 400 + event(FINAL)


async def endless(seen: Seen) -> None:
    seen.start_events()
    seen.chunk(event(PROGRESS))
    await seen.gone.wait()


async def test_a_revoked_grant_ends_running_streams_at_once(lab: Lab) -> None:
    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream, grants=[BOBS_GRANT])
    bob, alice = await lab.client(running, BOB), await lab.client(running)
    for client in (bob, alice):
        client.send("POST", *tool())
        await client.head()
        await client.chunk()
    await running.adopt([])
    (last,) = [line for line in (await bob.chunks()).splitlines() if line.startswith(b"data: ")]
    assert json.loads(last[6:])["error"]["code"] == Code.DENIED
    (record,) = running.records.of(AuditEvent.STREAM_REVOKED)
    assert record.caller.name == "bob"
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)
    assert not upstream.seen[1].gone.is_set(), "somebody else's stream ended"


async def test_a_revoked_tool_ends_only_its_own_stream(lab: Lab) -> None:
    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream, grants=[{**BOBS_GRANT, "tools": ["add", "echo"]}])
    clients = []
    for name in ("add", "echo"):
        client = await lab.client(running, BOB)
        client.send("POST", *tool(name))
        await client.head()
        await client.chunk()
        clients.append(client)
    await running.adopt([{**BOBS_GRANT, "tools": ["echo"]}])
    assert b"error" in await clients[0].chunks()
    assert not upstream.seen[1].gone.is_set()
    assert (await clients[0].call(tool("add"))).code == Code.DENIED


async def test_each_grant_that_ends_ends_its_streams_without_waiting_for_a_look(lab: Lab) -> None:
    names = ("first", "second", "extended", "lasting")
    grants: list[Mapping[str, Any]] = [{**BOBS_GRANT, "id": name, "tools": [name]} for name in names]
    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream, grants=grants, recheck=3600)
    clients = []
    for grant in grants:
        client = await lab.client(running, BOB)
        client.send("POST", *tool(grant["id"]))
        await client.head()
        clients.append(client)
    now = int(time.time())
    soon_over, later = now + 2, now + 3  # a second and more, for the policy to be in force by then
    ends = [soon_over, later, soon_over, None]
    await running.adopt([{**grant, "expires": end} for grant, end in zip(grants, ends, strict=True)])
    ends[2] = now + 3600
    await running.adopt([{**grant, "expires": end} for grant, end in zip(grants, ends, strict=True)])
    for client, end in zip(clients, (soon_over, later), strict=False):
        assert b"the grant that allowed this has expired" in await client.chunks()
        assert time.time() >= end
    assert not upstream.seen[2].gone.is_set()
    assert not upstream.seen[3].gone.is_set()


async def test_a_grant_that_ends_while_it_is_looked_what_has_ended_is_not_passed_over(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = int(time.time()) + 3600
    grants = [{**BOBS_GRANT, "expires": end}]
    running = await lab.gateway(await lab.upstream(endless), grants=grants, recheck=3600)
    bob = await lab.client(running, BOB)
    bob.send("POST", *tool())
    await bob.head()
    readings = iter([end - 0.01])  # and then it is over
    monkeypatch.setattr(time, "time", lambda: next(readings, end + 0.01))
    await running.adopt(grants)
    assert b"the grant that allowed this has expired" in await bob.chunks()


async def test_a_clock_that_is_set_beyond_the_end_of_a_grant_ends_its_streams_at_the_next_look(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await lab.gateway(
        await lab.upstream(endless), grants=[{**BOBS_GRANT, "expires": int(time.time()) + 3600}]
    )
    bob = await lab.client(running, BOB)
    bob.send("POST", *tool())
    await bob.head()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert b"the grant that allowed this has expired" in await bob.chunks()


async def test_a_breached_limit_ends_the_callers_streams_and_passes_nothing_for_the_cool_down(lab: Lab) -> None:
    upstream = await lab.upstream(endless)
    limits = [{"tools": ["add"], "rate": {"calls": 1, "seconds": 3600}}]
    grant = {**BOBS_GRANT, "tools": ["*"], "limits": limits}
    running = await lab.gateway(upstream, grants=[grant], limits={"cool_down": 600})
    bob, alice, again = [await lab.client(running, address) for address in (BOB, ALICE, BOB)]
    for client in (bob, alice):
        client.send("POST", *tool())
        await client.head()
        await client.chunk()
    assert (await again.call(tool())).code == Code.TOO_MANY_CALLS
    assert b"too often" in await bob.chunks()
    assert (await again.call(tool("other"))).code == Code.TOO_MANY_CALLS, "the cool-down is for all of the service"
    (breach,) = running.records.of(AuditEvent.LIMIT_BREACHED)
    assert breach.call is not None
    assert (breach.caller.name, breach.call.name) == ("bob", "add")
    told = "more than 1 calls in 3600 s by grant bobs: nothing is passed for 600 s, 1 running calls ended"
    assert breach.detail == told
    assert not upstream.seen[1].gone.is_set(), "somebody else's stream ended"


async def test_a_caller_that_left_the_mesh_loses_its_streams(lab: Lab) -> None:
    identity = StaticIdentity(CALLERS)
    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream, identity=identity, grants=[BOBS_GRANT])
    bob = await lab.client(running, BOB)
    bob.send("POST", *tool())
    await bob.head()
    del identity.callers[BOB]
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)
    await bob.chunks()
    bob.send("POST", *tool())
    assert await bob.rest() == b""


async def test_a_revoked_call_that_has_no_answer_yet_is_cancelled(lab: Lab) -> None:
    async def never(seen: Seen) -> None:
        await seen.gone.wait()

    upstream = await lab.upstream(never)
    running = await lab.gateway(upstream, grants=[BOBS_GRANT])
    bob = await lab.client(running, BOB)
    bob.send("POST", *tool())
    await soon(lambda: upstream.seen)
    await running.adopt([])
    assert await bob.rest() == b""
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)


async def test_an_abandoned_legacy_call_is_revoked_too(lab: Lab) -> None:
    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream, grants=[BOBS_GRANT])
    bob = await lab.client(running, BOB)
    bob.send("POST", body("tools/call", 1, None, name="add", arguments={}))
    await bob.head()
    bob.vanish()
    await asyncio.sleep(0.1)
    assert not upstream.seen[0].gone.is_set()
    await running.adopt([])
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)


async def test_an_abandoned_legacy_call_is_given_up_when_it_says_nothing(lab: Lab) -> None:
    upstream = await lab.upstream(endless)
    running = await lab.gateway(upstream, patience=Patience(silence=0.05, orphan=0.3))
    client = await lab.client(running)
    client.send("POST", body("tools/call", 1, None, name="add", arguments={}))
    await client.head()
    client.vanish()
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)


async def test_a_subscription_carries_its_acknowledgement_first(lab: Lab) -> None:
    acknowledged = b'{"jsonrpc":"2.0","method":"notifications/subscriptions/acknowledged","params":{}}'
    changed = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed","params":{}}'
    running = await lab.gateway(await lab.upstream(sending([event(acknowledged), event(changed), event(FINAL)], 0.02)))
    client = await lab.client(running)
    client.send("POST", *modern("subscriptions/listen", notifications={"toolsListChanged": True}))
    await client.head()
    assert await client.chunk() == event(acknowledged)
    assert await client.chunk() == event(changed)
    assert (await client.chunks()) == event(FINAL)


async def test_http_1_0_clients_get_streams_too(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream(sending([event(PROGRESS), event(FINAL)])))
    client = await lab.client(running)
    data, headers = tool()
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    client.writer.write(
        f"POST /mcp HTTP/1.0\r\nhost: {client.host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\n{lines}\r\n".encode()
        + data
    )
    answer = await client.answer()
    assert answer.body == event(PROGRESS) + event(FINAL)
    assert dict(answer.headers)["x-accel-buffering"] == "no"
