"""The gateway in a mesh: a real client calls a service by its name, through the tunnel, as policy says."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.lab import Host, Lab, eventually
from tests.lab.mesh import Agent, Controller

POLICY = """
services:
  github: {on: [tag:tools], mcp: {upstream: "http://127.0.0.1:3000/mcp"}}
grants:
  - {from: [tag:agents], to: [svc:github], mcp: {tools: [add]}}
"""
SERVER = (
    "import uvicorn; from tests.gateway.sdk_server import build;"
    "uvicorn.run(build().streamable_http_app(), host='127.0.0.1', port=3000, log_level='info')"
)
CLIENT = """
import asyncio, json, sys
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError

async def main():
    async with Client("http://github.mesh.internal/mcp") as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        sum = (await client.call_tool("add", {"a": 2, "b": 3})).structured_content
        try:
            await client.call_tool("secret", {})
            refused = None
        except MCPError as error:
            refused = error.error.code
        print(json.dumps({"tools": tools, "sum": sum, "refused": refused}))

asyncio.run(main())
"""


@dataclass
class World:
    """Two hosts with a server each, and one that calls."""

    tools: list[Agent]
    caller: Agent

    def call(self) -> dict[str, Any] | None:
        """What a client on the caller's host gets; None when it gets nothing."""
        ran = self.caller.host.run(sys.executable, "-c", CLIENT, check=False, timeout=60)
        print(ran.stderr)
        found: dict[str, Any] | None = json.loads(ran.stdout) if ran.returncode == 0 else None
        return found

    def holder(self) -> Agent | None:
        """The host that holds the service now and can answer, as it says itself."""
        for agent in self.tools:
            if agent.process.running:
                services = agent.status()["services"]
                if any(service["held"] and service["error"] is None for service in services):
                    return agent
        return None


def serve(host: Host) -> None:
    host.start(sys.executable, "-c", SERVER).wait_for_line("Uvicorn running", 60)


@pytest.fixture
def world() -> Iterator[World]:
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(POLICY)
        tools = []
        for name in ("tools1", "tools2"):
            host = lab.host(name, switch)
            serve(host)
            tools.append(Agent.join(host, controller.join_string("tag:tools"), gateway="nobody"))
        caller = Agent.join(lab.host("caller", switch), controller.join_string("tag:agents"))
        yield World(tools, caller)


def test_a_service_is_called_by_name_and_moves_when_its_holder_dies(world: World) -> None:
    expected = {"tools": ["add"], "sum": {"result": 5}, "refused": 40300}
    first = eventually(world.holder, 60, what="a host that serves github")
    eventually(lambda: world.call() == expected, 60, interval=1, what="a call by name")
    (process,) = first.status()["gateway"]["processes"]
    facts = first.host.run("cat", f"/proc/{process}/status").stdout
    assert "CapEff:\t0000000000000000" in facts
    assert "NoNewPrivs:\t1" in facts
    first.process.kill()
    eventually(lambda: world.holder() not in {None, first}, 60, what="another host that serves github")
    eventually(lambda: world.call() == expected, 60, interval=1, what="a call to the other host")
