"""Hosts that serve, for tests of services: real streams with heartbeats, as agentd has; and waiting for a service."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.server import Running
from controller.wire.netmap import Netmap
from controller.wire.stream import Serving

from .hosts import Host
from .streams import Agent, agent
from .support import Client

GITHUB = '{on: [tag:tools], mcp: {upstream: "http://127.0.0.1:3000/mcp"}}'
POLICY = f"""\
services:
  github: {GITHUB}
grants:
  - {{from: tag:agents, to: svc:github, mcp: {{tools: ["search_*"]}}}}
"""


class Server:
    """A host with a heartbeat. `error`: why its services cannot answer; `silent`: it says nothing at all."""

    def __init__(self, stream: Agent, names: tuple[str, ...]) -> None:
        self.stream = stream
        self.names = names
        self.error: str | None = None
        self.silent = False

    @property
    def netmap(self) -> Netmap:
        assert self.stream.netmap is not None
        return self.stream.netmap

    async def beat(self) -> None:
        while True:
            if not self.silent:
                await self.stream.say(Serving(services=dict.fromkeys(self.names, self.error)).model_dump_json())
            await asyncio.sleep(0.5)

    async def listen(self) -> None:
        while True:
            await self.stream.take_until(lambda _: False)


@asynccontextmanager
async def server(
    controller: Running, host: Host, directory: Path, names: tuple[str, ...] = ("github",), error: str | None = None
) -> AsyncIterator[Server]:
    async with agent(controller, host, directory) as stream:
        await stream.hello()
        made = Server(stream, names)
        made.error = error
        tasks = [asyncio.create_task(made.beat()), asyncio.create_task(made.listen())]
        try:
            yield made
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(
    admin: Client, condition: Callable[[dict[str, Any]], bool], name: str = "github", within: float = 30
) -> dict[str, Any]:
    """The service once it is as wanted."""
    found: dict[str, Any] = {}
    try:
        async with asyncio.timeout(within):
            while not found or not condition(found):
                answer = await admin.get(f"/services/{name}")
                assert answer.status_code == 200, answer.text
                found = answer.json()
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"not within {within} s; it is {found}")
    return found


def is_healthy(service: dict[str, Any]) -> bool:
    return bool(service["healthy"])


def held_by(name: str | None) -> Callable[[dict[str, Any]], bool]:
    return lambda service: service["holder"] == name


def all_healthy(service: dict[str, Any]) -> bool:
    return all(host["healthy"] for host in service["hosts"])


def move(admin: Client, node: str, **more: Any) -> Awaitable[Any]:
    return admin.post("/services/github/move", json={"node": node, **more})
