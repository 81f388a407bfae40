"""What was seen and heard of the nodes that serve: their streams, and what each says of its services.

Pure and in memory; `holders` judges by it. Times are in seconds of one monotonic clock.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from controller.holders import SILENCE, Vitals
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["Pulse"]


@dataclass(frozen=True, slots=True)
class _Stream:
    online: bool
    changed: float


@dataclass(frozen=True, slots=True)
class _Beat:
    heard: float
    error: str | None
    failing: float | None


class Pulse:
    """Of each node its stream, of each of its services the last heartbeat."""

    def __init__(self, start: float) -> None:
        """`start`: when the controller began to look; nobody's absence counts from before."""
        self._start = start
        self._streams: dict[NodeId, _Stream] = {}
        self._beats: dict[NodeId, dict[ServiceName, _Beat]] = {}

    def saw(self, node_id: NodeId, *, online: bool, now: float) -> None:
        """Note whether the node's stream is open."""
        known = self._streams.get(node_id)
        if known is None and not online:
            return  # not seen yet: it may be on its way back
        if known is None or known.online != online:
            self._streams[node_id] = _Stream(online, now)

    def heard(self, node_id: NodeId, services: Mapping[ServiceName, str | None], now: float) -> bool:
        """Note a heartbeat: for each service None, or why it cannot answer. True when something is new in it."""
        before = self._beats.get(node_id, {})
        beats = {}
        for name, error in services.items():
            known = before.get(name)
            failing = None if error is None else (known.failing if known and known.failing is not None else now)
            beats[name] = _Beat(now, error, failing)
        self._beats[node_id] = beats
        return {name: beat.error for name, beat in before.items()} != dict(services)

    def says(self, node_id: NodeId, now: float) -> dict[ServiceName, str | None]:
        """What the node says of its services, of those that it is still heard of."""
        beats = self._beats.get(node_id, {})
        return {name: beat.error for name, beat in beats.items() if now - beat.heard < SILENCE}

    def vitals(self, node_id: NodeId, service: ServiceName) -> Vitals:
        """What the tables of `holders` are asked with."""
        stream, beat = self._streams.get(node_id), self._beats.get(node_id, {}).get(service)
        return Vitals(
            online=stream is not None and stream.online,
            changed=stream.changed if stream is not None else self._start,
            seen=stream is not None,
            heard=beat.heard if beat is not None else None,
            error=beat.error if beat is not None else None,
            failing=beat.failing if beat is not None else None,
        )

    def keep_only(self, nodes: Iterable[NodeId]) -> None:
        """Forget every other node."""
        kept = set(nodes)
        self._streams = {node_id: found for node_id, found in self._streams.items() if node_id in kept}
        self._beats = {node_id: found for node_id, found in self._beats.items() if node_id in kept}
