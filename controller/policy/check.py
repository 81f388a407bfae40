"""What a person is told about a policy text before it is put in force: errors, warnings, and its own tests' results.

The only part of the package that looks at the fleet. Not run at start-up: see `parse`.
"""

import ipaddress
import time
from collections.abc import Iterable, Iterator, Sequence

from controller.records import Fleet
from controller.wire.rest import PolicyReport

from .document import Document, Grant, Group, Reach, Selector, Service, Test
from .findings import Findings, PolicyError, suggestion
from .model import Member
from .parse import parse_into
from .population import Population
from .shadow import shadowed
from .trial import Trial

__all__ = ["check"]


def check(text: str, fleet: Fleet, now: float | None = None) -> PolicyReport:
    """Report on `text` as a policy for `fleet`. Never raises for what the text holds.

    `ok` is True when there is no error: every name exists and every test of the document passes. Warnings (selectors
    that match nobody, grants without effect) do not stop a write. `now`: seconds since the epoch, for `expires`.
    """
    findings = Findings()
    try:
        document = parse_into(text, findings)
        findings.raise_errors()
        _Check(document, fleet, time.time() if now is None else now, findings).run()
    except PolicyError as error:
        return PolicyReport(ok=False, findings=error.findings)
    return PolicyReport(
        ok=not findings.has_errors,
        findings=findings.in_order(),
        grants=len(document.grants),
        tests=len(document.tests),
    )


class _Check:
    def __init__(self, document: Document, fleet: Fleet, now: float, findings: Findings) -> None:
        self._document = document
        self._now = now
        self._findings = findings
        # A node that waits for approval or is disabled has a name, and none of its packets pass.
        self._names = {node.name for node in fleet.nodes.values()}
        self._prefixes = tuple(ipaddress.ip_network(prefix) for prefix in (fleet.mesh.prefix4, fleet.mesh.prefix6))
        self._population = Population(
            document,
            (Member(node.name, node.tags, node.addresses) for node in fleet.nodes.values() if node.state == "active"),
        )

    def run(self) -> None:
        for selector in self._selectors():
            self._name(selector)
        self._findings.raise_errors()  # tests over unknown names would only repeat them
        for service in self._document.services.values():
            self._service(service)
        for region in self._document.relays.values():
            if not any(self._population.matching(selector) for selector in region.on):
                message = f"no active node matches 'on': nobody relays in {region.name!r} now"
                self._findings.warning("idle-relay", message, region.place)
        seen: dict[str, Grant] = {}
        for grant in self._document.grants:
            self._grant(grant, seen)
        for grant, by in shadowed(self._document, self._now):
            self._shadowed(grant, by)
        trial = Trial(self._document, self._population, self._now)
        for test in self._document.tests:
            failures = trial.failures(test)
            if failures is None:
                self._findings.warning(
                    "idle-test", "this test speaks about nobody: no such nodes are active", test.place
                )
            for failure in failures or ():
                self._findings.error("test-failed", failure.sentence(), failure.entry.place)

    def _selectors(self) -> Iterator[Selector]:
        groups: Iterable[Group] = self._document.groups.values()
        yield from (member for group in groups for member in group.members)
        yield from (selector for service in self._document.services.values() for selector in service.on)
        yield from (selector for region in self._document.relays.values() for selector in region.on)
        parts: Sequence[Grant | Test] = (*self._document.grants, *self._document.tests)
        yield from (selector for part in parts for selector in (*part.from_, *part.to))

    def _name(self, selector: Selector) -> None:
        known = selector.name in self._names
        if selector.kind == "node" and not known:
            bare = [*self._names, *self._document.hosts, *self._document.groups]
            bare += [service.key for service in self._document.services.values()]
            names = bare if selector.bare else self._names
            near = suggestion(selector.name, names)
            what = "node, host or group" if selector.bare else "node"
            self._findings.error("unknown-node", f"there is no {what} {selector.name!r}{near}", selector.place)
        if selector.kind in ("host", "group") and selector.bare and known:
            self._findings.warning(
                "ambiguous",
                f"{selector.name!r} means the {selector.kind} here, and a node has that name, too:"
                f" write {selector.key} or node:{selector.name}",
                selector.place,
            )

    def _service(self, service: Service) -> None:
        if not any(self._population.matching(selector) for selector in service.on):
            message = f"no active node matches 'on': nobody serves {service.key} now"
            self._findings.warning("idle-service", message, service.place)
        if service.gateway is not None and service.name in self._names:
            message = f"a node is named {service.name!r}, too: its name in the mesh would be the service's"
            self._findings.warning("ambiguous", message, service.place)

    def _grant(self, grant: Grant, seen: dict[str, Grant]) -> None:
        # The same id but for its number: what is granted to whom is the same.
        first = seen.setdefault(grant.id.partition("-")[0], grant)
        if first is not grant:
            self._findings.warning("duplicate-grant", f"line {first.place.line} grants the same", grant.place)
        if grant.expires is not None and grant.expires <= self._now:
            self._findings.warning("expired", "this grant has expired: it allows nothing", grant.place)
        if any(s.kind == "any" for s in grant.from_) and any(s.kind == "any" for s in grant.to):
            self._findings.warning("everyone", "this grant is from every node to every node", grant.place)
        for selector in (*grant.from_, *grant.to):
            if selector.kind == "svc":
                continue  # who serves it was asked of the service itself
            if not self._findings.is_full and not self._population.matching(selector):
                self._findings.warning("empty-selector", self._emptiness(selector), selector.place)
        for side, selectors in (("from", grant.from_), ("to", grant.to)):
            if not any(self._population.matching(selector) for selector in selectors):
                message = f"nobody matches {side!r}: this grant allows nothing now"
                self._findings.warning("unreachable", message, grant.place)
        if grant.mcp is None and any(self._speaks_mcp(reach) for reach in grant.reaches):
            message = "this grant says nothing about calls: it opens the service, and no tool; add mcp: {tools: [...]}"
            self._findings.warning("no-calls", message, grant.place)
        # A gateway judges also what its own host asks of it.
        only = None if any(reach.service for reach in grant.reaches) else self._only(grant.from_)
        if only is not None and only == self._only(grant.to):
            message = f"only {only.name!r} is on both sides, and a node's traffic with itself is not filtered"
            self._findings.warning("unreachable", message, grant.place)

    def _shadowed(self, grant: Grant, by: tuple[Grant, ...]) -> None:
        if any(other.id.partition("-")[0] == grant.id.partition("-")[0] for other in by):
            return  # the same words twice: reported as that
        lines = [str(other.place.line) for other in by[:5]] + (["others"] if len(by) > 5 else [])
        where = f"line {lines[0]} grants" if len(lines) == 1 else f"lines {', '.join(lines[:-1])} and {lines[-1]} grant"
        message = f"this grant gives nothing of its own: {where} all of it already"
        self._findings.warning("shadowed-grant", message, grant.place)

    def _speaks_mcp(self, reach: Reach) -> bool:
        gateway = self._document.services[reach.service].gateway if reach.service is not None else None
        return gateway is not None and gateway.kind == "mcp"

    def _only(self, selectors: tuple[Selector, ...]) -> Member | None:
        """The one node that matches, None when there are none or more."""
        found: set[Member] = set()
        for selector in selectors:
            matching = self._population.matching(selector)
            if len(matching) > 1:
                return None
            found |= matching
        return found.pop() if len(found) == 1 else None

    def _emptiness(self, selector: Selector) -> str:
        if selector.kind == "tag":
            near = suggestion(selector.key, (tag for member in self._population.members for tag in member.tags))
            return f"no active node has {selector.key}{near}"
        if selector.kind == "node":
            return f"the node {selector.name!r} is not active"
        if selector.kind == "host":
            prefix = self._document.hosts[selector.name].prefix
            if not any(prefix.version == mesh.version and prefix.overlaps(mesh) for mesh in self._prefixes):
                within = " and ".join(map(str, self._prefixes))
                return f"no node can match {selector.key}: {prefix} is outside of the mesh, which has {within}"
        if selector.kind == "group" and not self._document.groups[selector.name].members:
            return f"no node can match {selector.key}: it holds users only, and traffic comes from nodes"
        return f"no active node matches {selector.key}"
