"""Agents of a hub as plain coroutines, which take what they are sent and fold it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from controller.mesh import Hub
from controller.mesh.connection import Connection
from controller.wire.netmap import Netmap, fold
from controller.wire.stream import Bye, ControllerFrame, DeltaFrame, Hello, HostReport, Snapshot

from .mesh_fleet import key


def hello(number: int, revision: int | None = None, mesh: str | None = "mesh1") -> Hello:
    report = HostReport(agent_version="0.1", backend="userspace", public_key=key(number))
    return Hello(revision=revision, mesh=mesh, report=report)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


class Agent:
    """Takes frames while its gate is open, and folds them."""

    def __init__(self, connection: Connection, held: Netmap | None) -> None:
        self.connection = connection
        self.frames: list[ControllerFrame] = []
        self.netmap = held
        self.gate = asyncio.Event()
        self.gate.set()

    async def take(self, frame: ControllerFrame) -> None:
        await self.gate.wait()
        self.frames.append(frame)
        if isinstance(frame, Snapshot):
            self.netmap = frame.netmap
        elif isinstance(frame, DeltaFrame):
            assert self.netmap is not None
            self.netmap = fold(self.netmap, frame.delta)

    def has(self, revision: int) -> Callable[[], bool]:
        return lambda: self.netmap is not None and self.netmap.revision == revision

    @property
    def bye(self) -> Bye:
        last = self.frames[-1]
        assert isinstance(last, Bye)
        return last


@asynccontextmanager
async def agent(
    hub: Hub, number: int, revision: int | None = None, *, mesh: str | None = "mesh1", held: Netmap | None = None
) -> AsyncIterator[Agent]:
    with hub.connected(f"n{number}", hello(number, revision, mesh)) as connection:
        made = Agent(connection, held)
        task = asyncio.create_task(connection.run(made.take))
        try:
            yield made
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def netmap(hub: Hub, number: int) -> Netmap:
    found = hub.netmap(f"n{number}")
    assert found is not None
    return found
