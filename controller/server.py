"""One controller process from start to stop: what is opened, in which order, and undone in the reverse.

The only module that knows uvicorn's server.
"""

import asyncio
import contextlib
import errno
import importlib
import logging
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import uvicorn

from controller import stun
from controller.accepting import Acceptor
from controller.admission import Admission
from controller.app import build
from controller.asking import Questions
from controller.bootstrap import Foundation, lay, open_store
from controller.calls import CallBook
from controller.certificates import ServiceCertificates
from controller.clock import Clock, utc_now
from controller.context import Context, Limits
from controller.drifts import Drifts
from controller.enrolment import Enrolment
from controller.grants import Grants
from controller.keys import FirstContact, Keys
from controller.mesh.hub import Hub
from controller.nodes import Nodes
from controller.owners import Owners
from controller.peers import Peers
from controller.policy_documents import PolicyDocuments
from controller.records import Change
from controller.replicas import Replicas
from controller.services import Services
from controller.settings import VERSION, Settings, SettingsError
from controller.state_dir import StateDir
from controller.store.engine import StoreError
from controller.stun import StunServer
from controller.tidying import tidying
from controller.tls import IssuedCertificate, OwnCertificate, ServerTls, certificate_hosts
from controller.tokens import Tokens
from controller.tracing import Tracing
from controller.transport import HttpProtocol, WebSocketProtocol
from controller.wire.netmap import Mesh

__all__ = ["Running", "running"]

_log = logging.getLogger(__name__)
_GOODBYE: Final = 3.0  # seconds for the agents' streams to take their Bye
_FINISH: Final = 5  # seconds for requests to end
_BACKLOG: Final = 2048  # agents that come back all at once
_WS_FRAME: Final = 256 * 1024  # bytes; agents send reports, never maps
_PING_EVERY: Final = 20.0  # seconds between pings of a stream
_PING_WITHIN: Final = 20.0  # seconds for an agent to answer one


@dataclass(frozen=True, slots=True)
class Running:
    """A controller that accepts connections. `first_token` is the admin token of a first start, else None.

    `stun`: the UDP ports on which it answers STUN.
    """

    url: str
    port: int
    context: Context
    first_token: str | None
    stun: tuple[int, ...] = ()


@asynccontextmanager
async def running(settings: Settings, now: Clock = utc_now) -> AsyncIterator[Running]:
    """Serve until the block ends; then say Bye to the agents, let requests end, and close everything.

    Raises SettingsError, StateDirError, StoreError or TlsError when it cannot start.
    """
    async with AsyncExitStack() as stack:
        state = StateDir(settings.state_dir)
        state.prepare()
        state.lock()
        stack.callback(state.unlock)
        listening = stack.enter_context(contextlib.closing(_bind(settings)))
        port = listening.getsockname()[1]
        servers = _stun_servers(settings)
        for each in servers:
            stack.callback(each.close)
            each.start()
        tracing = _tracing(settings)
        stack.push_async_callback(asyncio.to_thread, tracing.close)
        engines, store = await open_store(settings, now, tracing)
        stack.push_async_callback(store.close)
        foundation = await lay(settings, state, store, now)
        url = settings.url or _default_url(settings, port)
        tls = _tls(settings, foundation, url, state, now)
        replicas = Replicas(engines, store, Hub(lambda: now().timestamp()), url.rstrip("/"))
        context = await _wire(settings, foundation, replicas, tls, now, tracing=tracing)
        token = await context.tokens.bootstrap()
        stack.push_async_callback(_note_last_presence, context)
        stack.push_async_callback(context.replicas.retire)
        stack.push_async_callback(context.hub.close)
        server = _Server(_config(settings, context, tls), context.hub)
        await stack.enter_async_context(_serving(server, listening))
        work = (
            tls.renew(),
            context.services.watch(),
            context.replicas.run(),
            *tidying(context, settings.ephemeral_after),
        )
        await stack.enter_async_context(_in_background(*work))
        yield Running(
            url=url.rstrip("/"),
            port=port,
            context=context,
            first_token=token.secret if token else None,
            stun=tuple(each.port for each in servers),
        )


def _publish(hub: Hub, tracing: Tracing, change: Change) -> None:
    with tracing.span("mesh.publish") as span:
        span.note("wardmesh.revision", change.revision)
        span.note("wardmesh.hosts", hub.publish(change))


async def _wire(
    settings: Settings, foundation: Foundation, replicas: Replicas, tls: ServerTls, now: Clock, *, tracing: Tracing
) -> Context:
    store, mesh, hub = foundation.store, foundation.mesh, replicas.hub
    hub.load(await store.begin(_of_this_version(mesh)))
    store.subscribe(partial(_publish, hub, tracing))
    services = Services(store, hub, leads=lambda: replicas.leads)
    replicas.services_by(services.says)
    admission = Admission(settings.address_quarantine)
    nodes = Nodes(store, hub)
    keys = Keys(store, FirstContact(url=replicas.url, ca=tls.trust.join))
    return Context(
        mesh=mesh,
        store=store,
        hub=hub,
        authority=foundation.authority,
        trust=tls.trust,
        nodes=nodes,
        peers=Peers(store, hub, nodes, admission),
        keys=keys,
        tokens=Tokens(store, now),
        owners=Owners(store),
        enrolment=Enrolment(
            store=store,
            mesh=mesh,
            authority=foundation.authority,
            keys=keys,
            admission=admission,
            lifetime=settings.node_lifetime,
            now=now,
        ),
        policy=PolicyDocuments(store, mesh, admission),
        grants=Grants(store, hub, now, settings.grant_longest),
        services=services,
        replicas=replicas,
        certificates=ServiceCertificates(hub, foundation.authority, settings.node_lifetime, now),
        now=now,
        drifts=Drifts(store),
        calls=CallBook(store, hub.services, settings.calls_kept, now),
        questions=Questions(hub),
        limits=Limits.of(settings),
        tracing=tracing,
    )


def _of_this_version(mesh: Mesh) -> Mesh:
    """Another version may make another map of the same revision: a host that holds one of those gets a snapshot."""
    return mesh.model_copy(update={"timeline": f"{mesh.timeline}@{VERSION}"})


def _tls(settings: Settings, foundation: Foundation, url: str, state: StateDir, now: Clock) -> ServerTls:
    if settings.tls_cert is not None and settings.tls_key is not None:
        return ServerTls(
            OwnCertificate(settings.tls_cert, settings.tls_key, settings.tls_ca), clients=foundation.authority
        )
    hosts = certificate_hosts(url, settings.listen.host)
    return ServerTls(IssuedCertificate(foundation.authority, hosts, state, now), clients=foundation.authority)


def _config(settings: Settings, context: Context, tls: ServerTls) -> uvicorn.Config:
    return uvicorn.Config(
        build(context, settings.trusted_proxies),
        ssl_context_factory=lambda _config, _default: tls.context,
        http=HttpProtocol,
        ws=WebSocketProtocol,
        ws_max_size=_WS_FRAME,
        ws_ping_interval=_PING_EVERY,
        ws_ping_timeout=_PING_WITHIN,
        ws_per_message_deflate=False,  # a client that asks for it would cost more memory than everything else of it
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,  # ProxiedClients does it, after it has seen who is really connected
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=_FINISH,
    )


def _tracing(settings: Settings) -> Tracing:
    """What makes spans. Raises SettingsError when the operator wants it and it is not installed."""
    if settings.traces is None:
        return Tracing()
    try:
        otlp = importlib.import_module("controller.otlp")  # only here: it costs 20 MB and an extra
    except ModuleNotFoundError as error:
        raise SettingsError(f"--traces: {error.name} is not installed: install wardmesh[controller,tracing]") from error
    made: Tracing = otlp.OtlpTracing(settings.traces)
    return made


def _stun_servers(settings: Settings) -> list[StunServer]:
    """Those to start. Raises SettingsError when the operator's own choice cannot be had."""
    if settings.stun == "off":
        return []
    if settings.stun is not None:
        return stun.listen(settings.stun)
    try:
        return stun.listen(settings.default_stun)
    except SettingsError as error:
        # Without it the mesh works but for hosts behind NATs that find each other.
        _log.warning("%s", error)
        return []


def _bind(settings: Settings) -> socket.socket:
    listen = settings.listen
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        # [::] takes IPv4 too, as people expect of "everywhere"; a particular IPv6 address does not.
        listening = socket.create_server(
            (listen.host, listen.port), family=family, backlog=_BACKLOG, dualstack_ipv6=listen.host == "::"
        )
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "another program listens there",
            errno.EADDRNOTAVAIL: "this machine has no such address",
            errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        }
        reason = reasons.get(error.errno or 0, error.strerror or str(error))
        raise SettingsError(f"cannot listen on {listen}: {reason}; choose with --listen ADDRESS:PORT") from error
    # Connections inherit it. uvloop would set it, asyncio does not on a socket that was made without a protocol number:
    # an answer in two segments then waits for the client's delayed acknowledgement, 40 ms.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _default_url(settings: Settings, port: int) -> str:
    host = settings.listen.host
    if host in {"0.0.0.0", "::"}:  # noqa: S104  compared with
        host = socket.getfqdn()
        _log.warning(
            "join strings will name https://%s:%d: give --url if hosts reach this controller otherwise", host, port
        )
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


async def _note_last_presence(context: Context) -> None:
    """What memory knows of the hosts' connections is lost with the process."""
    try:
        await context.nodes.note_presence(context.now())
    except StoreError as error:
        _log.error("when nodes were last seen could not be written down: %s", error)


class _Server(uvicorn.Server):
    """uvicorn's server with our signals (the process's, not its) and a Bye before the connections close."""

    def __init__(self, config: uvicorn.Config, hub: Hub) -> None:
        super().__init__(config)
        self.ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._hub = hub
        self._accepting: list[asyncio.Task[None]] = []

    async def main_loop(self) -> None:
        """Sleep until `stop`. uvicorn's own loop wakes ten times a second, for a flag and for the Date header."""
        await self._stopping.wait()

    def stop(self) -> None:
        """Ask `serve` to shut down and return."""
        self.should_exit = True
        self._stopping.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Whoever runs us decides what a signal means."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections, by an acceptor of our own."""
        await super().startup([])
        if self.config.ssl is None:
            raise RuntimeError("the server was configured without TLS")
        acceptor = Acceptor(self._protocol, self.config.ssl)
        self._accepting = [asyncio.create_task(acceptor.run(listening)) for listening in sockets or []]
        for task in self._accepting:
            task.add_done_callback(_report_failure)
        self.ready.set()

    def _protocol(self) -> asyncio.Protocol:
        return HttpProtocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell the agents why, then close."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        try:
            async with asyncio.timeout(_GOODBYE):
                await self._hub.close()
        except TimeoutError:
            _log.warning("some agents did not take their Bye within %s s", _GOODBYE)
        await super().shutdown(sockets)


@asynccontextmanager
async def _serving(server: _Server, listening: socket.socket) -> AsyncIterator[None]:
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    ready = asyncio.create_task(server.ready.wait())
    try:
        await asyncio.wait({serving, ready}, return_when=asyncio.FIRST_COMPLETED)
        if serving.done():
            await serving  # raises what went wrong
            raise RuntimeError("the server ended before it was ready")
        yield
    finally:
        ready.cancel()
        server.stop()
        await serving


@asynccontextmanager
async def _in_background(*work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(each) for each in work]
    for task in tasks:
        task.add_done_callback(_report_failure)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("background work ended by a mistake; restart the controller to have it again", exc_info=error)
