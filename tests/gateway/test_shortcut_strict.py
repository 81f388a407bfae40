"""Heads, bodies and answers are read as strictly on the shortcut as on the long way, and counted as often."""

import json

import pytest

from agentd.gateway.http.exchange import Exchange
from agentd.gateway.types import AuditEvent, Code
from tests.gateway.harness import Lab, soon, tool
from tests.gateway.upstream import Seen, echo
from tests.gateway.warming import changed, warm

GOOD = tool()[0]
REFUSED = {
    "another tool than the head's": (changed(params={"name": "other"}), 400, -32020),
    "another method than the head's": (changed(method="tools/list"), 400, -32020),
    "another version than the head's": (changed(meta={"io.modelcontextprotocol/protocolVersion": "x"}), 400, -32020),
    "a repeated key": (GOOD.replace(b'"id":1', b'"id":1,"id":2'), 400, -32600),
    "a key in another case": (GOOD.replace(b'"id":1', b'"id":1,"Method":"x"'), 400, -32600),
    "a repeated key in the arguments": (GOOD.replace(b'"arguments":{}', b'"arguments":{"a":1,"a":2}'), 400, -32600),
    "an argument in two cases": (GOOD.replace(b'"arguments":{}', b'"arguments":{"a":1,"A":2}'), 400, -32600),
    "arguments twice": (GOOD.replace(b'"arguments":{}', b'"arguments":{},"arguments":{}'), 400, -32600),
    "a name behind the arguments": (GOOD.replace(b'"arguments":{}', b'"arguments":{},"name":"x"'), 400, -32600),
    "an id with a leading zero": (GOOD.replace(b'"id":1', b'"id":01'), 400, -32700),
    "a batch": (b"[" + GOOD + b"]", 400, -32600),
    "no id": (GOOD.replace(b'"id":1,', b""), 400, -32600),
    "no JSON": (GOOD[:-1], 400, -32700),
    "invalid UTF-8": (GOOD.replace(b'"add"', b'"\xff"'), 400, -32700),
    "too deep": (changed(params={"arguments": {"a": json.loads("[" * 70 + "]" * 70)}}), 400, -32600),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_a_body_is_read_as_strictly_behind_a_known_head(lab: Lab, taken: list[Exchange], name: str) -> None:
    data, status, code = REFUSED[name]
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    seen = len(upstream.seen)
    answer = await client.ask("POST", data, tool()[1])
    assert (answer.status, answer.code) == (status, code)
    assert len(upstream.seen) == seen


SMUGGLED = {
    "a second length": lambda head: head.replace(b"\r\n\r\n", b"\r\ncontent-length: 5\r\n\r\n"),
    "a coding as well": lambda head: head.replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n"),
    "a length with a sign": lambda head: head.replace(b"content-length: ", b"content-length: +"),
    "a folded line": lambda head: head.replace(b"\r\n\r\n", b"\r\n folded\r\n\r\n"),
    "a bare line feed": lambda head: head.replace(b"\r\n\r\n", b"\n\r\n"),
    "another host": lambda head: head.replace(b"host: 127", b"host: 128"),
    "a foreign origin": lambda head: head.replace(b"\r\n\r\n", b"\r\norigin: https://evil.example\r\n\r\n"),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_a_head_that_differs_from_a_known_one_is_not_taken_for_it(
    lab: Lab, taken: list[Exchange], name: str
) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    await warm(client, taken)
    seen, data = len(upstream.seen), tool()[0]
    lines = {"content-type": "application/json", "host": client.host, "accept": "application/json, text/event-stream"}
    lines |= {**tool()[1], "content-length": str(len(data))}
    head = "POST /mcp HTTP/1.1\r\n" + "".join(f"{key}: {value}\r\n" for key, value in lines.items()) + "\r\n"
    client.writer.write(SMUGGLED[name](head.encode()) + data)
    assert (await client.answer()).status in {400, 403, 421}
    assert len(upstream.seen) == seen


def _wrong_id(seen: Seen) -> None:
    seen.reply(b'{"jsonrpc":"2.0","id":99,"result":{}}')


def _chunked(seen: Seen) -> None:
    seen.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    seen.chunk(b'{"jsonrpc":"2.0","id":1,"error":{"code":-5,"message":"own"}}')
    seen.end_chunks()


ANSWERS = {
    "another id": (_wrong_id, 502, Code.UPSTREAM_BROKEN),
    "an id of another type": (lambda seen: seen.reply(b'{"jsonrpc":"2.0","id":"1","result":{}}'), 502, 50200),
    "no JSON": (lambda seen: seen.reply(b'{"jsonrpc":"2.0","id":1,"result":{}'), 502, 50200),
    "its own error": (lambda seen: seen.reply(b'{"jsonrpc":"2.0","id":1,"error":{"code":-7,"message":""}}'), 200, -7),
    "its own error in chunks": (_chunked, 200, -5),
    "a redirect": (lambda seen: seen.reply(b"{}", "302 Found", "text/plain", location="/x"), 502, 50200),
    "no answer": (lambda seen: seen.writer.close(), 502, 50200),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_read_as_strictly_after_the_shortcut(lab: Lab, taken: list[Exchange], name: str) -> None:
    answers, status, code = ANSWERS[name]
    normal = True

    async def behaviour(seen: Seen) -> None:
        if normal:
            await echo(seen)
        else:
            answers(seen)

    running = await lab.gateway(await lab.upstream(behaviour))
    client = await lab.client(running)
    await warm(client, taken)
    normal, before = False, len(taken)
    for _ in range(3):  # the third behind a head that is known
        answer = await client.call(tool())
        assert (answer.status, answer.code) == (status, code)
        await soon(lambda: running.records.all[-1].event is AuditEvent.CALL_ENDED)
        outcome = running.records.all[-1].outcome
        assert outcome is not None
        assert (outcome.status, outcome.error) == (status, code)
    assert len(taken) > before


async def test_a_call_that_cannot_be_recorded_is_counted_once(lab: Lab, taken: list[Exchange]) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, limits={"calls": {"calls": 8, "seconds": 3600}})
    client = await lab.client(running)
    await warm(client, taken)
    running.records.room = False
    answers = [await client.call(tool()) for _ in range(8 - len(upstream.seen))]
    assert {answer.code for answer in answers} == {Code.AUDIT_FULL}
    assert (await client.call(tool())).code == Code.TOO_MANY_CALLS
