"""What a request handler may use: one value per process, found through the ASGI application's state.

Apart from `app` so that routers need not import it.
"""

from dataclasses import dataclass, field

from starlette.requests import HTTPConnection

from controller.asking import Questions
from controller.attempts import FailedAttempts
from controller.calls import CallBook
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
from controller.peers import Peers
from controller.policy_documents import PolicyDocuments
from controller.replicas import Replicas
from controller.services import Services
from controller.store.store import Store
from controller.tls import Trust
from controller.tokens import Tokens
from controller.wire.netmap import Mesh

__all__ = ["Context", "context"]


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
    now: Clock
    drifts: Drifts
    calls: CallBook
    questions: Questions
    denials: DenialBook = field(default_factory=DenialBook)
    failed: FailedAttempts = field(default_factory=FailedAttempts)
    metrics: Metrics = field(default_factory=Metrics)


def context(connection: HTTPConnection) -> Context:
    """The context of the application that serves this request or WebSocket."""
    found: Context = connection.app.state.context
    return found
