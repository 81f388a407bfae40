"""What this host denied, in the words of the local API and of the stream. Pure."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Final

from controller.wire.denials import Denial
from controller.wire.stream import Denials

from .denied import DeniedFlow, DeniedLog

__all__ = ["DenialReport", "denial", "reports"]

_CATCH_UP: Final = 10 * 60  # seconds: what a host that was away tells of the time that it was away

DenialReport = tuple[int, Denials]  # with the minute in seconds since the epoch


def reports(log: DeniedLog, since: int, now: float) -> Iterator[DenialReport]:
    """A frame for each minute from `since` on in which something was denied; not older than ten minutes."""
    listed = log.listed(since=max(since, int(now) - _CATCH_UP))
    for minute, found in groupby(listed, key=lambda one: one.minute):
        denials = tuple(map(denial, found))
        yield minute, Denials(minute=denials[0].minute, denials=denials)


def denial(found: DeniedFlow) -> Denial:
    """One flow in one minute."""
    minute, flow = datetime.fromtimestamp(found.minute, UTC), found.flow
    if flow is None:
        return Denial(minute=minute, packets=found.packets)
    return Denial(
        minute=minute,
        direction=flow.direction,
        source=flow.source,
        destination=flow.destination,
        protocol=flow.protocol,
        port=flow.port,
        packets=found.packets,
    )
