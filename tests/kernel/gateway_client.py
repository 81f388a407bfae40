"""The SDK's client as a program: does what its arguments say against one service, and prints a line of JSON for each.

`list`, or a tool with its arguments as JSON (`add {"a": 1, "b": 2}`). With --again, the last step is done for ever,
each time on a connection of its own: who uses a service while it moves.
"""

import argparse
import asyncio
import itertools
import json
import sys
import time
from typing import Any

import anyio
import httpx2
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

AWAY = (OSError, MCPError, httpx2.HTTPError, anyio.ClosedResourceError, anyio.BrokenResourceError)  # nobody answers
PATIENCE = 5.0  # seconds that each of `--again` may take
FORGED = {"Wardmesh-Node": "root", "wardmesh_tags": "tag:admins", "X-Forwarded-For": "192.0.2.1"}


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def report(progress: float, total: float | None, message: str | None) -> None:
    say(progress=progress)


async def step(client: Client, what: str) -> dict[str, Any]:
    """What became of one step."""
    if what == "list":
        return {"tools": [tool.name for tool in (await client.list_tools()).tools]}
    tool, _, arguments = what.partition(" ")
    try:
        result: Any = await client.call_tool(tool, json.loads(arguments or "{}"), progress_callback=report)
    except MCPError as error:
        return {"error": error.error.code, "message": error.error.message, "data": error.error.data}
    return {"answer": result.structured_content.get("result", result.structured_content)}


async def once(url: str, mode: Any, steps: list[str]) -> None:
    async with (
        httpx2.AsyncClient(headers=FORGED, timeout=httpx2.Timeout(10, read=60)) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode) as client,
    ):
        say(protocol=client.session.protocol_version)
        for what in steps:
            say(**await step(client, what))


async def again(url: str, mode: Any, what: str) -> None:
    for number in itertools.count():
        try:
            async with asyncio.timeout(PATIENCE):
                async with Client(url, mode=mode) as client:
                    say(number=number, **await step(client, what))
        except* AWAY as group:
            say(number=number, failed=repr(group.exceptions[0]))
        await asyncio.sleep(0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("auto", "legacy"), default="auto")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("url")
    parser.add_argument("steps", nargs="+")
    options = parser.parse_args()
    begin = time.monotonic()
    if options.again:
        asyncio.run(again(options.url, options.mode, options.steps[-1]))
    asyncio.run(once(options.url, options.mode, options.steps))
    print(f"{time.monotonic() - begin:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
