"""What this host shares with each of its peers for asking each other, and whose a question is by the name in it.

Knows no sockets. The keys are derived when they are first needed: thousands at once would take seconds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from controller.wire.base import PublicKey
from controller.wire.netmap import NodeId

from .paths.pair import Pair, pair

__all__ = ["Pairs"]


@dataclass(frozen=True, slots=True)
class _Made:
    public: PublicKey
    private: bytes
    pair: Pair


class Pairs:
    """The peers of the map in force that have an agentd."""

    def __init__(self) -> None:
        self._private_key: Callable[[], bytes] | None = None
        self._keys: Mapping[NodeId, PublicKey] = {}
        self._made: dict[NodeId, _Made] = {}
        self._names: dict[bytes, NodeId] = {}

    @property
    def nodes(self) -> list[NodeId]:
        """All of them."""
        return list(self._keys)

    def unmade(self) -> Iterator[NodeId]:
        """Those with whom nothing was shared yet: their questions are a stranger's."""
        return (node for node in self._keys if node not in self._made)

    def connect(self, private_key: Callable[[], bytes]) -> None:
        """`private_key` gives WireGuard's own, which may be replaced; without it, nothing is shared with anybody."""
        self._private_key = private_key

    def adopt(self, keys: Mapping[NodeId, PublicKey]) -> None:
        """These are the peers now, with WireGuard's public keys."""
        self._keys = keys
        for node in [node for node in self._made if node not in keys]:
            del self._names[self._made.pop(node).pair.theirs]

    def of(self, node: NodeId) -> Pair | None:
        """What is shared with a peer; None for who is none."""
        public = self._keys.get(node)
        if public is None or self._private_key is None:
            return None
        private, made = self._private_key(), self._made.get(node)
        if made is not None and (made.public, made.private) == (public, private):
            return made.pair
        if made is not None:
            self._names.pop(made.pair.theirs, None)
        shared = pair(private, public)
        self._made[node] = _Made(public, private, shared)
        self._names[shared.theirs] = node
        return shared

    def asker(self, name: bytes | None) -> tuple[NodeId, Pair] | None:
        """The peer whose question has this name; None for a stranger, or who was never asked."""
        node = self._names.get(name or b"")
        shared = self.of(node) if node is not None else None
        return (node, shared) if node is not None and shared is not None and shared.theirs == name else None
