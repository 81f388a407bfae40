"""Clients that cost little, so that what is measured is the server: asyncio protocols, prepared requests."""

import asyncio
import re
import ssl
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import orjson
import uvloop

__all__ = ["Result", "Target", "events", "greet", "hold", "load"]

T = TypeVar("T")
WARM = 3  # calls of each client before any is measured
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
SESSION = re.compile(rb"\r\nmcp-session-id: *([^\r]+)", re.IGNORECASE)
SENT = re.compile(rb'"sent":(\d+)')
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@dataclass(frozen=True, slots=True)
class Target:
    """Where calls go, and in which era; over TLS if `tls` says whom to trust."""

    port: int
    legacy: bool = False
    tls: ssl.SSLContext | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds a call, and calls a second."""

    p50: float
    p99: float
    rate: float


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.data = b""
        self.arrived: asyncio.Future[bytes] | None = None
        self.on_data: Callable[[bytes], None] | None = None

    def data_received(self, data: bytes) -> None:
        if self.on_data is not None:
            self.on_data(data)
            return
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0:
            return
        found = LENGTH.search(self.data, 0, end + 2)
        if len(self.data) >= end + 4 + int(found[1]) if found else self.data.endswith(b"0\r\n\r\n"):
            answer, self.data = self.data, b""
            if self.arrived is not None and not self.arrived.done():
                self.arrived.set_result(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.arrived is not None and not self.arrived.done():
            self.arrived.set_exception(exc or ConnectionError("the server closed the connection"))

    async def ask(self, request: bytes) -> bytes:
        self.arrived = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return await self.arrived


def framed(target: Target, body: bytes, *headers: str) -> bytes:
    lines = [
        f"host: 127.0.0.1:{target.port}",
        "accept: application/json, text/event-stream",
        "content-type: application/json",
        f"content-length: {len(body)}",
        *headers,
    ]
    return f"POST /mcp HTTP/1.1\r\n{''.join(f'{line}{chr(13)}{chr(10)}' for line in lines)}\r\n".encode() + body


def call(target: Target, name: str, session: str | None) -> bytes:
    """A tools/call whose body is 1 KB."""
    params: dict[str, Any] = {"name": name, "arguments": {"text": ""}}
    if not target.legacy:
        params["_meta"] = META
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    params["arguments"]["text"] = "x" * (1024 - len(orjson.dumps(message)))
    body = orjson.dumps(message)
    if target.legacy:
        return framed(
            target, body, "mcp-protocol-version: 2025-06-18", *([f"mcp-session-id: {session}"] if session else [])
        )
    return framed(target, body, "mcp-protocol-version: 2026-07-28", "mcp-method: tools/call", f"mcp-name: {name}")


async def connect(target: Target, address: str = "127.0.0.1") -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, "127.0.0.1", target.port, local_addr=(address, 0), ssl=target.tls)
    return client


async def open_session(target: Target, client: Client) -> str | None:
    if not target.legacy:
        return None
    params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "bench", "version": "1"}}
    body = orjson.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
    answer = await client.ask(framed(target, body))
    found = SESSION.search(answer)
    session = found[1].decode() if found else None
    ready = orjson.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"})
    await client.ask(framed(target, ready, *([f"mcp-session-id: {session}"] if session else [])))
    return session


def load(target: Target, *, clients: int, calls: int, addresses: int = 1) -> Result:
    """`calls` calls by `clients` clients at once, each waiting for its answers. Opening sessions is not measured."""

    async def run() -> Result:
        times: list[float] = []

        async def ready(number: int) -> tuple[Client, bytes]:
            client = await connect(target, f"127.0.0.{1 + number % addresses}")
            request = call(target, "echo", await open_session(target, client))
            for _ in range(WARM):
                await client.ask(request)
            return client, request

        async def one(client: Client, request: bytes) -> None:
            for _ in range(calls // clients):
                started = time.perf_counter()
                answer = await client.ask(request)
                times.append(time.perf_counter() - started)
                if b'"result"' not in answer or b" 200 " not in answer[:16]:
                    raise RuntimeError(f"not an answer: {answer[:400]!r}")

        callers = await asyncio.gather(*map(ready, range(clients)))
        started = time.perf_counter()
        await asyncio.gather(*(one(*caller) for caller in callers))
        took = time.perf_counter() - started
        for client, _ in callers:
            client.transport.close()
        times.sort()
        return Result(statistics.median(times) * 1e3, times[len(times) * 99 // 100] * 1e3, len(times) / took)

    return run_bounded(run)


def greet(target: Target, count: int) -> float:
    """Milliseconds, p50, from beginning a connection to the answer of its first call."""

    async def run() -> float:
        times: list[float] = []
        for _ in range(count):
            started = time.perf_counter()
            client = await connect(target)
            answer = await client.ask(call(target, "echo", None))
            times.append(time.perf_counter() - started)
            if b" 200 " not in answer[:16]:
                raise RuntimeError(f"not an answer: {answer[:400]!r}")
            client.transport.close()
        return statistics.median(times) * 1e3

    return run_bounded(run)


def events(target: Target, name: str, streams: int) -> tuple[float, float]:
    """Milliseconds, p50: from an event's sending to its arrival; from a stream's request to its first byte.

    On one connection, after a call: both ends know each other.
    """

    async def run() -> tuple[float, float]:
        firsts: list[float] = []
        delays: list[float] = []
        client = await connect(target)
        await client.ask(call(target, "echo", None))
        request = call(target, name, None)
        for _ in range(streams):
            stream = Stream(delays)
            client.on_data = stream.arrived
            started = time.perf_counter_ns()
            client.transport.write(request)
            await stream.ended
            firsts.append((stream.first - started) / 1e6)
        client.transport.close()
        return statistics.median(delays), statistics.median(firsts)

    return run_bounded(run)


class Stream:
    """The events of one stream, as they arrive."""

    def __init__(self, delays: list[float]) -> None:
        self.delays = delays
        self.first = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._last = b""

    def arrived(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        self.first = self.first or now
        self.delays.extend((now - int(sent)) / 1e6 for sent in SENT.findall(data))
        self._last = (self._last + data)[-8:]
        if self._last.endswith(b"0\r\n\r\n") and not self.ended.done():
            self.ended.set_result(None)


def hold(target: Target, count: int, seconds: float, look: Callable[[str], None], release: Callable[[], None]) -> int:
    """Hold `count` silent streams open; `look` is called before, when they are open, and at the end of `seconds`.

    Returns how many of them then get their answer, after `release`.
    """

    async def run() -> int:
        look("before")
        finished: set[int] = set()
        clients = []
        opened: set[int] = set()
        for number in range(count):
            client = await connect(target)

            def arrived(data: bytes, number: int = number) -> None:
                opened.add(number)
                if b'"result"' in data:
                    finished.add(number)

            client.on_data = arrived
            client.transport.write(call(target, "silent", None))
            clients.append(client)
        await until(lambda: len(opened) == count)
        look("open")
        await asyncio.sleep(seconds)
        look("held")
        release()
        await until(lambda: len(finished) == count)
        for client in clients:
            client.transport.close()
        return len(finished)

    return run_bounded(run, seconds + 120)


async def until(check: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not check() and time.monotonic() < deadline:
        await asyncio.sleep(0.01)


def run_bounded(run: Callable[[], Awaitable[T]], seconds: float = 300) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(seconds):
            return await run()

    return uvloop.run(bounded())
