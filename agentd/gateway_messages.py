"""The local API's messages about services: what the gateway asks and says, and what is told of it and its services.

No answer contains a secret. Knows nothing of how services are served.
"""

from typing import Annotated, Literal

from pydantic import Field

from controller.wire.base import Address, Message
from controller.wire.call_records import Records, Sequence, SpoolId
from controller.wire.mcp import GatewayPolicy, ServiceName

__all__ = [
    "Certified",
    "CertifyRequest",
    "GatewayRequest",
    "GatewayStatus",
    "ListenRequest",
    "Listening",
    "Policy",
    "RecordsKept",
    "RecordsRequest",
    "ServiceStatus",
    "ServingReport",
]


class RecordsRequest(Message):
    """Tell the controller what a gateway recorded; `first` is the number of the first record in its spool, `behind` how
    many more there are after these.

    The answer comes when the controller has them, or Failure when it is away: then they are sent again, later.
    """

    request: Literal["records"] = "records"
    spool: SpoolId
    first: Sequence
    records: Records
    behind: Annotated[int, Field(ge=0)] = 0


class GatewayRequest(Message):
    """What is the gateway to do? Answered with `Policy` now, and whenever it is another one, until it hangs up.

    `worker`: which of the gateway's processes asks; the first, 0, says how the services are.
    """

    request: Literal["gateway"] = "gateway"
    worker: Annotated[int, Field(ge=0, le=255)] = 0


class ServingReport(Message):
    """Said by the gateway's first process: None for a service that can answer, or why it cannot.

    `without_tls`: why services that should answer over TLS as well do not.
    """

    request: Literal["serving"] = "serving"
    services: dict[ServiceName, Annotated[str, Field(max_length=1000)] | None]
    without_tls: dict[ServiceName, Annotated[str, Field(max_length=1000)]] = Field(default_factory=dict)


class ListenRequest(Message):
    """A socket that listens at this address and port of a service, which only agentd may bind (below 1024).

    Its descriptor comes with the answer. `processes` of the gateway share the address.
    """

    request: Literal["listen"] = "listen"
    service: ServiceName
    address: Address
    port: Annotated[int, Field(ge=1, le=65535)]
    processes: Annotated[int, Field(ge=1, le=256)] = 1


class CertifyRequest(Message):
    """Have the controller sign a certificate for a service; the key of the CSR (PEM) stays with who asks."""

    request: Literal["certify"] = "certify"
    service: ServiceName
    csr: Annotated[str, Field(max_length=16 * 1024)]


class ServiceStatus(Message):
    """A service that this host may serve. `held`: it is this host that answers for its addresses now."""

    name: ServiceName
    fqdn: str
    kind: Literal["mcp", "http"]
    addresses: tuple[Address, ...]
    port: int
    tls_port: int | None = None
    upstream: str = Field(description="where calls go: an URL, or the command that is run")
    held: bool
    error: str | None = Field(default=None, description="why it cannot answer; None: it can")
    tls_error: str | None = Field(default=None, description="why it cannot answer over TLS, though it can otherwise")


class GatewayStatus(Message):
    """The process that serves. `started_by`: agentd itself, or somebody else, as its systemd unit."""

    started_by: Literal["agentd", "unit"]
    connected: bool
    processes: tuple[int, ...] = Field(default=(), description="ids of those that are connected")
    error: str | None = Field(default=None, description="why agentd could not keep it running")


class RecordsKept(Message):
    """The answer to RecordsRequest: the controller keeps the spool's records up to number `through`."""

    answer: Literal["records-kept"] = "records-kept"
    through: int


class Policy(Message):
    """What the gateway enforces from now on. Of a service's addresses, those that this host holds."""

    answer: Literal["policy"] = "policy"
    policy: GatewayPolicy


class Listening(Message):
    """The answer to ListenRequest; the listening socket comes with it (SCM_RIGHTS)."""

    answer: Literal["listening"] = "listening"


class Certified(Message):
    """The answer to CertifyRequest: the certificate (PEM)."""

    answer: Literal["certified"] = "certified"
    certificate: str
