"""agentd's side of the gateway's socket, with a map that a test changes: its own `Serving`, answers and server."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from socket import socket
from typing import Any

from agentd.errors import AgentError
from agentd.gateway_messages import (
    Certified,
    CertifyRequest,
    GatewayRequest,
    Listening,
    ListenRequest,
    RecordsKept,
    RecordsRequest,
)
from agentd.local_api import Answer, Identity, Request, WhoisRequest
from agentd.local_server import Handed, Subscription, listening, serve
from agentd.serving import Serving
from controller.wire.call_records import CallRecord
from controller.wire.mcp import HttpUpstream, McpGrant, Service, StdioUpstream
from controller.wire.netmap import AddressSet, Mesh, Netmap, SelfNode

KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="
HELD, NOT_HELD = "127.0.0.1", "127.0.0.6"
CALLER = "127.0.0.1"
MESH = Mesh(id="m1", name="test", prefix4="127.0.0.0/8", prefix6="fd00::/64")


def netmap(
    port: int,
    upstream: HttpUpstream | StdioUpstream,
    *,
    revision: int = 1,
    held: tuple[str, ...] = (HELD,),
    tools: tuple[str, ...] = ("*",),
    **more: Any,
) -> Netmap:
    """A map with a service `svc` at HELD and a grant for CALLER; `more` are the map's further fields."""
    service = Service(name="svc", addresses=(HELD,), port=port, upstream=upstream)
    fields = {
        "services": {"svc": service},
        "calls": {"all": McpGrant(id="all", peers=("tag:agents",), services=("svc",), tools=tools)},
        "sets": {
            "tag:agents": AddressSet(name="tag:agents", addresses=frozenset({CALLER})),
            "tag:others": AddressSet(name="tag:others", addresses=frozenset({"127.0.0.77"})),
        },
    } | more
    node = SelfNode(id="n1", name="tools", addresses=("127.0.0.9",), held=held)
    return Netmap(revision=revision, mesh=MESH, node=node, **fields)


def conversations() -> list[asyncio.Task[Any]]:
    """Those of the servers of agentd's socket in this process: of a real daemon they end with it."""
    found = {task: getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()}
    return [task for task, name in found.items() if name.endswith("serve.<locals>.talk")]


class Agent:
    """A daemon as the gateway sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.changes = 0
        self.serving = Serving(self._changed)
        self.wake: Callable[[], object] = lambda: None
        self.keeps = False  # records: nobody takes them unless a test says so
        self.kept: tuple[CallRecord, ...] = ()
        self.sign: Callable[[str, str], str] | None = None  # what the controller would do with a service and a CSR
        self._task: asyncio.Task[None] | None = None
        self._talks: set[asyncio.Task[Any]] = set()

    async def start(self, *, gateway_user: int | None = None, group: int | None = None) -> None:
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._serve(ready, gateway_user, group))
        await ready.wait()

    async def stop(self) -> None:
        """With a process its conversations end too."""
        if self._task is None:
            return
        talks = conversations()
        for task in (self._task, *talks):
            task.cancel()
        await asyncio.gather(self._task, *talks, return_exceptions=True)
        self._task = None

    def _changed(self) -> None:
        self.changes += 1
        self.wake()

    async def _serve(self, ready: asyncio.Event, gateway_user: int | None, group: int | None) -> None:
        with listening(self.path, group) as server:
            ready.set()
            await serve(server, self._answer, lambda _answer: None, gateway_user=gateway_user)

    async def _answer(self, request: Request) -> Answer | Handed | Subscription:
        match request:
            case GatewayRequest():
                return self.serving.follow(request.worker)
            case ListenRequest():
                return Handed(Listening(), self.serving.listen(request))
            case CertifyRequest() if self.sign is not None:
                self.serving.check_served(request.service)
                return Certified(certificate=self.sign(request.service, request.csr))
            case WhoisRequest() if request.address == CALLER:
                return Identity(
                    address=CALLER,
                    node="n2",
                    name="alice",
                    fqdn="alice.mesh.internal",
                    tags=("tag:agents",),
                    public_key=KEY,
                    kind="agent",
                    is_self=False,
                )
            case RecordsRequest() if self.keeps:
                self.kept += request.records
                return RecordsKept(through=request.first + len(request.records) - 1)
            case _:
                raise AgentError("nobody")


def refused_at(port: int) -> bool:
    """True when nobody listens there."""
    with socket() as probe:
        return probe.connect_ex((HELD, port)) != 0
