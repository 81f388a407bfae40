"""Runs a document's own tests.

A test speaks about every node that its selectors match now, and about one imagined node for each tag, host prefix or
`*`, which has nothing else: so it holds for nodes that join later, too. Nodes that the grants cannot tell apart are
tried once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from controller.wire.netmap import Protocol

from .document import Allowance, Document, Selector, Test
from .model import Member, selects
from .parse import services
from .population import Population, imagined
from .ports import Ports, covers, overlap

__all__ = ["Failure", "Trial"]

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
    """Nodes that the grants cannot tell apart: the grants that name them on each side, and up to two of them."""

    sources: frozenset[int]
    destinations: frozenset[int]
    names: tuple[str, ...]


class Trial:
    """Tries tests of `document` for one population at one moment (`now`, seconds since the epoch)."""

    def __init__(self, document: Document, population: Population, now: float) -> None:
        self._document = document
        self._population = population
        self._grants = tuple(g for g in document.grants if g.expires is None or now < g.expires)
        self._selectors = {s.key: s for grant in self._grants for s in (*grant.from_, *grant.to)}
        self._from: dict[str, set[int]] = {}
        self._to: dict[str, set[int]] = {}
        for i, grant in enumerate(self._grants):
            for index, side in ((self._from, grant.from_), (self._to, grant.to)):
                for selector in side:
                    index.setdefault(selector.key, set()).add(i)
        self._profiles: dict[Member, set[str]] = {}
        for key, selector in self._selectors.items():
            for member in population.matching(selector):
                self._profiles.setdefault(member, set()).add(key)
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
        destinations = self._kinds(test.to)
        for source in self._kinds(test.from_):
            for destination in destinations:
                names = _two_nodes(source.names, destination.names)
                if names is not None:
                    yield *names, self._between(source.sources & destination.destinations)

    def _kinds(self, selectors: tuple[Selector, ...]) -> list[_Kind]:
        kinds: dict[frozenset[str], list[str]] = {}
        for selector in selectors:
            for member in self._population.matching(selector):
                names = kinds.setdefault(frozenset(self._profiles.get(member, ())), [])
                name = f"node {member.name!r}"
                if len(names) < 2 and name not in names:
                    names.append(name)
            for member in imagined(self._document, selector):
                profile = frozenset(k for k, s in self._selectors.items() if selects(self._document, s, member))
                kinds.setdefault(profile, []).append(f"any other node of {selector.key}")
        return [
            _Kind(_grants(profile, self._from), _grants(profile, self._to), tuple(names))
            for profile, names in kinds.items()
        ]

    def _between(self, grants: frozenset[int]) -> Allowed:
        allowed = self._allowed.get(grants)
        if allowed is None:
            allowed = dict(services([entry for i in grants for entry in self._grants[i].ip]))
            self._allowed[grants] = allowed
        return allowed


def _grants(profile: frozenset[str], index: dict[str, set[int]]) -> frozenset[int]:
    return frozenset().union(*(index.get(key, ()) for key in profile))


def _two_nodes(sources: tuple[str, ...], destinations: tuple[str, ...]) -> tuple[str, str] | None:
    """One of each that are not the same node; imagined nodes are always two."""
    for source in sources:
        for destination in destinations:
            if source != destination or source.startswith("any other"):
                return source, destination
    return None


def _holds(wanted: Services, expected: bool, allowed: Allowed) -> bool:
    if expected:
        return all(p in allowed and covers(allowed[p], ports) for p, ports in wanted)
    return not any(p in allowed and (p == "icmp" or overlap(allowed[p], ports)) for p, ports in wanted)
