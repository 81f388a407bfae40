"""A client that goes in the middle of a call: in the modern era it has cancelled, in the legacy one it has not."""

import asyncio

import pytest

from agentd.gateway.types import AuditEvent
from tests.gateway import sdk_server
from tests.gateway.harness import BOUND, Client, Lab, Running, body, modern, soon, tool
from tests.gateway.upstream import Seen

# --- disconnects


async def silent_stream(seen: Seen) -> None:
    seen.start_events()
    seen.chunk(b": here\n\n")
    await seen.gone.wait()


async def started_call(lab: Lab, running: Running, data: bytes, headers: dict[str, str]) -> Client:
    client = await lab.client(running)
    client.send("POST", data, headers)
    await client.head()
    await client.chunk()
    return client


@pytest.mark.parametrize("reset", [True, False])
async def test_a_modern_client_that_goes_cancels_within_100_ms(lab: Lab, reset: bool) -> None:
    upstream = await lab.upstream(silent_stream)
    running = await lab.gateway(upstream)
    loop = asyncio.get_running_loop()
    took: list[float] = []
    # the quickest of several: the machine may have something else to do meanwhile, the gateway must not
    while len(took) < 10 and min(took, default=1.0) >= 0.1:
        client = await started_call(lab, running, *tool())
        gone_at = loop.time()
        client.vanish() if reset else await client.close()
        await asyncio.wait_for(upstream.seen[-1].gone.wait(), BOUND)
        took.append(loop.time() - gone_at)
    assert min(took) < 0.1
    ended = await soon(lambda: running.records.of(AuditEvent.CALL_ENDED))
    assert ended[0].outcome.problem == "the client went away"


async def test_a_modern_client_that_goes_before_the_answer_cancels(lab: Lab) -> None:
    async def never(seen: Seen) -> None:
        await seen.gone.wait()

    upstream = await lab.upstream(never)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.send("POST", *tool())
    await soon(lambda: upstream.seen)
    client.vanish()
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)


async def test_a_real_server_stops_a_cancelled_tool(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    client = await lab.client(running)
    client.send("POST", *modern("tools/call", name="count", arguments={"to": 100_000, "name": "stopped"}))
    # without a progress token the server is silent; it commits to a stream only later
    await soon(lambda: "stopped" in sdk_server.started)
    client.vanish()
    await soon(lambda: "stopped" in sdk_server.cancelled)


async def test_a_legacy_client_that_goes_cancels_nothing(lab: Lab) -> None:
    go_on = asyncio.Event()

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(b": here\n\n")
        waiting = asyncio.create_task(go_on.wait())
        gone = asyncio.create_task(seen.gone.wait())
        await asyncio.wait([waiting, gone], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            outcome.append("cancelled")
        else:
            seen.chunk(b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n')
            seen.end_chunks()
            outcome.append("done")
        waiting.cancel()
        gone.cancel()

    outcome: list[str] = []
    running = await lab.gateway(await lab.upstream(behaviour))
    client = await started_call(lab, running, body("tools/call", 1, None, name="add", arguments={}), {})
    client.vanish()
    await asyncio.sleep(0.2)
    assert outcome == []
    go_on.set()
    await soon(lambda: outcome)
    assert outcome == ["done"]
    assert await soon(lambda: running.records.of(AuditEvent.CALL_ENDED))


async def test_a_legacy_get_stream_that_is_left_is_closed_upstream(lab: Lab) -> None:
    upstream = await lab.upstream(silent_stream)
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.send("GET", headers={"accept": "text/event-stream"})
    await client.head()
    client.vanish()
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)
