"""What this host serves: the gateway's share of the map, who follows it, and how the services are.

The one place in the daemon that knows whether there is a gateway, whoever started it. Knows nothing of MCP: what the
grants mean is the gateway's.
"""

import time
from asyncio import Event
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from socket import socket
from typing import Final

from controller.wire.mcp import GatewayPolicy, HttpUpstream, Service
from controller.wire.netmap import Netmap

from .errors import AgentError
from .gateway.sockets import listening
from .gateway_messages import ListenRequest, Policy, ServiceStatus, ServingReport
from .local_api import Answer, Request
from .local_server import Subscription

__all__ = ["Serving", "gateway_policy"]

# The gateway reports every second; one that is silent for so long (seconds) cannot be trusted to answer calls either.
_SILENCE: Final = 5.0


def gateway_policy(netmap: Netmap) -> GatewayPolicy:
    """The part of the map that the gateway enforces: of a service's addresses only those that this host holds."""
    held = set(netmap.node.held)
    named = {name for grant in netmap.calls.values() for name in grant.peers}
    return GatewayPolicy(
        revision=netmap.revision,
        services={
            name: service.model_copy(update={"addresses": tuple(one for one in service.addresses if one in held)})
            for name, service in netmap.services.items()
        },
        grants=netmap.calls,
        sets={name: addresses for name, addresses in netmap.sets.items() if name in named},
    )


@dataclass(eq=False, slots=True)
class _Follower(Subscription):
    """One process of the gateway. `report`: what it last said of its services, and when; None before it did."""

    serving: "Serving"
    worker: int
    process: int = 0
    report: tuple[float, Mapping[str, str | None]] | None = None
    without_tls: Mapping[str, str] = field(default_factory=dict)
    news: Event = field(default_factory=Event)

    def begin(self, process: int) -> None:
        self.process = process
        self.serving.followers.append(self)
        self.serving.on_change()

    async def answers(self) -> AsyncIterator[Answer]:
        sent: GatewayPolicy | None = None
        while True:
            self.news.clear()
            policy = self.serving.policy
            if policy is not None and policy is not sent:
                sent = policy
                yield Policy(policy=policy)
            await self.news.wait()

    def heard(self, request: Request) -> None:
        if not isinstance(request, ServingReport) or self.worker != 0:
            raise AgentError(f"{request.request} was not expected from worker {self.worker}")
        self.without_tls = request.without_tls
        before, self.report = self.report, (self.serving.clock(), request.services)
        if before is None or before[1] != request.services:
            self.serving.on_change()

    def end(self) -> None:
        self.serving.followers.remove(self)
        self.serving.on_change()


class Serving:
    """What is served. `on_change` is called when the state of a service may be another one."""

    def __init__(self, on_change: Callable[[], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.on_change = on_change
        self.clock = clock
        self.policy: GatewayPolicy | None = None
        self.followers: list[_Follower] = []
        self.problem: str | None = None  # why the gateway that agentd started is not there
        self._services: Mapping[str, Service] = {}
        self._held: frozenset[str] = frozenset()
        self._domain = ""

    @property
    def wanted(self) -> bool:
        """True when there is something to serve, so that a gateway is needed."""
        return bool(self._services)

    def adopt(self, netmap: Netmap) -> None:
        """This map is in force: who follows hears of it, if it changes anything for the gateway."""
        self._services, self._domain = netmap.services, netmap.mesh.domain
        self._held = frozenset(netmap.node.held)
        fresh = gateway_policy(netmap)
        if self.policy is not None and self.policy == fresh.model_copy(update={"revision": self.policy.revision}):
            return
        self.policy = fresh
        for follower in self.followers:
            follower.news.set()
        self.on_change()

    def follow(self, worker: int) -> Subscription:
        """What a process of the gateway gets that asks for the policy."""
        return _Follower(self, worker)

    def listen(self, request: ListenRequest) -> socket:
        """A socket at an address that this host holds for a service, now. Raises AgentError."""
        service = self.policy.services.get(request.service) if self.policy is not None else None
        if service is None or request.address not in service.addresses:
            raise AgentError(f"{request.address} is not an address that this host holds for {request.service!r} now")
        if request.port not in {service.port, service.tls_port}:
            raise AgentError(f"{request.port} is not a port of {request.service!r}")
        return listening(request.address, request.port, processes=request.processes)

    def check_served(self, name: str) -> None:
        """Raises AgentError unless this is a service that this host may serve."""
        if name not in self._services:
            raise AgentError(f"{name!r} is not a service that this host may serve: the policy's `on` decides")

    def health(self) -> dict[str, str | None]:
        """How the services that this host may serve are: None for one that can answer, or why it cannot."""
        return {name: self._why_not(name) for name in self._services}

    def services(self) -> tuple[ServiceStatus, ...]:
        """The services that this host may serve, by name."""
        return tuple(self._described(service) for _, service in sorted(self._services.items()))

    def _described(self, service: Service) -> ServiceStatus:
        upstream = service.upstream
        return ServiceStatus(
            name=service.name,
            fqdn=f"{service.name}.{self._domain}",
            kind=service.kind,
            addresses=service.addresses,
            port=service.port,
            tls_port=service.tls_port,
            upstream=upstream.url if isinstance(upstream, HttpUpstream) else " ".join(upstream.command),
            held=bool(service.addresses) and self._held.issuperset(service.addresses),
            error=self._why_not(service.name),
            tls_error=first.without_tls.get(service.name) if (first := self._first()) is not None else None,
        )

    def _first(self) -> _Follower | None:
        """The gateway's first process, the one that reports."""
        return next((one for one in reversed(self.followers) if one.worker == 0), None)

    def _why_not(self, name: str) -> str | None:
        first = self._first()
        if first is None:
            return self.problem or "no gateway is connected: start wardmesh-gateway.service, or `agentd run --gateway`"
        if first.report is None:
            return "the gateway is starting"
        when, services = first.report
        silence = self.clock() - when
        if silence > _SILENCE:
            return f"the gateway (process {first.process}) has said nothing for {silence:.0f} s"
        return services.get(name, "the gateway has not taken it up yet")
