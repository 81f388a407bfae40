"""What putting another document in force would change: which host may open what to which, before and after.

Pure. Only pairs that a grant of one document names and that the other does not name alike are looked at, so the cost
follows the change and not the number of nodes.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from controller.wire.netmap import Protocol
from controller.wire.rest import AccessChange, PolicyDifference

from .document import Document, Grant
from .model import Member
from .parse import services
from .population import Population
from .ports import ALL_PORTS, Ports, format_ports, merge, without

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
        gained, lost = tuple(_entries(has, had)), tuple(_entries(had, has))
        if gained or lost:
            changes.append(AccessChange(source=source.name, destination=destination.name, gained=gained, lost=lost))
    return PolicyDifference(changes=tuple(changes[:MOST]), pairs=len(changes))


class _Reach:
    """Which grants of a document name which nodes, on either side."""

    def __init__(self, document: Document, members: Iterable[Member], now: float) -> None:
        population = Population(document, members)
        self.sides: dict[str, tuple[frozenset[Member], frozenset[Member]]] = {}
        self._access: dict[str, Access] = {}
        self._from: dict[Member, set[str]] = {}
        self._to: dict[Member, set[str]] = {}
        for grant in document.at(now).grants:
            sides = (_members(population, grant, "from"), _members(population, grant, "to"))
            self.sides[grant.id] = sides
            self._access[grant.id] = {
                protocol: ports if protocol != "icmp" else _ICMP for protocol, ports in services(grant.ip)
            }
            for index, side in zip((self._from, self._to), sides, strict=True):
                for member in side:
                    index.setdefault(member, set()).add(grant.id)

    def access(self, source: Member, destination: Member) -> Access:
        """Everything that the one may open to the other."""
        found: dict[Protocol, list[tuple[int, int]]] = {}
        for grant in self._from.get(source, set()) & self._to.get(destination, set()):
            for protocol, ports in self._access[grant].items():
                found.setdefault(protocol, []).extend(ports)
        return {protocol: merge(ports) for protocol, ports in found.items()}


def _members(population: Population, grant: Grant, side: str) -> frozenset[Member]:
    selectors = grant.from_ if side == "from" else grant.to
    return frozenset(member for selector in selectors for member in population.matching(selector))


def _affected(before: _Reach, after: _Reach) -> Iterator[tuple[Member, Member]]:
    """Pairs that may differ. A grant's id says what it grants to whom, its sides say who that is at the moment."""
    for one, other in ((before, after), (after, before)):
        for grant, (sources, destinations) in one.sides.items():
            if other.sides.get(grant) != (sources, destinations):
                yield from (
                    (source, destination)
                    for source in sources
                    for destination in destinations
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
