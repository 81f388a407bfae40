"""What is known about a node's connection. Facts only; the hub keeps them."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from controller.wire.base import Revision

__all__ = ["Presence", "longest_lag"]


@dataclass(frozen=True, slots=True)
class Presence:
    """`in_force`: the revision that the host's kernel has; `error`: why it does not have the newest.

    `behind`: connected, and something that concerns this host is not in force there yet; `behind_since`: when the
    oldest such thing was decided, also if the host was not connected then. What is from before the controller's start
    is not known: `last_seen` is None until the node connects. `since`: when its last stream opened.
    """

    online: bool = False
    in_force: Revision | None = None
    error: str | None = None
    backend: Literal["kernel", "userspace"] | None = None
    agent_version: str | None = None
    last_seen: datetime | None = None
    behind: bool = False
    since: datetime | None = None
    behind_since: float | None = None  # seconds since the epoch

    def lag(self, now: float) -> float | None:
        """For how many seconds the host has been behind; None when it is not."""
        if not self.behind or self.behind_since is None:
            return None
        return round(max(now - self.behind_since, 0.0), 3)  # another controller's clock may be ahead


def longest_lag(presences: Iterable[Presence], now: float) -> float | None:
    """For how many seconds the host has been behind that has been so for longest; None when none is."""
    return max((lag for presence in presences if (lag := presence.lag(now)) is not None), default=None)
