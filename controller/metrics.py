"""What the controller counts of itself for Prometheus: requests as they end, and the mesh as it is when asked.

Labels are bounded: methods and routes are those that exist, never what a caller wrote; nothing is counted by node.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["CONTENT_TYPE", "MeshFacts", "Metrics", "RequestMeter"]

CONTENT_TYPE: Final = "text/plain; version=1.0.0; charset=utf-8"
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)  # seconds


@dataclass(frozen=True, slots=True)
class MeshFacts:
    """The mesh at one moment.

    `behind`: hosts that are online and do not have the newest map in force; `lag`: the longest of theirs, in seconds.
    """

    revision: int
    policy_revision: int
    nodes: dict[str, int]  # by state
    online: int
    behind: int
    lag: float
    addresses_used: int
    addresses_total: int


class Metrics:
    """One registry per controller, so that several in one process do not share counts."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry(auto_describe=True)
        self.requests = Counter(
            "wardmesh_controller_requests",
            "REST requests that were answered",
            ("method", "route", "status"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            "wardmesh_controller_request_seconds",
            "How long REST requests took",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    def exposition(self, facts: MeshFacts) -> bytes:
        """Everything, in Prometheus' text format."""
        mesh = CollectorRegistry(auto_describe=False)
        mesh.register(_Gauges(facts))
        return generate_latest(self._registry) + generate_latest(mesh)


class _Gauges(Collector):
    def __init__(self, facts: MeshFacts) -> None:
        self._facts = facts

    def collect(self) -> Iterable[Metric]:
        """The facts as gauges."""
        facts = self._facts
        nodes = GaugeMetricFamily("wardmesh_nodes", "Nodes of the mesh", labels=["state"])
        for state, count in sorted(facts.nodes.items()):
            nodes.add_metric([state], count)
        yield nodes
        for name, text, value in (
            ("agents_online", "Hosts whose stream is open", facts.online),
            ("agents_behind", "Hosts that are online without the newest map in force", facts.behind),
            ("agents_lag_seconds", "For how long the host has been behind that is so for longest", facts.lag),
            ("revision", "Number of the last mutation", facts.revision),
            ("policy_revision", "Revision of the policy document in force", facts.policy_revision),
            ("addresses_used", "Host numbers in use or in quarantine", facts.addresses_used),
            ("addresses_total", "Host numbers that the mesh's prefixes have", facts.addresses_total),
        ):
            yield GaugeMetricFamily(f"wardmesh_{name}", text, value=value)


class RequestMeter:
    """ASGI middleware: counts and times requests by the route that answered them."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            # 0: the client went away before there was an answer.
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.seconds.labels(method, route).observe(time.monotonic() - began)
