"""What other controllers of the mesh say of the hosts that are connected to them. Pure.

A word is believed while its controller is heard of. `as_of` is the revision that the controller had taken in when it
said so: a change after it may concern the host without the word saying so.
"""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime

from controller.wire.base import Revision
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

from .presence import Presence

__all__ = ["Elsewhere", "Replica", "Word"]


@dataclass(frozen=True, slots=True)
class Replica:
    """Another controller, which was heard of lately. `as_of`: the revision that its words are of."""

    id: str
    url: str
    as_of: Revision


@dataclass(frozen=True, slots=True)
class Word:
    """What a controller said of a host. `since`: when the host's stream opened there, by that controller's clock.

    `services`: what the host said of those that it serves, while it is heard of; None for one that can answer.
    """

    replica: str
    since: datetime
    presence: Presence
    services: Mapping[ServiceName, str | None] = field(default_factory=dict)


class Elsewhere:
    """The last word on each host, and the controllers that are alive."""

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._words: dict[NodeId, Word] = {}

    @property
    def replicas(self) -> Iterable[Replica]:
        """The other controllers."""
        return self._replicas.values()

    def alive(self, replicas: Iterable[Replica]) -> None:
        """These are the other controllers now. What the others said is forgotten, but for when hosts were seen."""
        self._replicas = {replica.id: replica for replica in replicas}

    def heard(self, words: Mapping[NodeId, Word]) -> None:
        """Take in newer words."""
        self._words.update(words)

    def forget(self, nodes: Iterable[NodeId]) -> None:
        for node_id in nodes:
            self._words.pop(node_id, None)

    def online(self, node_id: NodeId) -> tuple[Word, Replica] | None:
        """The word on a host that is connected to another controller now."""
        word = self._words.get(node_id)
        replica = self._replicas.get(word.replica) if word is not None and word.presence.online else None
        return (word, replica) if word is not None and replica is not None else None

    def all_online(self) -> Set[NodeId]:
        """The hosts that are connected to another controller now."""
        return {node_id for node_id in self._words if self.online(node_id) is not None}

    def last_seen(self, node_id: NodeId) -> datetime | None:
        word = self._words.get(node_id)
        return word.presence.last_seen if word is not None else None
