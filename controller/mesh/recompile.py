"""What a new policy changes in every node's map, computed once for each pair of old and new role.

Nodes of one role have the same rules, sets and peers, so a policy for thousands of nodes costs as much as its roles.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from controller.policy.compile import NO_ROLE, CompiledPolicy, Role
from controller.wire.base import Address
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

from .dirty import Dirty, merged
from .index import Index
from .places import Places, sets_of

__all__ = ["Layout", "changes_between", "differing"]


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Layout:
    """A policy, and who and which service is where in it."""

    policy: CompiledPolicy
    index: Index
    roles: Mapping[NodeId, Role]
    places: Places

    def holder(self, name: ServiceName) -> NodeId | None:
        """The node that is given the service's addresses: its holder, if policy lets it serve."""
        record = self.places.get(name)
        if record is None or record.holder is None or name not in self.serves(record.holder):
            return None
        return record.holder

    def serves(self, node_id: NodeId) -> Collection[ServiceName]:
        return self.policy.view(self.roles.get(node_id, NO_ROLE)).services.keys()

    def held(self, node_id: NodeId) -> tuple[Address, ...]:
        """The addresses that the node holds for services."""
        return self.places.held(node_id, self.serves(node_id))


def changes_between(old: Layout, new: Layout) -> Iterator[tuple[NodeId, Dirty]]:
    """Whose map differs, and in what. Nodes that changed role in the same way share one value."""
    found: dict[tuple[Role, Role], Dirty] = {}
    contents = _Contents(old.index, new.index)
    for node_id, role in old.roles.items():
        pair = role, new.roles[node_id]
        if pair not in found:
            found[pair] = _changes(old, new, pair, contents)
        dirty = found[pair]
        if old.held(node_id) != new.held(node_id):
            dirty = merged([dirty, Dirty(node=True)])
        if dirty.concerns(node_id):
            yield node_id, dirty


class _Contents:
    """What sets hold before and after, each compared once."""

    def __init__(self, old: Index, new: Index) -> None:
        self._indexes = (old, new)
        self._elements: dict[str, frozenset[str]] = {}
        self._members: dict[tuple[int, frozenset[str]], frozenset[NodeId]] = {}

    def elements(self, key: str) -> frozenset[str]:
        if key not in self._elements:
            before, after = (index.address_set(key).addresses for index in self._indexes)
            self._elements[key] = before ^ after
        return self._elements[key]

    def members(self, which: int, sets: frozenset[str]) -> frozenset[NodeId]:
        if (which, sets) not in self._members:
            self._members[which, sets] = frozenset(self._indexes[which].members_of(sets))
        return self._members[which, sets]


def _changes(old: Layout, new: Layout, pair: tuple[Role, Role], contents: _Contents) -> Dirty:
    before, after = old.policy.view(pair[0]), new.policy.view(pair[1])
    dirty = Dirty(
        rules=differing(before.rules, after.rules),
        sets=set(sets_of(before) ^ sets_of(after)),
        peers=set(contents.members(0, before.sets) ^ contents.members(1, after.sets)),
        services=differing(before.services, after.services),
        calls=differing(before.calls, after.calls),
        names=set(before.names ^ after.names),
        forwards=differing(before.forwards, after.forwards),
    )
    for name in before.names | after.names:
        # What a peer holds is told to those who may call it; the peer may be one of theirs for other reasons, too.
        holders = {
            old.holder(name) if name in before.names else None,
            new.holder(name) if name in after.names else None,
        }
        if len(holders) > 1:
            dirty.peers |= {holder for holder in holders if holder is not None}
    for key in sets_of(before) & sets_of(after):
        if contents.elements(key):
            dirty.add_elements(key, contents.elements(key))
    return dirty


def differing(before: Mapping[str, T], after: Mapping[str, T]) -> set[str]:
    """The keys under which the two hold different values, or only one holds any."""
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
