"""How hosts reach their peers, as hosts report it and as REST shows it."""

from datetime import datetime
from typing import Annotated, Final, Literal

from pydantic import Field

from .base import Endpoint, Message
from .netmap import NodeId

__all__ = ["MOST_PATHS", "HostPath", "PathKind", "PathList", "PathReport"]

MOST_PATHS: Final = 500  # of one host: those that do not work first, then the slowest

PathKind = Literal["lan", "direct", "relay", "none"]


class PathReport(Message):
    """The path from the host to one peer.

    `lan`: both are on one network; `relay`: by way of a host that relays; `none`: no endpoint of the peer has answered
    yet, and it may be away.
    """

    peer: NodeId
    kind: PathKind
    endpoint: Annotated[Endpoint | None, Field(description="where the peer answers")] = None
    rtt: Annotated[float | None, Field(ge=0, description="seconds, when the report was made")] = None
    mtu: Annotated[int | None, Field(ge=1, description="bytes of the largest packet that passes, if it is known")] = (
        None
    )
    since: Annotated[datetime, Field(description="kind and endpoint are these; the host looks every few seconds")]


class HostPath(PathReport):
    """A path, and the host that it begins at."""

    node: NodeId


class PathList(Message):
    """GET /paths: by host. Kept in memory, of hosts that are connected to this controller."""

    items: tuple[HostPath, ...]
