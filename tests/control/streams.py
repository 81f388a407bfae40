"""An agent of a test on a real stream: says what it is told to, folds what it hears, waits for what is to come."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from controller.server import Running
from controller.wire.netmap import Netmap, fold
from controller.wire.stream import (
    PROTOCOL,
    STREAM_PATH,
    Applied,
    Bye,
    ControllerFrame,
    DeltaFrame,
    Hello,
    HostReport,
    Report,
    Snapshot,
    controller_frame,
)

from .hosts import Host
from .support import Client

POLICY = "grants: [{from: tag:agents, to: tag:tools, ip: [tcp:443]}]"


class Agent:
    """The other end of a stream: folds what it is sent."""

    def __init__(self, socket: ClientConnection, host: Host) -> None:
        self.socket = socket
        self.host = host
        self.netmap: Netmap | None = None

    def report(self, **changes: Any) -> HostReport:
        facts = {"agent_version": "0.1.0", "public_key": self.host.public_key, "endpoints": ("192.0.2.7:51820",)}
        return HostReport(**(facts | changes))

    async def say(self, frame: Hello | Report | Applied | str) -> None:
        await self.socket.send(frame if isinstance(frame, str) else frame.model_dump_json())

    async def hello(self, held: Netmap | None = None, **changes: Any) -> ControllerFrame:
        """Greet, and take the first frame."""
        self.netmap = held
        revision, mesh, timeline = (
            (None, None, "") if held is None else (held.revision, held.mesh.id, held.mesh.timeline)
        )
        await self.say(Hello(revision=revision, mesh=mesh, timeline=timeline, report=self.report(**changes)))
        return await self.take()

    async def take(self) -> ControllerFrame:
        async with asyncio.timeout(10):
            frame = controller_frame.validate_json(await self.socket.recv())
        if isinstance(frame, Snapshot):
            self.netmap = frame.netmap
        elif isinstance(frame, DeltaFrame):
            assert self.netmap is not None
            self.netmap = fold(self.netmap, frame.delta)
        return frame

    async def take_until(self, condition: Callable[[Netmap], bool]) -> Netmap:
        while self.netmap is None or not condition(self.netmap):
            frame = await self.take()
            assert not isinstance(frame, Bye), frame
        return self.netmap

    async def bye(self) -> Bye:
        """Read on to the Bye, and to the close that follows it."""
        frame = await self.take()
        while not isinstance(frame, Bye):
            frame = await self.take()
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionClosed):
                await self.socket.recv()
        return frame


@asynccontextmanager
async def agent(
    controller: Running, host: Host, directory: Path, context: ssl.SSLContext | None = None, protocol: str = PROTOCOL
) -> AsyncIterator[Agent]:
    async with connect(
        f"wss://127.0.0.1:{controller.port}{STREAM_PATH}",
        ssl=context or host.tls(controller, directory),
        subprotocols=[Subprotocol(protocol)] if protocol else None,
    ) as socket:
        yield Agent(socket, host)


def node_id(host: Host) -> str:
    return host.enrolled.node_id


async def patch(admin: Client, host: Host, **changes: Any) -> None:
    path = f"/nodes/{node_id(host)}"
    tag = (await admin.get(path)).headers["etag"]
    answer = await admin.patch(path, json=changes, headers={"if-match": tag})
    assert answer.is_success, answer.text


async def delete(admin: Client, host: Host) -> None:
    path = f"/nodes/{node_id(host)}"
    answer = await admin.delete(path, headers={"if-match": (await admin.get(path)).headers["etag"]})
    assert answer.is_success, answer.text


async def seen(admin: Client, host: Host, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The node over REST, once it fulfils the condition."""
    async with asyncio.timeout(10):
        while True:
            node: dict[str, Any] = (await admin.get(f"/nodes/{node_id(host)}")).json()
            if condition(node):
                return node
            await asyncio.sleep(0.02)
