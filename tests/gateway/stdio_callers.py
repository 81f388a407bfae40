"""Callers of servers on standard input and output, and a pool of such servers that do as they are told."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentd.gateway.stdio import StdioPool
from agentd.gateway.types import (
    TRANSPORT_STREAM,
    TRANSPORT_TERMINATE,
    Call,
    Caller,
    Era,
    UpstreamRequest,
    UpstreamResponse,
)
from controller.wire.mcp import StdioUpstream

from .policies import caller

SCRIPT = (sys.executable, str(Path(__file__).with_name("scripted_server.py")))
ANN, BOB = caller("192.0.2.1", "ann"), caller("192.0.2.2", "bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pool(clock: Callable[[], float] | None = None, **fields: Any) -> AsyncIterator[StdioPool]:
    upstream = StdioUpstream(**{"command": SCRIPT, **fields})
    made = StdioPool("scripted", upstream, clock=clock or Clock())
    try:
        async with asyncio.timeout(60):
            yield made
    finally:
        await made.close()


def request(
    who: Caller,
    method: str,
    params: dict[str, Any],
    *,
    era: Era = "legacy",
    number: Any = 1,
    session: str | None = None,
) -> UpstreamRequest:
    body = json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}).encode()
    call = Call("scripted", era, method, params.get("name"), params.get("arguments"), number, body, params)
    verb = {TRANSPORT_STREAM: "GET", TRANSPORT_TERMINATE: "DELETE"}.get(method, "POST")
    return UpstreamRequest(verb, b"/", (), body, who, call, session)


async def whole(response: UpstreamResponse) -> bytes:
    parts = []
    while data := await response.read():
        parts.append(data)
    return b"".join(parts)


async def messages(response: UpstreamResponse) -> list[dict[str, Any]]:
    """Every message of an answer, JSON or stream."""
    body = await whole(response)
    if dict(response.headers).get(b"content-type") == b"text/event-stream":
        return [json.loads(line[5:]) for line in body.splitlines() if line.startswith(b"data:")]
    return [json.loads(body)]


async def begin(stdio: StdioPool, who: Caller, capabilities: dict[str, Any] | None = None) -> str:
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": capabilities or {},
        "clientInfo": {"name": "c", "version": "1"},
    }
    response = await stdio.open(request(who, "initialize", params))
    (message,) = await messages(response)
    assert message["result"]["serverInfo"]["name"] == "scripted"
    assert message["result"]["protocolVersion"] == "2025-06-18"
    return dict(response.headers)[b"mcp-session-id"].decode()


def tool(who: Caller, session: str | None, name: str, arguments: Any = None, **fields: Any) -> UpstreamRequest:
    params = {"name": name, "arguments": arguments, **fields.pop("params", {})}
    return request(who, "tools/call", params, session=session, **fields)


async def result_of(stdio: StdioPool, asked: UpstreamRequest) -> Any:
    *_, last = await messages(await stdio.open(asked))
    return json.loads(last["result"]["content"][0]["text"])


async def facts(stdio: StdioPool, who: Caller, session: str) -> dict[str, Any]:
    found: dict[str, Any] = await result_of(stdio, tool(who, session, "facts"))
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except FileNotFoundError:
        return False


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)
