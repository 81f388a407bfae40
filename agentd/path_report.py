"""What the controller is told of this host's paths: a bounded summary, and since when each path is as it is. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from controller.wire.base import Endpoint
from controller.wire.netmap import NodeId
from controller.wire.paths import MOST_PATHS, PathKind, PathReport
from controller.wire.stream import Paths

__all__ = ["PathLog", "Reached", "is_news"]


@dataclass(frozen=True, slots=True)
class Reached:
    """How a peer is reached now. `rtt` in seconds, `mtu` in bytes."""

    peer: NodeId
    kind: PathKind
    endpoint: Endpoint | None
    rtt: float | None
    mtu: int | None


class PathLog:
    """Remembers since when."""

    def __init__(self) -> None:
        self._since: dict[NodeId, tuple[PathKind, Endpoint | None, datetime]] = {}

    def report(self, found: Iterable[Reached], now: datetime) -> tuple[PathReport, ...]:
        """Of the paths as they are now. Those that do not work first, then the slowest, as many as fit."""
        since: dict[NodeId, tuple[PathKind, Endpoint | None, datetime]] = {}
        reports = []
        for one in found:
            before = self._since.get(one.peer)
            same = before is not None and before[:2] == (one.kind, one.endpoint)
            since[one.peer] = before if before is not None and same else (one.kind, one.endpoint, now)
            begun = since[one.peer][2]
            rtt = round(one.rtt, 6) if one.rtt is not None else None
            reports.append(
                PathReport(peer=one.peer, kind=one.kind, endpoint=one.endpoint, rtt=rtt, mtu=one.mtu, since=begun)
            )
        self._since = since
        reports.sort(key=lambda one: (one.kind != "none", -(one.rtt or 0.0), one.peer))
        return tuple(reports[:MOST_PATHS])


def is_news(before: Paths, after: Paths) -> bool:
    """True when more than round trip times differ."""
    return _lasting(before) != _lasting(after)


def _lasting(said: Paths) -> object:
    paths = {(one.peer, one.since, one.mtu) for one in said.paths}
    if said.netcheck is None:
        return paths, None
    answering = tuple(
        each.model_copy(update={"rtt": None if each.rtt is None else 0.0}) for each in said.netcheck.relays
    )
    return paths, said.netcheck.model_copy(update={"relays": answering})
