"""What a request handler may use: one value per process, found through the ASGI application's state.

Apart from `app` so that routers need not import it.
"""

import time
from dataclasses import dataclass, field
from typing import Final

from starlette.requests import HTTPConnection

from controller.asking import Questions
from controller.calls import CallBook
from controller.certificates import ServiceCertificates
from controller.clock import Clock
from controller.denials import DenialBook
from controller.drifts import Drifts
from controller.enrolment import Enrolment
from controller.grants import Grants
from controller.identity.ca import CertificateAuthority
from controller.keys import Keys
from controller.mesh.hub import Hub
from controller.metrics import Metrics
from controller.nodes import Nodes
from controller.owners import Owners
from controller.paths import PathBook
from controller.peers import Peers
from controller.policy_documents import PolicyDocuments
from controller.rates import Rate
from controller.replicas import Replicas
from controller.services import Services
from controller.settings import Settings
from controller.store.store import Store
from controller.tls import Trust
from controller.tokens import Tokens
from controller.tracing import Tracing
from controller.turnstile import Turnstile
from controller.wire.netmap import Mesh

__all__ = ["Context", "Limits", "context"]


# A script with an old token is told so often enough, and a guesser nothing more: 20 at once, then one a minute.
_FAILURES: Final = 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How often what may happen: requests and failed logins by client, joins by enrolment key, streams by node.

    `opening`: how many streams of all nodes are opened at the same time. `body`, `policy`: bytes of a request, and of
    one about policy.
    """

    requests: Rate
    joins: Rate
    streams: Rate
    opening: Turnstile
    body: int
    policy: int
    failures: Rate = field(default_factory=lambda: Rate(1 / 60, _FAILURES))

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """As the operator chose them. Ten seconds' worth may come at once; of streams, half a minute's."""
        return cls(
            requests=Rate(settings.client_rate, 10 * settings.client_rate),
            joins=Rate(settings.key_rate, 10 * settings.key_rate),
            streams=Rate(settings.stream_rate / 60, max(settings.stream_rate // 2, 1)),
            opening=Turnstile(time.monotonic, waiting=settings.streams_waiting),
            body=settings.body_limit,
            policy=settings.policy_limit,
        )


@dataclass(frozen=True, slots=True)
class Context:
    """The controller's parts, wired."""

    mesh: Mesh
    store: Store
    hub: Hub
    authority: CertificateAuthority
    trust: Trust
    nodes: Nodes
    peers: Peers
    keys: Keys
    tokens: Tokens
    owners: Owners
    enrolment: Enrolment
    policy: PolicyDocuments
    grants: Grants
    services: Services
    replicas: Replicas
    certificates: ServiceCertificates
    now: Clock
    drifts: Drifts
    calls: CallBook
    questions: Questions
    limits: Limits
    denials: DenialBook = field(default_factory=DenialBook)
    paths: PathBook = field(default_factory=PathBook)
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing = field(default_factory=Tracing)


def context(connection: HTTPConnection) -> Context:
    """The context of the application that serves this request or WebSocket."""
    found: Context = connection.app.state.context
    return found
