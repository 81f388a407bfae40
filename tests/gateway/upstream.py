"""An upstream on a real socket that does as it is told, and remembers what it saw."""

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """A request as an upstream got it, with the connection that it came on."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    def reply(self, data: bytes, status: str = "200 OK", kind: str = "application/json", **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{lines}\r\n"
        self.writer.write(head.encode("latin-1") + data)

    def result(self, **result: object) -> None:
        self.reply(json.dumps({"jsonrpc": "2.0", "id": self.json["id"], "result": result}).encode())

    def start_events(self, **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{lines}\r\n".encode()
        )

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_chunks(self) -> None:
        self.writer.write(b"0\r\n\r\n")


Behaviour = Callable[[Seen], Awaitable[None]]


async def echo(seen: Seen) -> None:
    """Answers every request with what it asked."""
    if seen.body and "id" in seen.json and "method" in seen.json:
        seen.result(resultType="complete", method=seen.json["method"], content=[])
    else:
        seen.reply(b"", "202 Accepted")


class LoopbackServer(ABC):
    """Listens on the loopback address; `converse` talks on each connection until it ends or the test is over."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @abstractmethod
    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Talk until the connection ends."""

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._talk, "127.0.0.1", port, limit=1 << 24)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.converse(reader, writer)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            writer.close()
            self._tasks.discard(task)


class Upstream(LoopbackServer):
    """An HTTP server that shows what it got and does as it is told."""

    def __init__(self, behaviour: Behaviour = echo) -> None:
        super().__init__()
        self.behaviour = behaviour
        self.seen: list[Seen] = []
        self.connections = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                seen = await self._request(reader, writer)
                self.seen.append(seen)
                watching = asyncio.create_task(_watch(seen))
                try:
                    await self.behaviour(seen)
                    await writer.drain()
                except ConnectionError:
                    seen.gone.set()
                    raise
                finally:
                    watching.cancel()
                    await asyncio.gather(watching, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the gateway closed

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Seen:
        raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw.split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        named = dict(headers)
        if named.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(await reader.readuntil(b"\r\n"), 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            await reader.readexactly(2)
            data = b"".join(parts)
        else:
            data = await reader.readexactly(int(named.get("content-length", "0")))
        return Seen(method, target, headers, data, reader, writer)


async def _watch(seen: Seen) -> None:
    """Tell when the gateway goes away while the request is being answered, without taking any bytes."""
    while not seen.reader.at_eof() and not seen.writer.transport.is_closing() and seen.reader.exception() is None:
        await asyncio.sleep(0.001)
    seen.gone.set()
