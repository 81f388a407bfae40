"""Runs a document's own tests.

A test speaks about every node that its selectors match now, and about one imagined node for each tag, host prefix or
`*`, which has nothing else: so it holds for nodes that join later, too. Nodes that the grants cannot tell apart are
tried once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from controller.wire.netmap import Protocol

from .document import Allowance, Document, Selector, Test
from .parse import services
from .population import Population
from .ports import Ports, covers, overlap

__all__ = ["Failure", "Trial"]

_ANY_OTHER: Final = "any other node"
Services = tuple[tuple[Protocol, Ports], ...]
Allowed = dict[Protocol, Ports]


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry of a test that did not come out as expected, with one pair of nodes that shows it."""

    entry: Allowance
    expected: bool
    source: str
    destination: str

    def sentence(self) -> str:
        got, wanted = ("is denied", "accept") if self.expected else ("passes, at least in part", "deny")
        return f"test failed: {self.entry.text} from {self.source} to {self.destination} {got}; the test says {wanted}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Nodes that the grants cannot tell apart on one side: the parts of grants that name them there, and a few of them.

    A gateway service is one, too, whoever serves it: what reaches its addresses is granted to it alone.
    """

    grants: frozenset[int]
    names: tuple[str, ...]


class Trial:
    """Tries tests of `document` for one population at one moment (`now`, seconds since the epoch)."""

    def __init__(self, document: Document, population: Population, now: float) -> None:
        self._document = document
        self._population = population
        self._reaches = tuple((grant, reach) for grant in document.at(now).grants for reach in grant.reaches)
        self._from: dict[str, set[int]] = {}
        self._to: dict[str, set[int]] = {}
        self._at: dict[str, set[int]] = {}  # what goes to a gateway service's own addresses
        for i, (grant, reach) in enumerate(self._reaches):
            to = self._to if reach.service is None else self._at
            for index, side in ((self._from, grant.from_), (to, reach.to)):
                for selector in side:
                    index.setdefault(selector.key, set()).add(i)
        self._kinds_of: dict[tuple[str, tuple[Selector, ...]], list[_Kind]] = {}
        self._allowed: dict[frozenset[int], Allowed] = {}

    def failures(self, test: Test) -> list[Failure] | None:
        """At most one failure for each entry of the test; None when the test speaks about nobody."""
        pairs = list(self._pairs(test))
        if not pairs:
            return None
        failures = []
        for entry, expected in [*((e, True) for e in test.accept), *((e, False) for e in test.deny)]:
            wanted = services([entry])
            wrong = next((pair for pair in pairs if not _holds(wanted, expected, pair[2])), None)
            if wrong is not None:
                failures.append(Failure(entry, expected, wrong[0], wrong[1]))
        return failures

    def _pairs(self, test: Test) -> Iterator[tuple[str, str, Allowed]]:
        destinations = self._kinds("to", test.to)
        for source in self._kinds("from", test.from_):
            for destination in destinations:
                names = _two_nodes(source.names, destination.names)
                if names is not None:
                    yield *names, self._between(source.grants & destination.grants)

    def _kinds(self, side: str, selectors: tuple[Selector, ...]) -> list[_Kind]:
        if (side, selectors) not in self._kinds_of:
            index = self._from if side == "from" else self._to
            self._kinds_of[side, selectors] = self._sorted_out(selectors, index)
        return self._kinds_of[side, selectors]

    def _sorted_out(self, selectors: tuple[Selector, ...], index: dict[str, set[int]]) -> list[_Kind]:
        known: dict[frozenset[int], set[str]] = {}
        imagined: dict[frozenset[int], str] = {}
        for selector in selectors:
            if selector.kind == "svc" and self._document.services[selector.name].gateway is not None:
                reaches = frozenset(self._at.get(selector.key, ()))
                known.setdefault(reaches, set()).add(f"service {selector.name!r}")
                continue
            for member in self._population.matching(selector):
                grants = _grants(self._population.keys_of(member), index)
                known.setdefault(grants, set()).add(f"node {member.name!r}")
            for keys in self._population.imagined(selector):
                imagined.setdefault(_grants(keys, index), f"{_ANY_OTHER} of {selector.key}")
        # Two nodes are enough to find a pair that is not one node with itself.
        return [
            _Kind(grants, (*sorted(known.get(grants, ()))[:2], *filter(None, [imagined.get(grants)])))
            for grants in known.keys() | imagined.keys()
        ]

    def _between(self, grants: frozenset[int]) -> Allowed:
        allowed = self._allowed.get(grants)
        if allowed is None:
            allowed = dict(services([entry for i in grants for entry in self._reaches[i][1].ip]))
            self._allowed[grants] = allowed
        return allowed


def _grants(profile: frozenset[str], index: dict[str, set[int]]) -> frozenset[int]:
    return frozenset().union(*(index[key] for key in profile if key in index))


def _two_nodes(sources: tuple[str, ...], destinations: tuple[str, ...]) -> tuple[str, str] | None:
    """One of each that are not the same node; imagined nodes are always two."""
    for source in sources:
        for destination in destinations:
            if source != destination or source.startswith(_ANY_OTHER):
                return source, destination
    return None


def _holds(wanted: Services, expected: bool, allowed: Allowed) -> bool:
    if expected:
        return all(p in allowed and covers(allowed[p], ports) for p, ports in wanted)
    return not any(p in allowed and (p == "icmp" or overlap(allowed[p], ports)) for p, ports in wanted)
