"""An MCP client with the official SDK: lists the tools, calls one, prints one JSON object with the timings.

A call that is refused is no failure of this program: the object has `refused` then, as a model would read it.
"""

import argparse
import asyncio
import json
import time

from mcp import Client, MCPError


async def call(url: str, tool: str, arguments: dict[str, str]) -> dict[str, object]:
    begin = time.perf_counter()
    async with Client(url) as client:
        connected = time.perf_counter()
        tools = await client.list_tools()
        listed = time.perf_counter()
        found: dict[str, object] = {
            "protocol": client.session.protocol_version,
            "tools": [tool.name for tool in tools.tools],
            "connect_ms": (connected - begin) * 1000,
            "list_ms": (listed - connected) * 1000,
        }
        try:
            result = await client.call_tool(tool, arguments)
        except MCPError as error:
            found |= {"refused": error.error.message, "code": error.error.code}
        else:
            found |= {"text": "".join(part.text for part in result.content if part.type == "text")}
        return found | {"call_ms": (time.perf_counter() - listed) * 1000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("tool")
    parser.add_argument("arguments", metavar="NAME=VALUE", nargs="*")
    options = parser.parse_args()
    arguments = dict(argument.partition("=")[::2] for argument in options.arguments)
    print(json.dumps(asyncio.run(call(options.url, options.tool, arguments))))


if __name__ == "__main__":
    main()
