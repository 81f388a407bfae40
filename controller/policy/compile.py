"""A document as what hosts enforce: for each role, the rules and the address sets that they refer to.

Pure, and without the fleet: the compiled policy says which selectors a node matches (its role) and what a role may do.
Which addresses are in a set at this moment is the mesh's business, so a membership change compiles nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from controller.wire.base import Address
from controller.wire.netmap import Direction, Rule

from .document import ANYONE, Document, Grant, Selector
from .parse import services
from .prefixes import PrefixTable

__all__ = ["CompiledPolicy", "Role", "View", "compile_policy"]

Role = frozenset[str]  # keys of the selectors that match a node


@dataclass(frozen=True, slots=True)
class View:
    """What a node of one role enforces: rules by id, and the names of the sets that they use."""

    rules: Mapping[str, Rule]
    sets: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Side:
    """What a selector's members enforce because of one grant: `out` rules where it is the source, `in` the reverse."""

    rules: tuple[Rule, ...]
    sets: frozenset[str]


NO_ROLE: Final[Role] = frozenset()
_NO_VIEW: Final = View(MappingProxyType({}), frozenset())


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """The meaning of a document. `counterparts`: for a set, the selectors whose members use it in their rules."""

    counterparts: Mapping[str, frozenset[str]]
    _sides: Mapping[str, tuple[_Side, ...]]
    _groups_of: Mapping[str, tuple[str, ...]]
    _prefixes: PrefixTable
    _named: frozenset[str]
    _views: dict[Role, View] = field(default_factory=dict)  # computed once a role; a policy's views never change

    def role(self, name: str, tags: Iterable[str], addresses: Iterable[Address]) -> Role:
        """The selectors of this policy that match a node; selectors that no grant uses do not count."""
        keys = {ANYONE, f"node:{name}", *tags, *self._prefixes.holding(addresses)}
        keys.update(group for key in tuple(keys) for group in self._groups_of.get(key, ()))
        return self._named & keys

    def view(self, role: Role) -> View:
        """What nodes of `role` enforce."""
        if not role:
            return _NO_VIEW
        view = self._views.get(role)
        if view is None:
            sides = [side for key in sorted(role) for side in self._sides.get(key, ())]
            rules = {rule.id: rule for side in sides for rule in side.rules}
            view = View(MappingProxyType(rules), frozenset().union(*(side.sets for side in sides)))
            self._views[role] = view
        return view


def compile_policy(document: Document) -> CompiledPolicy:
    """Compile; every document that `parse` accepts compiles."""
    sides: dict[str, list[_Side]] = {}
    counterparts: dict[str, set[str]] = {}
    for grant in document.grants:
        from_, to = _keys(grant.from_), _keys(grant.to)
        for members, direction, peers in ((from_, "out", to), (to, "in", from_)):
            side = _Side(_rules(grant, "out" if direction == "out" else "in", peers), frozenset(peers))
            for key in members:
                sides.setdefault(key, []).append(side)
            for key in peers:
                counterparts.setdefault(key, set()).update(members)
    return CompiledPolicy(
        counterparts={key: frozenset(keys) for key, keys in counterparts.items()},
        _sides={key: tuple(found) for key, found in sides.items()},
        _groups_of=document.groups_of(),
        _prefixes=PrefixTable({f"host:{host.name}": host.prefix for host in document.hosts.values()}),
        _named=frozenset(sides),
    )


def _keys(selectors: tuple[Selector, ...]) -> tuple[str, ...]:
    """Set names, sorted; beside `*`, every other selector says nothing."""
    keys = {selector.key for selector in selectors}
    return (ANYONE,) if ANYONE in keys else tuple(sorted(keys))


def _rules(grant: Grant, direction: Direction, peers: tuple[str, ...]) -> tuple[Rule, ...]:
    """One rule a protocol. Its id follows from the grant's, so a recompiled policy changes only what changed in it."""
    return tuple(
        Rule(
            id=f"{grant.id}.{direction}.{protocol}",
            grant=grant.id,
            direction=direction,
            protocol=protocol,
            ports=ports,
            peers=peers,
            expires=grant.expires,
        )
        for protocol, ports in services(grant.ip)
    )
