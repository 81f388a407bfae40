"""`python -m tests.bench.hop.upstream PORT`: the fastest MCP server that answers what the bench asks, in both eras.

Whatever stands in front of it is what is measured. A tools/call of `stream` is answered with events that carry the
time at which they were sent (CLOCK_MONOTONIC, which all processes share), one of `brief` with a single event; one of
`silent` says nothing until SIGUSR1.
"""

import asyncio
import re
import signal
import sys
import time
from typing import Any, cast

import orjson
import uvloop

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
TEXT = "y" * 800
EVENTS, PAUSE = 100, 0.004
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
silent: "set[Server]" = set()


class Server(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.data = b""
        self.id: Any = None

    def connection_lost(self, exc: Exception | None) -> None:
        silent.discard(self)

    def data_received(self, data: bytes) -> None:
        self.data += data
        while (end := self.data.find(b"\r\n\r\n")) >= 0:
            found = LENGTH.search(self.data, 0, end + 2)
            size = int(found[1]) if found else 0
            if len(self.data) < end + 4 + size:
                return
            head, body = self.data[:end], self.data[end + 4 : end + 4 + size]
            self.data = self.data[end + 4 + size :]
            self.answer(head, body)

    def answer(self, head: bytes, body: bytes) -> None:
        if not body:
            self.transport.write(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 0\r\n\r\n")
            return
        message = orjson.loads(body)
        self.id = message.get("id")
        params = message.get("params", {})
        if self.id is None:
            self.transport.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 0\r\n\r\n")
        elif message["method"] == "tools/call" and params["name"] in {"stream", "brief"}:
            self.task = asyncio.get_running_loop().create_task(self.stream(EVENTS if params["name"] == "stream" else 1))
        elif message["method"] == "tools/call" and params["name"] == "silent":
            self.transport.write(STREAM_HEAD)
            silent.add(self)
        else:
            self.reply(result_of(message["method"], params))

    def reply(self, result: dict[str, Any]) -> None:
        out = orjson.dumps({"jsonrpc": "2.0", "id": self.id, "result": result})
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(head % len(out) + out)

    def event(self, data: bytes) -> None:
        framed = b"data: " + data + b"\n\n"
        self.transport.write(b"%x\r\n%b\r\n" % (len(framed), framed))

    async def stream(self, count: int) -> None:
        self.transport.write(STREAM_HEAD)
        for _ in range(count):
            sent = time.perf_counter_ns()
            self.event(b'{"jsonrpc":"2.0","method":"notifications/message","params":{"sent":%d}}' % sent)
            await asyncio.sleep(PAUSE)
        self.finish()

    def finish(self) -> None:
        self.event(orjson.dumps({"jsonrpc": "2.0", "id": self.id, "result": {"content": []}}))
        self.transport.write(b"0\r\n\r\n")


def result_of(method: str, params: dict[str, Any]) -> dict[str, Any]:
    if method == "initialize":
        server = {"name": "bench", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": server}
    if method == "tools/list":
        schema = {"type": "object", "properties": {"text": {"type": "string"}}}
        return {"tools": [{"name": "echo", "inputSchema": schema}]}
    return {"content": [{"type": "text", "text": TEXT}]}


def release() -> None:
    for server in list(silent):
        server.finish()
    silent.clear()


async def main() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, release)
    server = await loop.create_server(Server, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
