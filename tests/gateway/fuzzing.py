"""Requests that are nearly right, made from a seed, and an upstream that reads them in every way that servers do."""

import asyncio
import json
import random
from collections.abc import Callable
from typing import Any

import h11

from tests.gateway.harness import META, MODERN
from tests.gateway.upstream import LoopbackServer

TOOLS = ("add", "secret", "ADD", "add ", "\u0430dd", "")
METHODS = ("tools/call", "tools/list", "initialize", "ping", "resources/read", "prompts/get", "x/y", "notifications/z")
BYTES = (
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b'"',
    b"{",
    b"}",
    b"\\",
    b"\xff",
    b"0",
    b"%",
)
HEADERS = (
    "Transfer-Encoding: chunked",
    "Transfer-Encoding : chunked",
    "transfer_encoding: chunked",
    "Content-Length: 0",
    "Content-Length: 5",
    "Mcp-Name: secret",
    "Mcp_Name: secret",
    "Mcp-Method: tools/list",
    "Mcp-Session-Id: stolen",
    "Wardmesh-Node: alice",
    "Wardmesh_Tags: tag:root",
    "Connection: close, mcp-name",
    "Connection: close",
    "Upgrade: h2c\r\nConnection: upgrade",
    "Expect: 100-continue",
    "Content-Encoding: gzip",
    "Content-Type: text/plain",
    "Origin: https://evil.example",
    "Host: evil.example",
    "X: a\r\n b",
    "Last-Event-ID: 1",
    "Accept: */*",
)


def request(rng: random.Random, host: str) -> bytes:
    """One request, or two in a row."""
    made = _request(rng, host)
    for _ in range(rng.choice((0,) * 8 + (1, 1, 2, 5))):
        made = _damaged(rng, made)
    return made + _request(rng, host) if rng.random() < 0.05 else made


def familiar(rng: random.Random, host: str) -> bytes:
    """A call as one client makes it again and again, with arguments of its own; its head is right, its body nearly."""
    message = {"jsonrpc": "2.0", "id": rng.randrange(1000), "method": "tools/call"}
    text = json.dumps(
        {**message, "params": {"name": "add", "arguments": _arguments(rng), "_meta": META}}, separators=(",", ":")
    )
    for _ in range(rng.choice((0, 0, 0, 1))):
        text = _confused(rng, text)
    body = text.encode("utf-8", "surrogatepass")
    for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
        body = _damaged(rng, body)
    lines = (
        *(f"Host: {host}", "Content-Type: application/json", "Accept: application/json, text/event-stream"),
        *(f"MCP-Protocol-Version: {MODERN}", "Mcp-Method: tools/call", "Mcp-Name: add", f"Content-Length: {len(body)}"),
    )
    return f"POST /mcp HTTP/1.1\r\n{''.join(f'{line}{chr(13)}{chr(10)}' for line in lines)}\r\n".encode() + body


def _request(rng: random.Random, host: str) -> bytes:
    body, headers = _message(rng)
    lines = [f"Host: {host}", "Content-Type: application/json", "Accept: application/json, text/event-stream", *headers]
    if rng.random() < 0.2:
        lines.append(rng.choice(HEADERS))
    if rng.random() < 0.2:
        lines.append("Transfer-Encoding: chunked")
        data = _chunked(rng, body)
    else:
        lines.append(f"Content-Length: {len(body) + rng.choice((0,) * 20 + (-1, 1, 7))}")
        data = body
    rng.shuffle(lines)
    method = rng.choice(("POST",) * 40 + ("GET", "DELETE", "PUT"))
    path = rng.choice(("/mcp",) * 60 + ("/mcp?x=1", "/mcp/", "/", "/mcp#x", "//mcp"))
    version = rng.choice(("1.1",) * 30 + ("1.0", "2.0"))
    return (
        f"{method} {path} HTTP/{version}\r\n{''.join(f'{line}{chr(13)}{chr(10)}' for line in lines)}\r\n".encode()
        + data
    )


def _message(rng: random.Random) -> tuple[bytes, list[str]]:
    method = rng.choice(("tools/call",) * 8 + METHODS)
    name = rng.choice(("add",) * 15 + TOOLS)
    mirrored = name if rng.random() < 0.9 else rng.choice(TOOLS)
    params: dict[str, Any] = {}
    if method in {"tools/call", "prompts/get"}:
        params |= {"name": name, "arguments": _arguments(rng)}
    elif method == "resources/read":
        params["uri"] = mirrored = rng.choice(("test://one", "file:///etc/passwd"))
    modern = rng.random() < 0.7
    if modern:
        params["_meta"] = META
    message: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": rng.choice((1, "a", 0, -5, 2**53)),
        "method": method,
        "params": params,
    }
    if rng.random() < 0.05:
        del message["id"]
    text = json.dumps(message, separators=(",", ":") if rng.random() < 0.6 else None, ensure_ascii=rng.random() < 0.5)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2))):
        text = _confused(rng, text)
    headers = []
    if modern:
        encoded = mirrored.encode("ascii", "replace").decode()
        headers = [f"MCP-Protocol-Version: {MODERN}", f"Mcp-Method: {method}"]
        if method in {"tools/call", "prompts/get", "resources/read"}:
            headers.append(f"Mcp-Name: {encoded}")
    elif rng.random() < 0.7:
        headers = ["MCP-Protocol-Version: 2025-11-25"]
    return text.encode("utf-8", "surrogatepass"), headers


def _arguments(rng: random.Random) -> dict[str, Any]:
    values: tuple[Any, ...] = (
        1,
        1.5,
        2**53,
        2**64,
        -1,
        "x",
        "\u4e16",
        None,
        True,
        [],
        {},
        [[{"a": 1}]],
        {"path": "/etc"},
        10**30,
    )
    return {rng.choice(("a", "b", "path", "name", "Path")): rng.choice(values) for _ in range(rng.randrange(4))}


def _confused(rng: random.Random, text: str) -> str:
    """The same text to one parser and another to the next."""
    changes: tuple[Callable[[], str], ...] = (
        lambda: text.replace('"name"', '"name":"secret","name"', 1),
        lambda: text.replace('"params"', '"params":{"name":"secret"},"params"', 1),
        lambda: text.replace('"method"', '"method":"tools/call","method"', 1),
        lambda: text.replace('"name"', '"Name":"secret","name"', 1),
        lambda: text.replace('"name"', '"NAME"', 1),
        lambda: text.replace('"name"', '"n\\u0061me"', 1),
        lambda: text.replace('"name"', '"n\\u0061me":"secret","name"', 1),
        lambda: text.replace('"params"', '"PARAMS"', 1),
        lambda: text.replace('"arguments"', '"arguments":{"path":"/etc"},"arguments"', 1),
        lambda: text.replace("1", "1e0", 1),
        lambda: text.replace("{", "{ ", 1),
        lambda: text.replace("}", "}/**/", 1),
        lambda: text + "\n",
        lambda: text + '{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"secret"}}',
        lambda: f"[{text}]",
        lambda: "\ufeff" + text,
        lambda: text.replace('"add"', '"add\\u0000"', 1),
        lambda: text.replace('"add"', "NaN", 1),
        lambda: text.replace('"a"', '"\\ud800"', 1),
    )
    return rng.choice(changes)()


def _chunked(rng: random.Random, body: bytes) -> bytes:
    parts, rest = [], body
    while rest:
        size = rng.randint(1, len(rest))
        said = size + rng.choice((0,) * 80 + (1, -1))
        extension = rng.choice((b"",) * 6 + (b";x=y", b" ", b";\n"))
        parts.append(b"%x%b\r\n%b\r\n" % (max(said, 0), extension, rest[:size]))
        rest = rest[size:]
    return b"".join(parts) + b"0\r\n" + rng.choice((b"",) * 6 + (b"Mcp-Name: secret\r\n",)) + b"\r\n"


def _damaged(rng: random.Random, made: bytes) -> bytes:
    place = rng.randrange(len(made))
    what = rng.randrange(5)
    if what == 0:
        return made[:place] + rng.choice(BYTES) + made[place:]
    if what == 1:
        return made[:place] + rng.choice(BYTES) + made[place + 1 :]
    if what == 2:
        return made[:place] + made[place + rng.randint(1, 8) :]
    if what == 3:
        end = place + rng.randint(1, 60)
        return made[:end] + made[place:end] + made[end:]
    line = made.find(b"\r\n", place) + 2
    return made[:line] + rng.choice(HEADERS).encode() + b"\r\n" + made[line:] if line > 1 else made


# --- every way to read a body


def _first_wins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return dict(reversed(pairs))


def _any_case(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key.casefold(): value for key, value in pairs}


READINGS: dict[str, Callable[[bytes], Any]] = {
    "the last of equal keys": json.loads,
    "the first of equal keys": lambda body: json.loads(body, object_pairs_hook=_first_wins),
    "keys in any case": lambda body: json.loads(body, object_pairs_hook=_any_case),
    "numbers as doubles": lambda body: json.loads(body, parse_int=float),
    "as Latin-1 would be": lambda body: json.loads(body.decode("utf-8")),
}


class Upstream(LoopbackServer):
    """Reads with h11, whose code shares nothing with llhttp's; answers in many ways. `wrong`: what it must not see."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.wrong: list[str] = []

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = h11.Connection(h11.SERVER)
        try:
            while await self._one(connection, reader, writer):
                connection.start_next_cycle()
        except h11.RemoteProtocolError as error:
            if "closed" not in str(error) and "incomplete" not in str(error):
                self.wrong.append(f"what was passed on is no HTTP: {error}")
        except (ConnectionError, h11.LocalProtocolError):
            pass  # the gateway left, or the answer was broken on purpose

    async def _one(
        self, connection: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        head: h11.Request | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                return False
        assert head is not None
        if connection.trailing_data[0]:
            self.wrong.append("bytes came after the request")
        names = [name.decode("latin-1") for name, _ in head.headers]
        if len(names) != len(set(names)) and names.count("accept") < 2:
            repeated = sorted({name for name in names if names.count(name) > 1})
            self.wrong += [f"{name} was passed on twice" for name in repeated if name.startswith(("mcp-", "wardmesh-"))]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
        self.requests.append((headers, body))
        return await self._answer(connection, writer, body)

    async def _answer(self, connection: h11.Connection, writer: asyncio.StreamWriter, body: bytes) -> bool:
        number = json.loads(body).get("id") if body else None
        result = json.dumps(
            {"jsonrpc": "2.0", "id": number, "result": {"tools": [], "resultType": "complete"}}
        ).encode()
        how = self.rng.randrange(12)
        if how == 0:
            writer.transport.abort()
            return False
        if how == 1:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab")
            return False
        if how in {2, 3}:
            headers = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
            writer.write(connection.send(h11.Response(status_code=200, headers=headers)) or b"")
            stream = b'id: 1\nevent: message\ndata: {"jsonrpc":"2.0","method":"n/x"}\n\ndata: ' + result + b"\n\n"
            stream = stream[: self.rng.choice((len(stream), len(stream), self.rng.randrange(1, len(stream))))]
            while stream:
                size = self.rng.randint(1, len(stream))
                writer.write(connection.send(h11.Data(data=stream[:size])) or b"")
                stream = stream[size:]
        else:
            status = 202 if number is None else self.rng.choice((200, 200, 200, 400, 404, 500))
            headers = [("content-type", "application/json"), ("content-length", str(len(result)))]
            writer.write(connection.send(h11.Response(status_code=status, headers=headers)) or b"")
            writer.write(connection.send(h11.Data(data=result)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        await writer.drain()
        return True
