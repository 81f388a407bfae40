"""Thousands of requests that are nearly right: no crash, no leak, and nobody reads anything else than was decided on.

WARDMESH_FUZZ says how many requests (5,000 if unset), WARDMESH_FUZZ_SEED which; both are printed.
"""

import asyncio
import logging
import os
import random
import re
import time

import pytest

from agentd.gateway.http.exchange import Exchange
from agentd.gateway.http.limits import HttpLimits
from agentd.gateway.types import AuditEvent, Call
from tests.gateway.fuzzing import READINGS, Upstream, familiar, request
from tests.gateway.harness import BOB, Lab, Running, soon, tool

COUNT = int(os.environ.get("WARDMESH_FUZZ", "5000"))
SEED = int(os.environ.get("WARDMESH_FUZZ_SEED", "0")) or time.time_ns() % 2**32
CLIENTS = 32
# What a server that takes `_` for `-` would read as a header that was judged, or that is ours to set.
MISTAKEN = re.compile(r"(?=.*_)(wardmesh|mcp|x[-_]forwarded|content|transfer|last[-_]event)[-_](?!param-).*")
HASTY = HttpLimits(
    head_seconds=0.2, body_pause=0.2, body_seconds=0.5, idle_seconds=2, gather_seconds=0.1, linger=0.1, tick=0.05
)
GRANT = {"id": "bobs", "peers": ["bob"], "services": ["svc"], "tools": ["add"]}


@pytest.mark.timeout(60 + COUNT // 50)
async def test_nobody_reads_anything_else_than_was_decided_on(
    lab: Lab, taken: list[Exchange], caplog: pytest.LogCaptureFixture
) -> None:
    print(f"\nWARDMESH_FUZZ={COUNT} WARDMESH_FUZZ_SEED={SEED}")
    upstream = Upstream(SEED)
    await upstream.start()
    try:
        running = await lab.gateway(
            f"http://127.0.0.1:{upstream.port}/mcp", http=HASTY, grants=[GRANT], limits={"streams": 1000}
        )
        with caplog.at_level(logging.WARNING):
            share = COUNT // CLIENTS + 1
            await asyncio.gather(*(send(running, random.Random(SEED + number), share) for number in range(CLIENTS)))
            await soon(lambda: not len(running.gateway.live))
        check(running, upstream)
        print(f"{len(upstream.requests)} reached the upstream, {len(running.records.all)} audit records")
        print(f"{len(taken)} took the shortcut")
        assert len(taken) > COUNT / 100, "too few took the shortcut for this to prove anything of it"
        assert [record.getMessage() for record in caplog.records if record.name.startswith("agentd")] == []
        client = await lab.client(running, BOB)
        upstream.rng = random.Random(5)
        assert (await client.call(tool())).status in {200, 502}
    finally:
        await upstream.close()


async def send(running: Running, rng: random.Random, count: int) -> None:
    """Send `count` requests, on connections that are kept while they live; some are left at any point."""
    reader = writer = None
    for _ in range(count):
        if writer is None or writer.is_closing() or reader is None or reader.at_eof():
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port, local_addr=(BOB, 0))
        made = (familiar if rng.random() < 0.5 else request)(rng, f"127.0.0.1:{running.port}")
        leaves = rng.random() < 0.1
        cut = rng.randrange(len(made)) if leaves or rng.random() < 0.3 else len(made)
        try:
            writer.write(made[:cut])
            await writer.drain()
            if cut < len(made):
                await asyncio.sleep(0)
                if leaves:
                    writer.transport.abort()
                    writer = None
                    continue
                writer.write(made[cut:])
                await writer.drain()
            async with asyncio.timeout(1):
                said = await reader.read(65536)
                if not said or b"\r\nconnection: close\r\n" in said:
                    writer.close()
                    writer = None
        except (ConnectionError, TimeoutError):
            if writer is not None:
                writer.transport.abort()
            writer = None
    if writer is not None:
        writer.transport.abort()


def check(running: Running, upstream: Upstream) -> None:
    assert upstream.wrong == []
    decided: dict[bytes, list[Call]] = {}
    for record in running.records.of(AuditEvent.CALL_ALLOWED):
        assert record.call is not None
        decided.setdefault(record.call.body, []).append(record.call)
    assert len(upstream.requests) > COUNT / 20, "too little got through for this to prove anything"
    for headers, body in upstream.requests:
        assert headers["wardmesh-node"] == "bob"
        assert not any(MISTAKEN.fullmatch(name) for name in headers), headers
        assert body in decided, "what reached the upstream was never decided on"
        if not body:
            continue
        call = decided[body][0]
        for way, read in READINGS.items():
            message = read(body)
            assert isinstance(message, dict), way
            method, params = message.get("method", ""), message.get("params", {})
            assert method == call.method or not method, way
            if method == "tools/call":
                assert params["name"] == "add", f"{way}: {body!r}"
            if headers.get("mcp-protocol-version") == "2026-07-28":
                assert headers.get("mcp-method", method) == method, way
                if method in {"tools/call", "prompts/get", "resources/read"}:
                    assert headers["mcp-name"] == params.get("uri", params.get("name")), f"{way}: {headers} {body!r}"
