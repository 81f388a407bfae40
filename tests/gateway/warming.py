"""Calls that are like one before: what the tests of the shortcut send. The fixture `taken` has those that took it."""

import json
from typing import Any

from agentd.gateway.http.exchange import Exchange
from tests.gateway.harness import Client, body, tool

LEGACY = {"mcp-protocol-version": "2025-06-18"}


async def warm(client: Client, taken: list[Exchange], request: tuple[bytes, dict[str, str]] | None = None) -> None:
    """The next request with this head takes the shortcut, if nothing forbids it."""
    for _ in range(4):
        before = len(taken)
        assert (await client.call(request or tool())).status == 200
        if len(taken) > before:
            return
    raise AssertionError("no call took the shortcut")


def legacy(name: str = "add", number: object = 1, **headers: str) -> tuple[bytes, dict[str, str]]:
    return body("tools/call", number, None, name=name, arguments={}), {**LEGACY, **headers}


def changed(**changes: Any) -> bytes:
    message = json.loads(tool()[0])
    message["params"] |= changes.pop("params", {})
    message["params"]["_meta"] |= changes.pop("meta", {})
    return json.dumps({**message, **changes}, separators=(",", ":")).encode()
