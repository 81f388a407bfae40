"""What putting another document in force would change: which host may open what to which, before and after.

Pure. Only pairs that a grant of one document names and that the other does not name alike are looked at, so the cost
follows the change and not the number of nodes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from controller.wire.netmap import Protocol
from controller.wire.rest import AccessChange, PolicyDifference

from .allowances import services
from .document import Document, Reach, Selector
from .model import Member
from .population import Population
from .ports import ALL_PORTS, Ports, format_ports, merge, without
from .words import calls_in_words

__all__ = ["MOST", "difference"]

MOST: Final = 1000  # changes that are listed; all are counted
Access = dict[Protocol, Ports]
# ICMP has no ports; here it has all of them, so that the same arithmetic serves.
_ICMP: Final[Ports] = ((0, 0),)


def difference(old: Document, new: Document, members: Iterable[Member], now: float) -> PolicyDifference:
    """What active nodes gain and lose with `new` in the place of `old` at `now` (seconds since the epoch)."""
    nodes = list(members)
    before, after = _Reach(old, nodes, now), _Reach(new, nodes, now)
    changes = []
    for source, destination in sorted(set(_affected(before, after)), key=lambda pair: (pair[0].name, pair[1].name)):
        had, has = before.access(source, destination), after.access(source, destination)
        could, can = before.calls(source, destination), after.calls(source, destination)
        gained = (*_entries(has, had), *sorted(can - could))
        lost = (*_entries(had, has), *sorted(could - can))
        if gained or lost:
            changes.append(AccessChange(source=source.name, destination=destination.name, gained=gained, lost=lost))
    return PolicyDifference(changes=tuple(changes[:MOST]), pairs=len(changes))


@dataclass(frozen=True, slots=True)
class _Part:
    """One reach of a grant for the fleet of the moment: what may be opened from whom to whom."""

    sources: frozenset[Member]
    destinations: frozenset[Member]
    access: tuple[tuple[Protocol, Ports], ...]
    calls: frozenset[str] = frozenset()


class _Reach:
    """Which parts of a document's grants name which nodes, on either side."""

    def __init__(self, document: Document, members: Iterable[Member], now: float) -> None:
        population = Population(document, members)
        self.parts: dict[tuple[str, int], _Part] = {}
        self._from: dict[Member, set[tuple[str, int]]] = {}
        self._to: dict[Member, set[tuple[str, int]]] = {}
        for grant in document.at(now).grants:
            sources = _members(population, grant.from_)
            for number, reach in enumerate(grant.reaches):
                key = grant.id, number
                calls = frozenset(calls_in_words(grant.mcp) if grant.mcp is not None else ())
                part = _Part(sources, _destinations(population, reach), tuple(_access(reach)), calls)
                self.parts[key] = part
                for index, side in ((self._from, part.sources), (self._to, part.destinations)):
                    for member in side:
                        index.setdefault(member, set()).add(key)

    def access(self, source: Member, destination: Member) -> Access:
        """Everything that the one may open to the other."""
        found: dict[Protocol, list[tuple[int, int]]] = {}
        for key in self._from.get(source, set()) & self._to.get(destination, set()):
            for protocol, ports in self.parts[key].access:
                found.setdefault(protocol, []).extend(ports)
        return {protocol: merge(ports) for protocol, ports in found.items()}

    def calls(self, source: Member, destination: Member) -> frozenset[str]:
        """What the one may call on the other, in words: patterns are compared as they are written."""
        keys = self._from.get(source, set()) & self._to.get(destination, set())
        return frozenset().union(*(self.parts[key].calls for key in keys))


def _access(reach: Reach) -> Iterator[tuple[Protocol, Ports]]:
    for protocol, ports in services(reach.ip):
        yield protocol, _ICMP if protocol == "icmp" else ports


def _members(population: Population, selectors: Iterable[Selector]) -> frozenset[Member]:
    return frozenset(member for selector in selectors for member in population.matching(selector))


def _destinations(population: Population, reach: Reach) -> frozenset[Member]:
    """A gateway service is a destination of its own, under its selector's name, whoever serves it."""
    if reach.service is not None:
        return frozenset({Member(f"svc:{reach.service}", frozenset(), ())})
    return _members(population, reach.to)


def _affected(before: _Reach, after: _Reach) -> Iterator[tuple[Member, Member]]:
    """Pairs that may differ. A grant's id says what it grants to whom, its parts say who that is at the moment."""
    for one, other in ((before, after), (after, before)):
        for key, part in one.parts.items():
            if other.parts.get(key) != part:
                yield from (
                    (source, destination)
                    for source in part.sources
                    for destination in part.destinations
                    if source is not destination
                )


def _entries(more: Access, less: Access) -> Iterator[str]:
    """What is in the first and not in the second, as entries of `ip`."""
    for protocol in sorted(more):
        for low, high in without(more[protocol], less.get(protocol, ())):
            if protocol == "icmp":
                yield protocol
            elif (low, high) == ALL_PORTS:
                yield f"{protocol}:*"
            elif high > 0:  # `*` has port 0, too, which nobody can write or use
                yield f"{protocol}:{format_ports((max(low, 1), high))}"
