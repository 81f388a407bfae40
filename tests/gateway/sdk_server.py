"""A real MCP server (PyPI mcp) over HTTP in a thread of its own, with a tool for each thing that a proxy gets wrong."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.types import JSONRPCMessage
from pydantic import Field

from tests.gateway.harness import free_port

started: list[str] = []  # names of slow calls that began
cancelled: list[str] = []  # of those that were cancelled
finished: list[str] = []  # and of those that came to their end


class Events(EventStore):
    """Keeps every event, so that a legacy client may resume."""

    def __init__(self) -> None:
        self._events: list[tuple[str, JSONRPCMessage | None]] = []

    async def store_event(self, stream_id: str, message: JSONRPCMessage | None) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: EventCallback) -> str | None:
        position = int(last_event_id)
        stream = self._events[position - 1][0]
        for number, (stream_id, message) in enumerate(self._events[position:], position + 1):
            if stream_id == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


def build() -> MCPServer:
    server = MCPServer("fixture")

    @server.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool()
    def echo(text: str) -> str:
        """Say it again."""
        return text

    @server.tool()
    def secret() -> str:
        """Nobody's business."""
        return "42"

    @server.tool()
    def by_region(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})], query: str) -> str:
        """Its region is mirrored in a header."""
        return f"{region}:{query}"

    @server.tool()
    async def count(context: Context[Any, Any], to: int, name: str = "count", pause: float = 0.01) -> str:
        """Report progress, step by step."""
        started.append(name)
        try:
            for step in range(to):
                await context.report_progress(step, to)
                await asyncio.sleep(pause)
        except asyncio.CancelledError:
            cancelled.append(name)
            raise
        finished.append(name)
        return "done"

    @server.resource("test://one")
    def one() -> str:
        """The first."""
        return "1"

    @server.prompt()
    def greet(who: str) -> str:
        """Greet somebody."""
        return f"Say hello to {who}"

    return server


@contextmanager
def serving() -> Iterator[str]:
    """The server's URL while it runs."""
    port = free_port()
    app = build().streamable_http_app(event_store=Events())
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive(), "the fixture server did not start"
        yield f"http://127.0.0.1:{port}/mcp"
    finally:
        server.should_exit = True
        thread.join(10)
