"""Either side cut off, or cut in two, at every byte: nothing half is passed on as whole, and nothing stays behind."""

import asyncio
import json
from functools import partial

import pytest

from agentd.gateway.types import AuditEvent, Code
from tests.gateway.harness import ACCEPT, BOUND, Client, Lab, body, soon, tool
from tests.gateway.upstream import Seen

RESULT = b'{"jsonrpc":"2.0","id":1,"result":{"resultType":"complete"}}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\n"
EVENTS = b'data: {"jsonrpc":"2.0","method":"notifications/x"}\n\ndata: ' + RESULT + b"\n\n"
ANSWERS = {
    "with a length": HEAD % b"application/json" + b"content-length: %d\r\n\r\n%b" % (len(RESULT), RESULT),
    "in chunks": HEAD % b"application/json"
    + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n"
    % (20, RESULT[:20], len(RESULT) - 20, RESULT[20:]),
    "after an interim answer": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    + HEAD % b"application/json"
    + b"content-length: %d\r\n\r\n%b" % (len(RESULT), RESULT),
}
STREAM = HEAD % b"text/event-stream" + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (
    len(EVENTS),
    EVENTS,
)


def request(client: Client, *, chunked: bool) -> bytes:
    """A whole modern call, as bytes."""
    data, headers = tool()
    given = {"host": client.host, "accept": ACCEPT, "content-type": "application/json", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    framing = "transfer-encoding: chunked" if chunked else f"content-length: {len(data)}"
    sent = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if chunked else data
    return f"POST /mcp HTTP/1.1\r\n{lines}{framing}\r\n\r\n".encode() + sent


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("chunked", [True, False])
async def test_a_client_that_goes_within_its_request_has_asked_nothing(lab: Lab, chunked: bool, reset: bool) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    whole = request(await lab.client(running), chunked=chunked)
    for cut in range(len(whole)):
        client = await lab.client(running)
        client.writer.write(whole[:cut])
        await asyncio.sleep(0)
        client.vanish() if reset else await client.close()
    last = await lab.client(running)
    last.writer.write(whole)
    assert (await last.answer()).status == 200
    assert len(upstream.seen) == 1
    assert len(running.records.of(AuditEvent.CALL_ALLOWED)) == 1


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_request_in_two_pieces_is_one_request(lab: Lab, chunked: bool) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    whole = request(client, chunked=chunked)
    for cut in range(1, len(whole)):
        client.writer.write(whole[:cut])
        await asyncio.sleep(0.001)
        client.writer.write(whole[cut:])
        assert (await client.answer()).status == 200, whole[:cut]


@pytest.mark.parametrize("how", ANSWERS)
async def test_an_answer_in_two_pieces_is_one_answer(lab: Lab, how: str) -> None:
    answer = ANSWERS[how]
    cut = 0

    async def behaviour(seen: Seen) -> None:
        seen.write(answer[:cut])
        await asyncio.sleep(0.001)
        seen.write(answer[cut:])

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    for cut in range(1, len(answer)):
        got = await client.call(tool())
        assert (got.status, got.body) == (200, RESULT), answer[:cut]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("how", ANSWERS)
async def test_an_upstream_that_dies_anywhere_in_its_answer_is_broken(lab: Lab, how: str, legacy: bool) -> None:
    answer = ANSWERS[how]
    cut = 0

    async def behaviour(seen: Seen) -> None:
        seen.write(answer[:cut])
        await seen.writer.drain()
        seen.writer.close()

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    asked = (body("tools/call", 1, None, name="add", arguments={}), {}) if legacy else tool()
    for cut in range(len(answer)):
        got = await client.call(asked)
        assert (got.status, got.code) == (200 if legacy else 502, Code.UPSTREAM_BROKEN), answer[:cut]
    problems = [record.outcome.problem for record in running.records.of(AuditEvent.CALL_ENDED) if record.outcome]
    assert len(problems) == len(answer)
    assert all(problems)


@pytest.mark.parametrize("legacy", [True, False])
async def test_an_upstream_that_dies_anywhere_in_its_stream_leaves_no_whole_one(lab: Lab, legacy: bool) -> None:
    start = STREAM.index(b"data: ")
    end = STREAM.index(RESULT) + len(RESULT) + 2  # from here on the caller has its result
    cut = 0

    async def behaviour(seen: Seen) -> None:
        seen.write(STREAM[:cut])
        await seen.writer.drain()
        seen.writer.close()

    running = await lab.gateway(await lab.upstream(behaviour))
    asked = (body("tools/call", 1, None, name="add", arguments={}), {}) if legacy else tool()
    for cut in range(start, end):
        client = await lab.client(running)
        client.send("POST", *asked)
        said = await ended(client)
        told = [line for line in said.splitlines() if line.startswith(b'data: {"jsonrpc":"2.0","id":1,"error"')]
        if said.endswith(b"0\r\n\r\n"):
            assert [json.loads(line[6:])["error"]["code"] for line in told] == [Code.UPSTREAM_BROKEN], STREAM[:cut]
        await client.close()


async def ended(client: Client) -> bytes:
    """All that is said until the answer's end, or until it breaks off."""
    said = b""
    while not said.endswith(b"0\r\n\r\n"):
        try:
            part = await asyncio.wait_for(client.reader.read(65536), BOUND)
        except ConnectionError:
            break
        if not part:
            break
        said += part
    return said


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("how", ["with a length", "in chunks"])
async def test_a_client_that_goes_while_its_answer_comes_is_left_alone(lab: Lab, how: str, reset: bool) -> None:
    answer = ANSWERS[how]
    cut = 0

    async def behaviour(seen: Seen) -> None:
        seen.write(answer[:cut])
        await seen.gone.wait()

    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(upstream)

    def arrived(number: int) -> bool:
        return len(upstream.seen) == number

    for cut in range(0, len(answer), 3):
        client = await lab.client(running)
        client.send("POST", *tool())
        await soon(partial(arrived, cut // 3 + 1))
        client.vanish() if reset else await client.close()
        await asyncio.wait_for(upstream.seen[-1].gone.wait(), BOUND)
    await soon(lambda: len(running.records.of(AuditEvent.CALL_ENDED)) == len(upstream.seen))
