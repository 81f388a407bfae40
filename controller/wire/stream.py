"""Frames of the agents' WebSocket, `wss://CONTROLLER/api/v1/stream`, as JSON text, one frame a message.

The agent speaks first (`Hello`); the controller answers with `Snapshot`, or with `Delta` when it can resume, and then
sends a `Delta` whenever the host's map changes. The agent answers each with `Applied` once its kernel has it, and an
`Ask`, which comes after the first map at the earliest, with `Answer`.
`Bye` comes before the controller closes the stream on purpose. Liveness is WebSocket ping and pong.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from .asking import Answer, Ask
from .base import Endpoint, Message, PublicKey, Revision, Text
from .call_records import Records, Sequence, SpoolId
from .denials import MOST_DENIALS, Denial
from .mcp import ServiceName
from .netcheck import NetcheckReport
from .netmap import Delta, Netmap
from .paths import MOST_PATHS, PathReport

__all__ = [
    "AgentFrame",
    "Answer",
    "Applied",
    "Ask",
    "Bye",
    "Calls",
    "ControllerFrame",
    "Controllers",
    "DeltaFrame",
    "Denials",
    "Drift",
    "Hello",
    "HostReport",
    "Paths",
    "Recorded",
    "Report",
    "Serving",
    "Snapshot",
    "agent_frame",
    "controller_frame",
]

STREAM_PATH = "/api/v1/stream"
SERVING_INTERVAL = 2.0  # seconds
PROTOCOL = "wardmesh.v1"  # the WebSocket subprotocol; a change that old agents cannot read changes it


class HostReport(Message):
    """What only the host knows. `endpoints`: where WireGuard can be reached, best first, without mesh addresses.

    `reflexive`: where STUN servers see WireGuard's port, if that is elsewhere: outside of a NAT. `relayed`: its places
    behind the relays that it chose, the nearest first.
    """

    agent_version: Annotated[Text, Field(max_length=100)]
    backend: Literal["kernel", "userspace"] = "kernel"
    kernel: Annotated[Text, Field(max_length=200)] = Field(default="", description="release, as `uname -r` prints it")
    public_key: PublicKey
    endpoints: tuple[Endpoint, ...] = ()
    reflexive: tuple[Endpoint, ...] = ()
    relayed: Annotated[tuple[Endpoint, ...], Field(max_length=4)] = ()
    listen_port: Annotated[int, Field(ge=1, le=65535)] = 51820


class Hello(Message):
    """Opens the stream. `revision`: the map that the host holds, None for none, of that `mesh` (id) and `timeline`."""

    type: Literal["hello"] = "hello"
    revision: Revision | None = None
    mesh: str | None = None
    timeline: str = ""
    report: HostReport


class Report(Message):
    """The host's facts changed (an address appeared, the key was replaced)."""

    type: Literal["report"] = "report"
    report: HostReport


class Applied(Message):
    """The host's kernel has `revision` in force; with `error`, it does not, and the previous state stands."""

    type: Literal["applied"] = "applied"
    revision: Revision
    error: str | None = None


class Denials(Message):
    """All that the host denied in a minute, so far: replaces what it said of that minute before.

    Sent once a minute at most for each minute, and only when something was denied.
    """

    type: Literal["denials"] = "denials"
    minute: datetime
    denials: Annotated[tuple[Denial, ...], Field(min_length=1, max_length=MOST_DENIALS)]


class Drift(Message):
    """Somebody on the host changed what agentd made, and agentd puts it back. Not more than one in ten seconds."""

    type: Literal["drift"] = "drift"
    what: Annotated[Text, Field(max_length=1000)]


class Serving(Message):
    """How the services that the host may serve are: None for one that can answer, or why it cannot.

    Sent every SERVING_INTERVAL seconds while there is one, and at once when something changed, so that another host
    takes a service over within seconds.
    """

    type: Literal["serving"] = "serving"
    services: dict[ServiceName, Annotated[Text, Field(max_length=1000)] | None]


class Paths(Message):
    """How the host reaches its peers, and from where it is seen: all of it, instead of what it said before.

    Said when it changed, twice a minute at most.
    """

    type: Literal["paths"] = "paths"
    paths: Annotated[tuple[PathReport, ...], Field(max_length=MOST_PATHS)]
    netcheck: NetcheckReport | None = None


class Calls(Message):
    """Records of a gateway on this host, in order and without holes; `first` is the number of the first in its spool.

    At least once: the agent sends them again until `Recorded` says that the controller has them. One frame a time.
    """

    type: Literal["calls"] = "calls"
    spool: SpoolId
    first: Sequence
    records: Records


class Recorded(Message):
    """The controller keeps this spool's records up to number `through`: the host may forget them."""

    type: Literal["recorded"] = "recorded"
    spool: SpoolId
    through: Annotated[int, Field(ge=0)]


class Snapshot(Message):
    """Replaces whatever map the host holds."""

    type: Literal["snapshot"] = "snapshot"
    netmap: Netmap


class DeltaFrame(Message):
    """Continues the map that the host holds."""

    type: Literal["delta"] = "delta"
    delta: Delta


class Controllers(Message):
    """All controllers of the mesh: the host may come back at any of them, when this one is away."""

    type: Literal["controllers"] = "controllers"
    urls: Annotated[tuple[Annotated[str, Field(max_length=2000)], ...], Field(max_length=100)]


class Bye(Message):
    """Why the controller closes. `retry` False: coming back is pointless until a person acts."""

    type: Literal["bye"] = "bye"
    reason: Literal["replaced", "removed", "disabled", "shutdown", "protocol"]
    detail: str
    retry: bool = True


AgentFrame = Annotated[
    Hello | Report | Applied | Denials | Drift | Serving | Paths | Calls | Answer, Field(discriminator="type")
]
ControllerFrame = Annotated[Snapshot | DeltaFrame | Recorded | Ask | Controllers | Bye, Field(discriminator="type")]

agent_frame: TypeAdapter[AgentFrame] = TypeAdapter(AgentFrame)
controller_frame: TypeAdapter[ControllerFrame] = TypeAdapter(ControllerFrame)
