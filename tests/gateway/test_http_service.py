"""Services of kind http: any HTTP, with identity and audit, and no rules of JSON-RPC."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from agentd.gateway.types import AuditEvent
from tests.gateway.harness import BOB, BOUND, Client, Lab, Running, soon
from tests.gateway.upstream import Behaviour, Seen


async def reflect(seen: Seen) -> None:
    seen.reply(f"{seen.method} {seen.target} {len(seen.body)}".encode(), kind="text/plain")


async def http_gateway(lab: Lab, behaviour: Behaviour = reflect, path: str = "/", **options: Any) -> Running:
    upstream = await lab.upstream(behaviour)
    running = await lab.gateway(f"http://127.0.0.1:{upstream.port}{path}", kind="http", **options)
    running.services["upstream"] = upstream
    return running


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_any_method_and_path_passes(lab: Lab, method: str) -> None:
    running = await http_gateway(lab)
    client = await lab.client(running)
    data = b"{not json" if method in {"POST", "PUT", "PATCH"} else b""
    answer = await client.ask(method, data, path="/v1/models?x=%2F..&y=1")
    assert answer.body == f"{method} /v1/models?x=%2F..&y=1 {len(data)}".encode()
    (ended,) = running.records.of(AuditEvent.CALL_ENDED)
    assert ended.call is not None
    assert (ended.call.era, ended.call.method, ended.call.name) == ("http", method, "/v1/models?x=%2F..&y=1")


async def test_head_has_no_body(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n" + (b"" if seen.method == "HEAD" else b"0123456789"))

    running = await http_gateway(lab, behaviour)
    client = await lab.client(running)
    answer = await client.ask("HEAD", path="/x")
    assert (answer.status, answer.get("content-length")) == (200, "10")
    assert (await client.ask("GET", path="/x")).body == b"0123456789"
    assert running.services["upstream"].connections == 1


async def test_the_path_is_appended_to_the_upstreams_and_stays_below_it(lab: Lab) -> None:
    running = await http_gateway(lab, path="/base/")
    client = await lab.client(running)
    assert (await client.ask("GET", path="/a/b")).body == b"GET /base/a/b 0"
    for climbing in ("/../x", "/a/../../x", "/%2e%2e/x", "/%2E./x", "/a/..%2f..%2fx", "/..\\x", "/.%5C..%5cx", "/.."):
        assert (await client.ask("GET", path=climbing)).status == 400
        client = await lab.client(running)


async def test_identity_is_passed_on(lab: Lab) -> None:
    running = await http_gateway(lab)
    client = await lab.client(running)
    await client.ask("GET", headers={"wardmesh-node": "root"}, path="/")
    assert running.services["upstream"].seen[0].get("wardmesh-node") == "alice"


async def test_somebody_without_a_grant_is_refused(lab: Lab) -> None:
    running = await http_gateway(lab)
    client = await lab.client(running, BOB)
    assert (await client.ask("GET", path="/")).status == 403
    assert running.services["upstream"].seen == []
    assert len(running.records.of(AuditEvent.CALL_DENIED)) == 1


async def test_a_token_stream_comes_as_it_is_made(lab: Lab) -> None:
    more = asyncio.Event()

    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(b"data: one\n\n")
        await more.wait()
        seen.chunk(b"data: two\n\n")
        seen.end_chunks()

    running = await http_gateway(lab, behaviour)
    client = await lab.client(running)
    client.send("POST", b"{}", path="/v1/chat/completions")
    await client.head()
    assert await client.chunk() == b"data: one\n\n"
    more.set()
    assert await client.chunks() == b"data: two\n\n"


async def test_a_token_stream_ends_at_both_ends_when_its_grant_does(lab: Lab) -> None:
    async def behaviour(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(b"data: one\n\n")
        await seen.gone.wait()

    running = await http_gateway(lab, behaviour)
    client = await lab.client(running)
    client.send("POST", b"{}", path="/v1/chat/completions")
    await client.head()
    assert await client.chunk() == b"data: one\n\n"
    await running.adopt([], without_alice=True)
    assert not (await client.rest()).endswith(b"0\r\n\r\n"), "half of a stream was called whole"
    await asyncio.wait_for(running.services["upstream"].seen[0].gone.wait(), BOUND)
    assert len(running.records.of(AuditEvent.STREAM_REVOKED)) == 1


@pytest.mark.parametrize("declared", [True, False])
async def test_a_large_upload_passes_as_it_comes_and_is_held_back(lab: Lab, declared: bool) -> None:
    started = asyncio.Event()
    go_on = asyncio.Event()
    block = b"u" * 65_536

    async def read_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert (b"content-length" in head) == declared
        started.set()
        await go_on.wait()
        total = 0
        while total < 512 * 65_536:
            if declared:
                total += len(await reader.read(65_536))
            else:
                size = int(await reader.readuntil(b"\r\n"), 16)
                total += size
                await reader.readexactly(size + 2)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%d" % (len(str(total)), total))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(read_slowly, "127.0.0.1", 0, limit=65_536)
    async with server:
        port = server.sockets[0].getsockname()[1]
        running = await lab.gateway(f"http://127.0.0.1:{port}/", kind="http")
        client = await lab.client(running)
        framing = f"content-length: {512 * 65_536}" if declared else "transfer-encoding: chunked"
        client.writer.write(f"PUT /big HTTP/1.1\r\nhost: {client.host}\r\n{framing}\r\n\r\n".encode())
        sent = 0

        async def upload() -> None:
            nonlocal sent
            for _ in range(512):
                client.writer.write(block if declared else b"10000\r\n" + block + b"\r\n")
                await client.writer.drain()
                sent += 1
            if not declared:
                client.writer.write(b"0\r\n\r\n")

        uploading = asyncio.create_task(upload())
        await asyncio.wait_for(started.wait(), BOUND)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 500, "the client was never held back"
        go_on.set()
        answer = await client.answer()
        assert answer.body == str(512 * 65_536).encode()
        await uploading


@asynccontextmanager
async def half_an_upload(lab: Lab) -> AsyncIterator[tuple[Client, list[bytes]]]:
    """A client whose upload has begun upstream, and what came of its body there, once it has ended."""
    came = asyncio.Event()
    ended: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        came.set()
        try:
            ended.append(await reader.read(-1))
        except ConnectionError:
            ended.append(b"reset")
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    async with server:
        running = await lab.gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", kind="http")
        client = await lab.client(running)
        client.writer.write(f"PUT /big HTTP/1.1\r\nhost: {client.host}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        client.writer.write(b"5\r\nhello\r\n")
        await asyncio.wait_for(came.wait(), BOUND)
        yield client, ended


async def test_a_client_that_goes_in_its_upload_breaks_it_off(lab: Lab) -> None:
    async with half_an_upload(lab) as (client, ended):
        client.vanish()
        await soon(lambda: ended)
        assert not ended[0].endswith(b"0\r\n\r\n"), "half a body was passed on as a whole one"


async def test_a_bad_chunk_in_an_upload_breaks_it_off(lab: Lab) -> None:
    async with half_an_upload(lab) as (client, ended):
        client.writer.write(b"zz\r\n")
        assert (await client.answer()).status in {400, 502}
        await soon(lambda: ended)
        assert not ended[0].endswith(b"0\r\n\r\n")


async def test_an_answer_before_the_upload_has_ended_is_passed_on(lab: Lab) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        running = await lab.gateway(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", kind="http")
        client = await lab.client(running)
        client.writer.write(f"PUT /big HTTP/1.1\r\nhost: {client.host}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        client.writer.write(b"5\r\nhello\r\n")
        answer = await client.answer()
        assert (answer.status, answer.body) == (403, b"no")
        assert await client.rest() == b""


async def test_an_upstream_that_is_away_is_a_bad_gateway(lab: Lab) -> None:
    running = await lab.gateway("http://127.0.0.1:1/", kind="http")
    client = await lab.client(running)
    assert (await client.ask("GET", path="/")).status == 502
