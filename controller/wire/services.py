"""Resources of `/api/v1/services`: where the services of the policy in force are now."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from .base import Address, Message, NodeName, Revision, Text
from .mcp import ServiceName
from .netmap import NodeId
from .rest import ExplainedGrant

__all__ = [
    "CallExplanation",
    "CallQuestion",
    "CertificateRequest",
    "MeshService",
    "ServiceCertificate",
    "ServiceHost",
    "ServiceMove",
]


class ServiceHost(Message):
    """A node that may serve it. `healthy`: its gateway says that the service can answer; else `error` says why not."""

    id: NodeId
    name: NodeName
    online: bool
    healthy: bool
    error: str | None = None


class MeshService(Message):
    """A service with mesh addresses of its own. `holder` has them since `since`, and answers there.

    `healthy` and `error` are the holder's; without a holder nobody answers.
    """

    name: ServiceName
    kind: Literal["mcp", "http"]
    fqdn: str
    addresses: tuple[Address, ...]
    port: int
    tls_port: int | None = None
    path: str = ""
    holder: NodeName | None
    since: datetime
    healthy: bool
    error: str | None = None
    hosts: tuple[ServiceHost, ...]
    revision: Revision


class ServiceMove(Message):
    """POST /services/{name}/move. `node`: its name or id; `force`: also when it is not healthy."""

    node: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", examples=["tools2"])]
    force: bool = False


class CertificateRequest(Message):
    """POST /services/{name}/certificate, by a node that may serve it. The private half of the CSR's key stays there."""

    csr: str = Field(description="PEM, PKCS #10, P-256; only its public key is used")


class ServiceCertificate(Message):
    """What a node shows to the service's callers: a server certificate for the service's names and addresses."""

    certificate: str = Field(description="PEM, signed by the mesh CA")


class CallQuestion(Message):
    """POST /policy/explain-call. `source`: a node's name or id; `service`: with or without `svc:`."""

    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", examples=["agent1"])]
    service: Annotated[str, Field(pattern=r"^(svc:)?[a-z0-9-]{1,63}$", examples=["svc:github"])]
    tool: Annotated[Text, Field(min_length=1, max_length=512, examples=["create_issue"])]
    arguments: dict[str, Any] = Field(default_factory=dict)


class CallExplanation(Message):
    """May `source` call this tool with these arguments? By which `grants`; or why not, and the grant `needed`.

    `taken_out_by`: when it is denied, the grants that name the tool and take it out again by `deny_tools`.
    """

    source: NodeName
    service: ServiceName
    tool: str
    allowed: bool
    grants: tuple[ExplainedGrant, ...] = ()
    taken_out_by: tuple[ExplainedGrant, ...] = ()
    reason: str | None = None
    needed: str = ""
    policy_revision: Revision
