"""A real MCP server (PyPI mcp) as a program: says whose it is, who it was told calls, and what was cancelled."""

import asyncio
import socket
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("tools", log_level="WARNING")


@server.tool()
def where() -> str:
    """Whose server this is."""
    return socket.gethostname()


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@server.tool()
def read(path: str) -> str:
    """Pretend to read a file."""
    return f"content of {path}"


@server.tool()
def secret() -> str:
    """Nobody's business."""
    print("secret was called", flush=True)
    return "42"


@server.tool()
def identity(context: Context[Any, Any]) -> dict[str, str]:
    """Who the server was told calls."""
    return {name: text for name, text in (context.headers or {}).items() if "wardmesh" in name or "forward" in name}


@server.tool()
async def count(context: Context[Any, Any], name: str) -> str:
    """Report progress until somebody ends it."""
    print(f"began {name}", flush=True)
    try:
        for step in range(1_000_000):
            await context.report_progress(step)
            await asyncio.sleep(0.2)
    except asyncio.CancelledError:
        print(f"cancelled {name}", flush=True)
        raise
    return "done"


def main() -> None:
    server.run("streamable-http", host="127.0.0.1", port=3000)


if __name__ == "__main__":
    main()
