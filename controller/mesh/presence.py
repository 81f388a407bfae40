"""What is known about a node's connection. Facts only; the hub keeps them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from controller.wire.base import Revision

__all__ = ["Presence"]


@dataclass(frozen=True, slots=True)
class Presence:
    """`in_force`: the revision that the host's kernel has; `error`: why it does not have the newest.

    `behind`: connected, and something that concerns this host is not in force there yet. What is from before the
    controller's start is not known: `last_seen` is None until the node connects. `since`: when its last stream opened.
    """

    online: bool = False
    in_force: Revision | None = None
    error: str | None = None
    backend: Literal["kernel", "userspace"] | None = None
    agent_version: str | None = None
    last_seen: datetime | None = None
    behind: bool = False
    since: datetime | None = None
