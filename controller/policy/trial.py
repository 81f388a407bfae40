"""Runs a document's own tests.

A test speaks about every node that its selectors match now, and about one imagined node for each tag, host prefix or
`*`, which has nothing else: so it holds for nodes that join later, too. Nodes that the grants cannot tell apart are
tried once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from controller.wire.calls import Refusal, judge
from controller.wire.mcp import GatewayPolicy
from controller.wire.netmap import AddressSet, Protocol

from .allowances import services
from .compile import mcp_grant
from .document import Allowance, Call, Document, Selector, Test
from .population import Population
from .ports import Ports, covers, overlap

__all__ = ["Failure", "Trial"]

_ANY_OTHER: Final = "any other node"
Services = tuple[tuple[Protocol, Ports], ...]
Allowed = dict[Protocol, Ports]
_Pair = tuple[str, str, frozenset[int]]  # two nodes, and the parts of grants that lead from the one to the other
_CALLER: Final = "caller"
_ADDRESS: Final = "192.0.2.1"  # stands for the caller, whoever it is (RFC 5737)


@dataclass(frozen=True, slots=True)
class Failure:
    """An entry of a test that did not come out as expected, with one pair of nodes that shows it."""

    entry: Allowance | Call
    expected: bool
    source: str
    destination: str
    reason: str = ""

    def sentence(self) -> str:
        got, wanted = ("is denied", "accept") if self.expected else ("passes, at least in part", "deny")
        what = f"{self.entry.text} from {self.source} to {self.destination}"
        return f"test failed: {what} {got}; the test says {wanted}{self.reason}"


@dataclass(frozen=True, slots=True)
class _Kind:
    """Nodes that the grants cannot tell apart on one side: the parts of grants that name them there, and a few of them.

    A gateway service is one, too, whoever serves it: what reaches its addresses is granted to it alone.
    """

    reaches: frozenset[int]
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
            failure = self._failure(entry, expected, pairs)
            if failure is not None:
                failures.append(failure)
        return failures

    def _failure(self, entry: Allowance | Call, expected: bool, pairs: list[_Pair]) -> Failure | None:
        if isinstance(entry, Call):
            judged: dict[frozenset[int], Refusal | None] = {}
            for source, destination, reaches in pairs:
                if reaches not in judged:
                    judged[reaches] = self._refusal(entry, reaches)
                refusal = judged[reaches]
                if (refusal is None) != expected:
                    reason = f": {refusal.message}" if refusal is not None else ""
                    return Failure(entry, expected, source, destination, reason)
            return None
        wanted = services([entry])
        for source, destination, reaches in pairs:
            if not _holds(wanted, expected, self._between(reaches)):
                return Failure(entry, expected, source, destination)
        return None

    def _refusal(self, call: Call, reaches: frozenset[int]) -> Refusal | None:
        """Why the gateway would not let the call pass, as the gateway itself judges it."""
        grants = {}
        service = ""
        for i in sorted(reaches):
            grant, reach = self._reaches[i]
            calls = mcp_grant(grant, (_CALLER,))
            if calls is not None and reach.service is not None:
                service = reach.service
                # A tool that stands alone is meant with whatever arguments the grant wants.
                plain = {"args": ()} if call.arguments is None else {}
                grants[calls.id] = calls.model_copy(update={"expires": None, **plain})
        gateway = self._document.services[service].gateway if service else None
        if gateway is None:
            return Refusal("service", "no grant leads there")
        policy = GatewayPolicy.model_construct(
            revision=0,
            services={service: gateway},
            grants=grants,
            sets={_CALLER: AddressSet(name=_CALLER, addresses=frozenset({_ADDRESS}))},
        )
        method, params = _request(call)
        return judge(policy, _ADDRESS, service, method, params, now=0).refusal

    def _pairs(self, test: Test) -> Iterator[_Pair]:
        destinations = self._kinds("to", test.to)
        for source in self._kinds("from", test.from_):
            for destination in destinations:
                names = _two_nodes(source.names, destination.names)
                if names is not None:
                    yield *names, source.reaches & destination.reaches

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


def _request(call: Call) -> tuple[str, dict[str, Any]]:
    match call.kind:
        case "tool":
            return "tools/call", {"name": call.name, "arguments": dict(call.arguments or {})}
        case "prompt":
            return "prompts/get", {"name": call.name}
        case "resource":
            return "resources/read", {"uri": call.name}
        case "method":
            return call.name, {}


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
