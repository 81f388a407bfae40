"""Open streams of many agents in one process: connects, acknowledges, notes when what came. No map is kept.

Run in a process of its own and talked to through a pipe; times are of the monotonic clock, which processes share.
"""

import asyncio
import contextlib
import multiprocessing
import random
import re
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final, Self

import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from controller.wire.stream import PROTOCOL, STREAM_PATH, Hello, HostReport

from .population import Identity

__all__ = ["Streams"]

_REVISION: Final = re.compile(r'"revision":(\d+)')
_TIMELINE: Final = re.compile(r'"timeline":"([^"]*)"')
_AT_ONCE: Final = 64  # handshakes under way in one process
_RETRY: Final = (0.2, 2.0)  # seconds; agents come back jittered
_LARGEST: Final = 64 * 1024 * 1024


@dataclass(slots=True)
class _Agent:
    identity: Identity
    revision: int | None = None
    timeline: str = ""
    first: str = ""  # what the stream began with: snapshot or delta
    connected: float = 0.0
    arrived: dict[int, float] = field(default_factory=dict)  # when the map reached a revision


class Streams:
    """The parent's end of one process of agents."""

    def __init__(self, identities: Sequence[Identity], port: int, ca: str, mesh: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_main, args=(theirs, list(identities), port, ca, mesh), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, *command: Any) -> Any:
        """Send a command and wait for its answer."""
        self.send(*command)
        return self.receive()

    def send(self, *command: Any) -> None:
        self._pipe.send(command)

    def receive(self) -> Any:
        return self._pipe.recv()

    @property
    def has_answered(self) -> bool:
        """Whether `receive` would return at once."""
        return self._pipe.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._pipe.send(("end",))
        self._process.join(10)
        self._process.kill()


def _main(pipe: Connection, identities: list[Identity], port: int, ca: str, mesh: str) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_Fleet(identities, port, ca, mesh).serve(pipe))


class _Fleet:
    def __init__(self, identities: list[Identity], port: int, ca: str, mesh: str) -> None:
        self._agents = [_Agent(identity) for identity in identities]
        self._port, self._ca, self._mesh = port, ca, mesh
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._news = asyncio.Event()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def serve(self, pipe: Connection) -> None:
        """Answer commands until told to end."""
        while True:
            command, *arguments = await asyncio.to_thread(pipe.recv)
            if command == "end":
                break
            pipe.send(await getattr(self, f"do_{command}")(*arguments))
        for task in self._tasks.values():
            task.cancel()

    async def do_connect(self, names: list[str] | None) -> int:
        """Open the streams of these agents (None: of all) and wait until each has its first frame."""
        agents = [agent for agent in self._agents if names is None or agent.identity.name in names]
        for agent in agents:
            if agent.identity.name not in self._tasks:
                self._tasks[agent.identity.name] = asyncio.create_task(self._stream(agent))
        await self._until(lambda: all(agent.first for agent in agents))
        return len(agents)

    async def do_disconnect(self, names: list[str]) -> int:
        """Close the streams of these agents; they forget their maps."""
        for name in names:
            task = self._tasks.pop(name)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for agent in self._agents:
            if agent.identity.name in names:
                agent.revision, agent.first = None, ""
        return len(names)

    async def do_expect_return(self) -> int:
        """From now on, `returned` waits for every agent's next stream."""
        for agent in self._agents:
            agent.first = ""
        return len(self._agents)

    async def do_returned(self) -> list[tuple[float, str]]:
        """Wait until every agent has a new stream: when its first frame came, and what that was."""
        await self._until(lambda: all(agent.first for agent in self._agents))
        return [(agent.connected, agent.first) for agent in self._agents]

    async def do_arrivals(self, revision: int, names: list[str] | None) -> list[float]:
        """Wait until these agents (None: all) have a revision; when each did."""
        agents = [agent for agent in self._agents if names is None or agent.identity.name in names]
        await self._until(lambda: all(_arrival(agent, revision) for agent in agents))
        return [_arrival(agent, revision) or 0.0 for agent in agents]

    async def _until(self, holds: Any) -> None:
        async with asyncio.timeout(300):
            while not holds():
                self._news.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), 0.25)
                await asyncio.sleep(0.01)

    async def _stream(self, agent: _Agent) -> None:
        tls = ssl.create_default_context(cafile=self._ca)
        tls.load_cert_chain(agent.identity.certificate)
        while True:
            try:
                async with self._slots:
                    websocket = await connect(
                        f"wss://127.0.0.1:{self._port}{STREAM_PATH}",
                        ssl=tls,
                        subprotocols=[Subprotocol(PROTOCOL)],
                        compression=None,
                        max_size=_LARGEST,
                        ping_interval=None,
                        proxy=None,
                    )
                    await self._greet(agent, websocket)
                async for message in websocket:
                    await self._take(agent, websocket, str(message))
                pause = 0.0
            except InvalidStatus as error:
                pause = float(error.response.headers.get("Retry-After", "0"))
            except (OSError, WebSocketException, TimeoutError):
                pause = 0.0
            await asyncio.sleep(pause + random.uniform(*_RETRY))

    async def _greet(self, agent: _Agent, websocket: ClientConnection) -> None:
        report = HostReport(agent_version="bench", public_key=agent.identity.public_key, endpoints=("127.0.0.1:51820",))
        hello = Hello(revision=agent.revision, mesh=self._mesh, timeline=agent.timeline, report=report)
        await websocket.send(hello.model_dump_json())
        message = str(await websocket.recv())
        agent.connected = time.monotonic()
        agent.first = "snapshot" if message.startswith('{"type":"snapshot"') else "delta"
        await self._take(agent, websocket, message)

    async def _take(self, agent: _Agent, websocket: ClientConnection, message: str) -> None:
        arrived = time.monotonic()
        found = _REVISION.search(message)
        if found is None:
            return  # Bye
        revision = int(found[1])
        if message.startswith('{"type":"snapshot"') and (timeline := _TIMELINE.search(message)):
            agent.timeline = timeline[1]
        agent.revision = revision
        agent.arrived[revision] = arrived
        if len(agent.arrived) > 64:
            del agent.arrived[next(iter(agent.arrived))]
        self._news.set()
        await websocket.send(f'{{"type":"applied","revision":{revision}}}')


def _arrival(agent: _Agent, revision: int) -> float | None:
    return min((at for reached, at in agent.arrived.items() if reached >= revision), default=None)
