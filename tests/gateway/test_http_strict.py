"""Requests that two readers could take for different ones are refused, and nothing of them reaches an upstream."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from agentd.gateway.http.limits import HttpLimits
from tests.gateway.harness import ALICE, BOUND, STRANGER, Lab, soon, tool
from tests.gateway.upstream import Seen

BODY, HEADERS = tool()
START = b"POST /mcp HTTP/1.1\r\nHost: svc.mesh.internal:PORT\r\nContent-Type: application/json\r\n"
MCP = b"".join(f"{name}: {value}\r\n".encode() for name, value in HEADERS.items())
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SECOND = b"GET /admin HTTP/1.1\r\nHost: svc\r\n\r\n"

CORPUS = {
    "length and coding": START + MCP + LENGTH + CHUNKED + b"\r\n" + CHUNKS,
    "coding and length": START + MCP + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
    "two lengths": START + MCP + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
    "two equal lengths": START + MCP + LENGTH + LENGTH + b"\r\n" + BODY,
    "length list": START + MCP + b"Content-Length: 3, 3\r\n\r\n" + BODY,
    "length with sign": START + MCP + b"Content-Length: +3\r\n\r\n" + BODY,
    "length in hex": START + MCP + b"Content-Length: 0x3\r\n\r\n" + BODY,
    "length with spaces": START + MCP + b"Content-Length: 3 3\r\n\r\n" + BODY,
    "length empty": START + MCP + b"Content-Length:\r\n\r\n" + BODY,
    "length negative": START + MCP + b"Content-Length: -3\r\n\r\n" + BODY,
    "length too long": START + MCP + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
    "coding unknown": START + MCP + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS,
    "coding list": START + MCP + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS,
    "coding not last": START + MCP + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS,
    "coding twice": START + MCP + CHUNKED + CHUNKED + b"\r\n" + CHUNKS,
    "coding identity": START + MCP + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKS,
    "coding with control character": START + MCP + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKS,
    "coding in 1.0": START.replace(b"1.1", b"1.0") + MCP + CHUNKED + b"\r\n" + CHUNKS,
    "space before colon": START + MCP + b"Content-Length : 3\r\n\r\n" + BODY,
    "coding with space before colon": START + MCP + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS,
    "bare LF between headers": START + MCP + b"X: a\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "bare LF at the end": START + MCP + LENGTH + b"\n" + BODY,
    "bare CR": START + MCP + b"X: a\rTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "folded line": START + MCP + b"X: a\r\n b\r\n" + LENGTH + b"\r\n" + BODY,
    "folded length": START + MCP + b"Content-Length:\r\n 3\r\n\r\n" + BODY,
    "first header folded": b"POST /mcp HTTP/1.1\r\n X: y\r\n" + LENGTH + b"\r\n" + BODY,
    "NUL in a value": START + MCP + b"X: a\0b\r\n" + LENGTH + b"\r\n" + BODY,
    "control character in a name": START + MCP + b"X\x01: a\r\n" + LENGTH + b"\r\n" + BODY,
    "no name": START + MCP + b": a\r\n" + LENGTH + b"\r\n" + BODY,
    "chunk size with bare LF": START + MCP + CHUNKED + b"\r\n1\nx\r\n0\r\n\r\n",
    "chunk size negative": START + MCP + CHUNKED + b"\r\n-1\r\nx\r\n0\r\n\r\n",
    "chunk size with 0x": START + MCP + CHUNKED + b"\r\n0x1\r\nx\r\n0\r\n\r\n",
    "chunk size too large": START + MCP + CHUNKED + b"\r\nfffffffffffffffff1\r\nx\r\n0\r\n\r\n",
    "chunk longer than its size": START + MCP + CHUNKED + b"\r\n1\r\nxy\r\n0\r\n\r\n",
    "chunk extension with LF": START + MCP + CHUNKED + b"\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
    "version 0.9": b"POST /mcp\r\n\r\n",
    "version 1.2": START.replace(b"HTTP/1.1", b"HTTP/1.2") + MCP + LENGTH + b"\r\n" + BODY,
    "version 2.0": START.replace(b"HTTP/1.1", b"HTTP/2.0") + MCP + LENGTH + b"\r\n" + BODY,
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "method unknown": START.replace(b"POST", b"FOO") + MCP + LENGTH + b"\r\n" + BODY,
    "method in lower case": START.replace(b"POST", b"post") + MCP + LENGTH + b"\r\n" + BODY,
    "CONNECT": b"CONNECT svc:80 HTTP/1.1\r\nHost: svc\r\n\r\n",
    "TRACE": b"TRACE /mcp HTTP/1.1\r\nHost: svc\r\n\r\n",
    "absolute target": START.replace(b"/mcp", b"http://other/mcp") + MCP + LENGTH + b"\r\n" + BODY,
    "target with fragment": START.replace(b"/mcp", b"/mcp#x") + MCP + LENGTH + b"\r\n" + BODY,
    "target with tab": START.replace(b"/mcp", b"/m\tcp") + MCP + LENGTH + b"\r\n" + BODY,
    "target with 8 bits": START.replace(b"/mcp", b"/mcp\xff") + MCP + LENGTH + b"\r\n" + BODY,
    "two hosts": START + b"Host: other\r\n" + MCP + LENGTH + b"\r\n" + BODY,
    "no host": START.replace(b"Host", b"Hots") + MCP + LENGTH + b"\r\n" + BODY,
    "two content types": START + b"Content-Type: text/plain\r\n" + MCP + LENGTH + b"\r\n" + BODY,
    "two origins": START + b"Origin: a\r\nOrigin: b\r\n" + MCP + LENGTH + b"\r\n" + BODY,
    "Connection names a judged header": START + MCP + b"Connection: close, Mcp-Name\r\n" + LENGTH + b"\r\n" + BODY,
    "Connection names our header": START + MCP + b"Connection: wardmesh-node\r\n" + LENGTH + b"\r\n" + BODY,
    "expectation unknown": START + MCP + b"Expect: 200-ok\r\n" + LENGTH + b"\r\n" + BODY,
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
}


@pytest.mark.parametrize("name", CORPUS)
async def test_an_ambiguous_request_is_refused_and_never_passed_on(lab: Lab, name: str) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.writer.write(CORPUS[name].replace(b"PORT", b"%d" % running.port) + SECOND)
    said = await client.rest()
    assert upstream.seen == []
    assert said.count(b"HTTP/1.1 ") == 1, "what followed was read as a request"
    assert 400 <= int(said.split(b" ")[1]) < 600
    assert b"connection: close" in said.lower()


@pytest.mark.parametrize("name", CORPUS)
async def test_it_is_refused_too_when_it_comes_byte_by_byte(lab: Lab, name: str) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for byte in CORPUS[name].replace(b"PORT", b"%d" % running.port):
        client.writer.write(bytes([byte]))
        await asyncio.sleep(0)
    said = await client.rest()
    assert upstream.seen == []
    assert said.count(b"HTTP/1.1 ") == 1
    assert 400 <= int(said.split(b" ")[1]) < 600


async def test_the_request_that_the_corpus_is_made_of_is_a_good_one(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    start = START.replace(b"PORT", b"%d" % running.port)
    client.writer.write(start + MCP + LENGTH + b"\r\n" + BODY)
    assert (await client.answer()).status == 200
    client.writer.write(start + MCP + CHUNKED + b"\r\n" + CHUNKS)
    assert (await client.answer()).status == 200
    assert [seen.body for seen in upstream.seen] == [BODY, BODY]


async def test_a_trailer_changes_nothing(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    trailer = b"Host: evil\r\nMcp-Name: other\r\nWardmesh-Node: root\r\n\r\n"
    client.writer.write(
        START.replace(b"PORT", b"%d" % running.port) + MCP + CHUNKED + b"\r\n" + CHUNKS.removesuffix(b"\r\n") + trailer
    )
    assert (await client.answer()).status == 200
    assert [seen.get("wardmesh-node") for seen in upstream.seen] == ["alice"]
    assert [seen.get("mcp-name") for seen in upstream.seen] == ["add"]


async def test_an_offered_upgrade_is_ignored_and_its_body_read(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABkAAQ"}
    for _ in range(3):
        client.send("POST", BODY, {**HEADERS, **offer})
        assert (await client.answer()).status == 200
    assert [seen.body for seen in upstream.seen] == [BODY] * 3
    assert all(seen.get("upgrade") is None and seen.get("http2-settings") is None for seen in upstream.seen)


async def test_pipelined_requests_are_answered_in_order(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for number in range(8):
        client.send("POST", *tool(number=number))
    assert [(await client.answer()).json["id"] for _ in range(8)] == list(range(8))


async def test_a_flood_of_pipelined_requests_ends_the_connection(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    for number in range(500):
        client.send("POST", *tool(number=number))
    await client.rest()
    assert len(upstream.seen) < 50


async def test_http_1_0_is_answered_and_closed(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.writer.write(
        START.replace(b"1.1", b"1.0").replace(b"PORT", b"%d" % running.port) + MCP + LENGTH + b"\r\n" + BODY
    )
    answer = await client.answer()
    assert answer.status == 200
    assert answer.get("transfer-encoding") is None
    assert await client.rest() == b""


async def test_expect_continue_invites_the_body(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.writer.write(START.replace(b"PORT", b"%d" % running.port) + MCP + LENGTH + b"Expect: 100-continue\r\n\r\n")
    assert (await client.head())[0] == 100
    client.writer.write(BODY)
    assert (await client.answer()).status == 200


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ({"x-large": "x" * 40_000}, 431),
        ({f"x-{number}": "y" for number in range(200)}, 431),
    ],
    ids=["one large header", "many headers"],
)
async def test_header_floods_are_refused(lab: Lab, what: dict[str, str], status: int) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    assert (await client.ask("POST", BODY, {**HEADERS, **what})).status == status
    assert upstream.seen == []


async def test_a_header_without_end_is_refused_before_it_fills_memory(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    client.writer.write(b"POST /mcp HTTP/1.1\r\nX: " + b"y" * (4 << 20))
    said = await client.rest()
    assert said == b"" or b" 431 " in said[:20]


async def test_a_long_path_is_refused(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream())
    client = await lab.client(running)
    assert (await client.ask("POST", BODY, HEADERS, path="/" + "a" * 20_000)).status == 414


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_over_the_limit_is_refused(lab: Lab, declared: bool) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, limits={"body": 2048})
    client = await lab.client(running)
    if declared:
        client.send("POST", b"x" * 5000, HEADERS)
    else:
        client.writer.write(START.replace(b"PORT", b"%d" % running.port) + MCP + CHUNKED + b"\r\n")
        client.writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
        client.writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
    assert (await client.answer()).status == 413
    assert await client.rest() == b""
    assert upstream.seen == []


SLOW = HttpLimits(head_seconds=0.5, body_pause=0.5, body_seconds=0.8, idle_seconds=0.5, linger=0.2, tick=0.02)


async def test_slow_headers_are_refused(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream(), http=SLOW)
    client = await lab.client(running)
    client.writer.write(b"POST /mcp HTTP/1.1\r\nHo")
    assert (await client.answer()).status == 408


async def test_headers_that_drip_are_refused(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream(), http=SLOW)
    client = await lab.client(running)
    dripping = asyncio.create_task(_drip(client.writer, b"POST /mcp HTTP/1.1\r\n" + b"x: y\r\n" * 1000))
    assert (await client.answer()).status == 408
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)


@pytest.mark.parametrize("drips", [False, True])
async def test_slow_bodies_are_refused(lab: Lab, drips: bool) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream, http=SLOW)
    client = await lab.client(running)
    client.writer.write(START.replace(b"PORT", b"%d" % running.port) + MCP + b"Content-Length: 5000\r\n\r\nab")
    dripping = asyncio.create_task(_drip(client.writer, b"x" * 4000 if drips else b""))
    assert (await client.answer()).status == 408
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)
    assert upstream.seen == []


async def test_an_idle_connection_is_closed_without_a_word(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream(), http=SLOW)
    silent = await lab.client(running)
    assert await silent.rest() == b""
    used = await lab.client(running)
    assert (await used.ask("POST", BODY, HEADERS)).status == 200
    assert await used.rest() == b""


async def test_a_client_that_takes_nothing_is_cut_off(lab: Lab) -> None:
    async def flood(seen: Seen) -> None:
        seen.start_events()
        while True:
            seen.chunk(b": " + b"x" * 60_000 + b"\n")
            await seen.writer.drain()

    upstream = await lab.upstream(flood)
    running = await lab.gateway(upstream, http=HttpLimits(stalled=0.3, tick=0.02))
    client = await lab.client(running)
    transport: Any = client.writer.transport
    transport.pause_reading()
    client.send("POST", BODY, HEADERS)
    await soon(lambda: upstream.seen)
    await asyncio.wait_for(upstream.seen[0].gone.wait(), BOUND)


async def test_nobody_gets_no_answer(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    for junk in (b"", b"\0\0\0", b"GET / HTTP/1.1\r\n\r\n"):
        stranger = await lab.client(running, STRANGER)
        stranger.writer.write(junk)
        assert await stranger.rest() == b""
    assert upstream.seen == []
    assert running.records.all == []


async def test_connections_are_bounded(lab: Lab) -> None:
    running = await lab.gateway(await lab.upstream(), http=HttpLimits(connections=4, tick=0.05))
    clients = [await lab.client(running) for _ in range(4)]
    for client in clients:
        assert (await client.ask("POST", BODY, HEADERS)).status == 200
    assert await (await lab.client(running)).rest() == b""
    await clients[0].close()
    async with asyncio.timeout(BOUND):  # the gateway may see the next one before it sees this one go
        while True:
            one_more = await lab.client(running, ALICE)
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                assert (await one_more.ask("POST", BODY, HEADERS)).status == 200
                break


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for byte in data:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.01)
