"""What a new policy changes in every node's map, computed once for each pair of old and new role.

Nodes of one role have the same rules, sets and peers, so a policy for thousands of nodes costs as much as its roles.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from controller.policy.compile import CompiledPolicy, Role
from controller.wire.netmap import NodeId

from .dirty import Dirty
from .index import Index

__all__ = ["Layout", "changes_between"]


@dataclass(frozen=True, slots=True)
class Layout:
    """A policy, and who is where in it."""

    policy: CompiledPolicy
    index: Index
    roles: Mapping[NodeId, Role]


def changes_between(old: Layout, new: Layout) -> Iterator[tuple[NodeId, Dirty]]:
    """Whose map differs, and in what. Nodes that changed role in the same way share one value."""
    found: dict[tuple[Role, Role], Dirty] = {}
    contents = _Contents(old.index, new.index)
    for node_id, role in old.roles.items():
        pair = role, new.roles[node_id]
        if pair not in found:
            found[pair] = _changes(old, new, pair, contents)
        if found[pair].concerns(node_id):
            yield node_id, found[pair]


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
        rules={
            rule for rule in before.rules.keys() | after.rules.keys() if before.rules.get(rule) != after.rules.get(rule)
        },
        sets=set(before.sets ^ after.sets),
        peers=set(contents.members(0, before.sets) ^ contents.members(1, after.sets)),
    )
    for key in before.sets & after.sets:
        if contents.elements(key):
            dirty.add_elements(key, contents.elements(key))
    return dirty
