"""What gateway tests are made of: a gateway on real sockets, upstreams that do as they are told, clients byte by byte.

Callers are addresses of the loopback network: ALICE may use everything of the services, BOB what a test grants, and
STRANGER is nobody.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agentd.gateway.certificates import Certificates
from agentd.gateway.gateway import Gateway
from agentd.gateway.http.limits import HttpLimits
from agentd.gateway.identity import IdentitySource, StaticIdentity
from agentd.gateway.limits import Limiter
from agentd.gateway.passage import Patience
from agentd.gateway.policy import CompiledPolicy
from agentd.gateway.runtime import Runtime
from agentd.gateway.sessions import Sessions
from agentd.gateway.types import AuditEvent, AuditRecord, Caller, Outcome, Particulars, RecordForm
from agentd.gateway.upstreams import connect
from controller.wire.mcp import AuditRules, GatewayPolicy
from tests.gateway.upstream import Behaviour, Upstream, echo

ALICE, BOB, STRANGER = "127.0.0.1", "127.0.0.2", "127.0.0.9"
KEY = "mesh" * 10 + "key="
MODERN = "2026-07-28"
META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
ACCEPT = "application/json, text/event-stream"
BOUND = 30.0  # seconds that anything awaited in a test may take, on a machine that has other things to do


def caller(address: str, name: str) -> Caller:
    return Caller(f"node-{name}", name, KEY, (f"tag:{name}",), address)


CALLERS = {ALICE: caller(ALICE, "alice"), BOB: caller(BOB, "bob")}


async def soon(check: Callable[[], Any], within: float = BOUND) -> Any:
    """Poll until `check` is true; returns what it returned."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not (found := check()):
        assert loop.time() < deadline, "it did not happen in time"
        await asyncio.sleep(0.002)
    return found


class Records:
    """An AuditSink that keeps records for assertions."""

    def __init__(self) -> None:
        self.all: list[AuditRecord] = []
        self.room = True

    def record(self, record: AuditRecord) -> bool:
        self.all.append(record)
        return self.room

    def form(self, record: AuditRecord) -> RecordForm:
        return RecordForm(record, b"", AuditRules())

    def allowed(self, form: RecordForm, time: float, record_id: str, call: Particulars) -> bool:
        assert form.record.call is not None
        if self.room:
            own = {name: getattr(call, name) for name in ("request_id", "arguments", "body", "trace")}
            self.record(replace(form.record, time=time, id=record_id, call=replace(form.record.call, **own)))
        return self.room

    def ended(self, form: RecordForm, time: float, record_id: str, sizes: tuple[int, int], seconds: float) -> bool:
        self.record(replace(form.record, time=time, id=record_id, outcome=Outcome(200, *sizes, seconds)))
        return True

    def of(self, event: AuditEvent) -> list[AuditRecord]:
        return [record for record in self.all if record.event is event]


def body(method: str, number: object = 1, meta: Mapping[str, Any] | None = META, **params: Any) -> bytes:
    """A compact JSON-RPC request, modern unless `meta` is None; a notification with `number` None."""
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if number is not None:
        message["id"] = number
    if meta is not None:
        params["_meta"] = meta
    message["params"] = params
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def modern(method: str, number: object = 1, name: str | None = None, **params: Any) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a well-formed modern request."""
    headers = {"mcp-protocol-version": MODERN, "mcp-method": method}
    if name is not None:
        params["uri" if method == "resources/read" else "name"] = name
        headers["mcp-name"] = name
    return body(method, number, **params), headers


def tool(name: str = "add", number: object = 1, **arguments: Any) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a modern tools/call."""
    return modern("tools/call", number, name, arguments=arguments)


@dataclass
class Answer:
    """A response, read whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> int:
        return int(self.json["error"]["code"])


class Client:
    """One connection to a gateway, from one address."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader = reader
        self.writer = writer
        self.host = host

    def send(
        self, method: str, data: bytes = b"", headers: Mapping[str, str] | None = None, path: str = "/mcp"
    ) -> None:
        self.writer.write(self.request_head(method, data, headers, path) + data)

    def request_head(
        self, method: str, data: bytes, headers: Mapping[str, str] | None = None, path: str = "/mcp"
    ) -> bytes:
        """What `send` sends before the body."""
        given = {"host": self.host, "accept": ACCEPT, **(headers or {})}
        if data or method == "POST":
            given = {"content-type": "application/json", **given, "content-length": str(len(data))}
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items() if value is not None)
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1")

    async def head(self) -> tuple[int, list[tuple[str, str]]]:
        raw = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), BOUND)
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        pairs = (line.partition(": ") for line in lines)
        return int(first.split(" ")[1]), [(name.lower(), value) for name, _, value in pairs]

    async def chunk(self) -> bytes:
        """One chunk of a chunked body; b"" at its end."""
        size = int(await asyncio.wait_for(self.reader.readuntil(b"\r\n"), BOUND), 16)
        data = await asyncio.wait_for(self.reader.readexactly(size + 2), BOUND)
        assert data.endswith(b"\r\n")
        return data[:-2]

    async def chunks(self) -> bytes:
        """The rest of a chunked body. Each chunk may be in time, as signs of life are, and the whole must be too."""
        parts = []
        async with asyncio.timeout(2 * BOUND):
            while part := await self.chunk():
                parts.append(part)
        return b"".join(parts)

    async def answer(self, *, bodiless: bool = False) -> Answer:
        status, headers = await self.head()
        while 100 <= status < 200:
            status, headers = await self.head()
        named = dict(headers)
        if bodiless:
            data = b""
        elif named.get("transfer-encoding") == "chunked":
            data = await self.chunks()
        elif "content-length" in named:
            data = await asyncio.wait_for(self.reader.readexactly(int(named["content-length"])), BOUND)
        elif status in {204, 304}:
            data = b""
        else:
            data = await asyncio.wait_for(self.reader.read(), BOUND)
        return Answer(status, headers, data)

    async def ask(
        self, method: str, data: bytes = b"", headers: Mapping[str, str] | None = None, path: str = "/mcp"
    ) -> Answer:
        self.send(method, data, headers, path)
        return await self.answer(bodiless=method == "HEAD")

    async def call(self, request: tuple[bytes, Mapping[str, str]], **more: str) -> Answer:
        data, headers = request
        return await self.ask("POST", data, {**headers, **{name.replace("_", "-"): v for name, v in more.items()}})

    async def rest(self) -> bytes:
        """Everything until the other end closes; a reset counts as closed."""
        parts = []
        with suppress(ConnectionError):
            while part := await asyncio.wait_for(self.reader.read(65536), BOUND):
                parts.append(part)
        return b"".join(parts)

    async def close(self) -> None:
        self.writer.close()
        with suppress(ConnectionError):
            await self.writer.wait_closed()

    def vanish(self) -> None:
        """End with a reset, as a process that is killed with unread data does."""
        self.writer.transport.abort()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def policy(
    services: Mapping[str, Any], grants: Sequence[Mapping[str, Any]] | None = None, revision: int = 1
) -> GatewayPolicy:
    """ALICE may use every tool, prompt and resource; further grants as given."""
    everything = {
        "id": "all",
        "peers": ["alice"],
        "services": list(services),
        "tools": ["*"],
        "prompts": ["*"],
        "resources": ["**"],
        "methods": ["*"],
    }
    listed = [everything, *(grants or [])]
    return GatewayPolicy.model_validate(
        {
            "revision": revision,
            "services": {name: {"name": name, **service} for name, service in services.items()},
            "grants": {grant["id"]: grant for grant in listed},
            "sets": {
                "alice": {"name": "alice", "addresses": [ALICE]},
                "bob": {"name": "bob", "addresses": [BOB]},
            },
        }
    )


@dataclass
class Running:
    """A gateway with one service, `svc`."""

    gateway: Gateway
    runtime: Runtime
    records: Records
    port: int
    services: dict[str, Any]

    async def adopt(self, grants: Sequence[Mapping[str, Any]], *, without_alice: bool = False, **service: Any) -> None:
        services = {"svc": {**self.services["svc"], **service}}
        changed = policy(services, grants, revision=2)
        if without_alice:
            changed = changed.model_copy(
                update={"grants": {name: grant for name, grant in changed.grants.items() if name != "all"}}
            )
        assert await self.runtime.apply(changed) == []


class Lab:
    """Makes what a test needs, and takes it down."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._undo: list[Callable[[], Awaitable[None]]] = []

    async def upstream(self, behaviour: Behaviour = echo) -> Upstream:
        made = Upstream(behaviour)
        await made.start()
        self._undo.append(made.close)
        return made

    async def gateway(
        self,
        upstream: Upstream | str,
        *,
        grants: Sequence[Mapping[str, Any]] | None = None,
        http: HttpLimits | None = None,
        patience: Patience | None = None,
        identity: IdentitySource | None = None,
        certificates: Certificates | None = None,
        recheck: float = 0.1,
        **service: Any,
    ) -> Running:
        url = upstream if isinstance(upstream, str) else f"http://127.0.0.1:{upstream.port}/mcp"
        port = free_port()
        services = {
            "svc": {
                "addresses": ["127.0.0.1"],
                "port": port,
                "names": ["svc.mesh.internal"],
                "origins": ["https://console.example"],
                "upstream": {"type": "http", "url": url},
                **service,
            }
        }
        wanted = policy(services, grants)
        records, limiter = Records(), Limiter()
        gateway = Gateway(
            identity or StaticIdentity(CALLERS), CompiledPolicy(wanted, limiter), records, Sessions(b"k" * 32)
        )
        gateway.patience = patience or Patience()
        limits = http or HttpLimits(tick=0.05)
        runtime = Runtime(gateway, limiter, connect, http=limits, certificates=certificates, recheck=recheck)
        runtime.start()

        async def stop() -> None:
            await runtime.close(0.05)
            await gateway.identity.close()

        self._undo.append(stop)
        assert await runtime.apply(wanted) == []
        return Running(gateway, runtime, records, port, services)

    async def client(self, running: Running, address: str = ALICE) -> Client:
        return await self.connect(address, running.port)

    async def connect(self, address: str, port: int, **tls: Any) -> Client:
        """A client of whatever listens at `port`, from `address`; `tls` are options of `open_connection`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0), limit=1 << 24, **tls)
        made = Client(reader, writer, f"127.0.0.1:{port}")
        self._undo.append(made.close)
        return made

    async def close(self) -> None:
        for undo in reversed(self._undo):
            await undo()
