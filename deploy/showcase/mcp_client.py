"""An MCP client with the official SDK: lists the tools, calls one, prints one JSON object with the timings."""

import argparse
import asyncio
import json
import time

from mcp import Client


async def call(url: str, parcel: str) -> dict[str, object]:
    begin = time.perf_counter()
    async with Client(url) as client:
        connected = time.perf_counter()
        tools = await client.list_tools()
        listed = time.perf_counter()
        result = await client.call_tool("pack", {"parcel": parcel})
        called = time.perf_counter()
        return {
            "protocol": client.session.protocol_version,
            "tools": [tool.name for tool in tools.tools],
            "text": "".join(part.text for part in result.content if part.type == "text"),
            "connect_ms": (connected - begin) * 1000,
            "list_ms": (listed - connected) * 1000,
            "call_ms": (called - listed) * 1000,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("parcel")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(call(options.url, options.parcel))))


if __name__ == "__main__":
    main()
