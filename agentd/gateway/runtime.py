"""The services that run in one process: started, changed and stopped as the policy says.

Level-triggered: `apply` compares the services that are wanted with those that run. Where the policy comes from and how
many processes there are is not known here.
"""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from controller.wire.mcp import GatewayPolicy, HttpUpstream, Service

from ..errors import AgentError
from .certificates import Certificates
from .gateway import Gateway
from .http.limits import HttpLimits
from .http.server import Server
from .limits import Limiter
from .mirrors import Mirrors
from .policy import CompiledPolicy
from .proxy import ServiceApp
from .siblings import Siblings
from .sockets import listening
from .types import Upstream

__all__ = ["Listen", "Runtime", "bind_here"]

log = logging.getLogger("agentd.gateway")

_RECHECK = 5.0  # seconds between looks at whether callers are still who they were

_LOOK_AT_CERTIFICATES = 1.0
_NEWS = 5.0  # seconds in which all processes have heard of a service

# Opens a socket at an address and port of the service's, shared by so many processes. Raises AgentError.
Listen = Callable[[Service, str, int, int], Awaitable[socket.socket]]


async def bind_here(service: Service, address: str, port: int, processes: int) -> socket.socket:
    """Open it ourselves, for a gateway without agentd."""
    return listening(address, port, processes=processes)


@dataclass(slots=True)
class _Running:
    """A service that runs. `mirrors`: what its upstream said of its tools. `bound`: where it listens. `refused`: why it
    does not listen at all its addresses.
    """

    service: Service
    upstream: Upstream
    server: Server
    mirrors: Mirrors
    bound: set[tuple[str, int]]
    refused: str | None = None


class Runtime:
    """Runs services for one gateway.

    `connect` makes a service's upstream, or raises AgentError; `listen` opens its sockets. `processes` of ours listen
    on the same addresses; this one is number `process`. A server on standard input and output runs in the first of
    them, so that there is only one. `siblings` None: connections are served where they come. `certificates` None:
    nothing is served over TLS.
    """

    def __init__(
        self,
        gateway: Gateway,
        limiter: Limiter,
        connect: Callable[[Service], Upstream],
        *,
        http: HttpLimits,
        listen: Listen = bind_here,
        certificates: Certificates | None = None,
        process: int = 0,
        processes: int = 1,
        siblings: Siblings | None = None,
        recheck: float = _RECHECK,
    ) -> None:
        self._gateway = gateway
        self._limiter = limiter
        self._connect = connect
        self._http = http
        self._listen = listen
        self._certificates = certificates
        self._binding = asyncio.Lock()
        self._process = process
        self._processes = processes
        self._siblings = siblings
        self._recheck = recheck
        self._running: dict[str, _Running] = {}
        self._wanted: GatewayPolicy | None = None
        self._unable: dict[str, str] = {}  # services that are wanted and could not be made
        self._tasks: list[asyncio.Task[None]] = []
        self._next_end: asyncio.TimerHandle | None = None
        self._applied = asyncio.Condition()
        self._taking: set[asyncio.Task[None]] = set()  # what siblings passed on

    def start(self) -> None:
        """Keep streams alive, callers checked and addresses bound from now on."""
        silence = self._gateway.patience.silence
        self._tasks = [
            asyncio.create_task(self._regularly(min(1.0, silence / 4), self._keep_alive)),
            asyncio.create_task(self._regularly(self._recheck, self._look_again)),
            asyncio.create_task(self._regularly(_LOOK_AT_CERTIFICATES, self._look_at_certificates)),
        ]
        if self._siblings is not None:
            self._siblings.start(self._take_soon)

    async def apply(self, policy: GatewayPolicy) -> list[str]:
        """Put a policy in force; returns what of it could not be, each as a sentence."""
        self._wanted = policy
        if self._certificates is not None:
            self._certificates.adopt(policy.services)
        compiled, now = CompiledPolicy(policy, self._limiter), time.time()
        ended = self._gateway.adopt(compiled, now)
        if ended:
            log.info("the policy ended exchanges that were under way", extra={"count": ended})
        self._await_next_end(compiled, now)
        for name in [name for name, running in self._running.items() if _differs(running, policy.services.get(name))]:
            await self._stop(name, 0.0)
        problems: list[str] = []
        self._unable = {}
        for service in policy.services.values():
            if not self._is_served_here(service):
                continue
            try:
                running = self._running.get(service.name) or self._prepare(service)
            except AgentError as error:
                problems.append(f"{service.name}: {error}")
                self._unable[service.name] = str(error)
                continue
            if running.service != service:
                self._serve(running, service)
            problems += await self._bind(running)
        async with self._applied:
            self._applied.notify_all()
        return problems

    async def close(self, grace: float) -> None:
        """Let what is under way end for `grace` seconds, then stop everything."""
        self._gateway.stopping = True
        if self._next_end is not None:
            self._next_end.cancel()
        for task in (*self._tasks, *self._taking):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._taking, return_exceptions=True)
        await asyncio.gather(*(self._stop(name, grace) for name in list(self._running)))

    def bound(self) -> set[tuple[str, int]]:
        """Where services listen."""
        return {place for running in self._running.values() for place in running.bound}

    def tls_problems(self) -> dict[str, str]:
        """Why services that should do not answer over TLS."""
        return self._certificates.problems() if self._certificates is not None else {}

    async def health(self) -> dict[str, str | None]:
        """How each service is: None for one that can answer calls, or why it cannot."""
        running = list(self._running.values())
        answers = await asyncio.gather(*(one.upstream.check() for one in running))
        found = {one.service.name: one.refused or why for one, why in zip(running, answers, strict=True)}
        return {**found, **self._unable}

    def _await_next_end(self, policy: CompiledPolicy, now: float) -> None:
        """What a grant allowed ends when the grant does. (If the clock is set, the next regular look sees it.)

        `now`: the time by which it was last looked what has ended. What ended since then must not be passed over.
        """
        if self._next_end is not None:
            self._next_end.cancel()
        end = policy.next_end(now)
        loop = asyncio.get_running_loop()
        self._next_end = None if end is None else loop.call_later(end - now, self._grant_ended, policy)

    def _grant_ended(self, policy: CompiledPolicy) -> None:
        now = time.time()
        ended = self._gateway.expire(now)
        if ended:
            log.info("a grant ended, and exchanges under it", extra={"count": ended})
        self._await_next_end(policy, now)

    def _prepare(self, service: Service) -> _Running:
        upstream, mirrors = self._connect(service), Mirrors()
        pass_on = None
        if self._siblings is not None and self._sharing(service) > 1:
            pass_on = partial(self._siblings.pass_on, service.name)
        server = Server(ServiceApp(self._gateway, service, upstream, _target(service), mirrors), pass_on=pass_on)
        running = self._running[service.name] = _Running(service, upstream, server, mirrors, set())
        self._serve(running, service)
        return running

    def _serve(self, running: _Running, service: Service) -> None:
        """The same upstream and addresses, under changed rules."""
        running.service = service
        running.server.app = ServiceApp(self._gateway, service, running.upstream, _target(service), running.mirrors)
        running.server.limits = replace(self._http, header_bytes=service.limits.headers)

    def _take_soon(self, name: str, connection: socket.socket) -> None:
        task = asyncio.create_task(self._take(name, connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _take(self, name: str, connection: socket.socket) -> None:
        """Serve what a sibling passed on; it may have heard of the service a little before us."""
        taken = False
        try:
            async with asyncio.timeout(_NEWS), self._applied:
                await self._applied.wait_for(lambda: name in self._running)
            running = self._running[name]
            taken = True
            await running.server.take(connection, tls=connection.getsockname()[1] == running.service.tls_port)
        except TimeoutError:
            log.warning("a connection was passed on for a service that is not served here", extra={"service": name})
        except OSError as error:
            log.debug("a connection was gone before it could be served: %s", error.strerror)
        finally:
            if not taken:
                connection.close()

    def _is_served_here(self, service: Service) -> bool:
        return self._process == 0 or self._sharing(service) > 1

    def _sharing(self, service: Service) -> int:
        """How many processes serve it."""
        return self._processes if isinstance(service.upstream, HttpUpstream) else 1

    def _places(self, service: Service) -> dict[tuple[str, int], ssl.SSLContext | None]:
        """Where the service is to listen now, each with how connections begin there: None for plain HTTP."""
        places: dict[tuple[str, int], ssl.SSLContext | None] = {(one, service.port): None for one in service.addresses}
        tls = self._certificates.context(service.name) if self._certificates is not None else None
        if tls is not None and service.tls_port is not None:
            places |= {(one, service.tls_port): tls for one in service.addresses}
        return places

    async def _bind(self, running: _Running) -> list[str]:
        async with self._binding:  # what is being opened must not be opened by a regular look as well
            problems: list[str] = []
            service = running.service
            running.refused = None
            for place, tls in self._places(service).items():
                if place in running.bound:
                    continue
                address, port = place
                try:
                    opened = await self._listen(service, address, port, self._sharing(service))
                except AgentError as error:
                    problems.append(f"{service.name}: {error}")
                    running.refused = str(error)
                    continue
                if self._running.get(service.name) is not running:
                    opened.close()  # it was stopped meanwhile
                    return problems
                await running.server.listen(opened, tls)
                running.bound.add(place)
                log.info("serving", extra={"service": service.name, "address": address, "port": port})
            return problems

    async def _stop(self, name: str, grace: float) -> None:
        running = self._running.pop(name)
        await running.server.close(grace)
        await running.upstream.close()

    async def _keep_alive(self) -> None:
        self._gateway.live.keep_alive(asyncio.get_running_loop().time())

    async def _look_again(self) -> None:
        await self._gateway.recheck()
        await self._bind_what_is_missing()

    async def _look_at_certificates(self) -> None:
        if self._certificates is not None and await self._certificates.look():
            await self._bind_what_is_missing()

    async def _bind_what_is_missing(self) -> None:
        for running in list(self._running.values()):
            if not self._places(running.service).keys() <= running.bound:
                await self._bind(running)

    async def _regularly(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                # A look that fails must not end all later looks; revocation hangs on them.
                log.exception("a regular look at what is under way failed")


def _differs(running: _Running, service: Service | None) -> bool:
    """Must it be stopped, because another upstream or other addresses are wanted, or none?"""
    if service is None:
        return True
    old = running.service
    same = (service.upstream, service.port, service.kind, service.tls_port) == (
        old.upstream,
        old.port,
        old.kind,
        old.tls_port,
    )
    return not same or not set(old.addresses) <= set(service.addresses)


def _target(service: Service) -> bytes:
    if not isinstance(service.upstream, HttpUpstream):
        return b"/"
    parts = urlsplit(service.upstream.url)
    path = parts.path or "/"
    return (f"{path}?{parts.query}" if parts.query else path).encode()
