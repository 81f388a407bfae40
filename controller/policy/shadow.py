"""Which grants give nothing that others do not give already, by the document alone: so for nodes that join later, too.

One grant may be covered by several others together, port by port; calls only by one grant that allows all of them.
"""

from collections.abc import Iterator
from typing import Final

from controller.wire.matching import compile_globs
from controller.wire.netmap import PortRange, Protocol

from .allowances import services
from .document import ANYONE, Document, Grant, McpRules, Reach, Selector
from .ports import covers, merge

__all__ = ["shadowed"]

# Pairs of selectors that are looked at, all in all: a document that has more has other worries, and a check must end.
_MOST_PAIRS: Final = 200_000
_Part = tuple[Grant, Reach]


def shadowed(document: Document, now: float) -> Iterator[tuple[Grant, tuple[Grant, ...]]]:
    """Grants in force at `now` (seconds since the epoch) without effect of their own, each with those that cover it.

    Of two grants that say the same, the later one is without effect; one that is does not cover others.
    """
    search = _Search(document, now)
    yield from search.found()


class _Search:
    def __init__(self, document: Document, now: float) -> None:
        self._groups_of = document.groups_of()
        self._grants = document.at(now).grants
        self._parts: list[_Part] = [(grant, reach) for grant in self._grants for reach in grant.reaches]
        self._from: dict[str, set[int]] = {}
        self._to: dict[tuple[str, str | None], set[int]] = {}
        for i, (grant, reach) in enumerate(self._parts):
            for selector in grant.from_:
                self._from.setdefault(selector.key, set()).add(i)
            for selector in reach.to:
                self._to.setdefault((selector.key, reach.service), set()).add(i)
        self._budget = _MOST_PAIRS
        self._idle: set[str] = set()

    def found(self) -> Iterator[tuple[Grant, tuple[Grant, ...]]]:
        for grant in reversed(self._grants):
            self._budget -= len(grant.from_) * sum(len(reach.to) for reach in grant.reaches)
            if self._budget < 0:
                return
            by = self._covering(grant)
            if by:
                self._idle.add(grant.id)
                yield grant, tuple(sorted(by.values(), key=lambda other: other.place))

    def _covering(self, grant: Grant) -> dict[str, Grant] | None:
        """Those that together give all of what the grant gives; None when something is missing."""
        by: dict[str, Grant] = {}
        for reach in grant.reaches:
            for source in grant.from_:
                for destination in reach.to:
                    found = self._covering_pair(grant, reach, source, destination)
                    if not found:
                        return None
                    by.update((other.id, other) for other in found)
        return by

    def _covering_pair(self, grant: Grant, reach: Reach, source: Selector, destination: Selector) -> list[Grant]:
        leaving = set().union(*(self._from.get(key, ()) for key in self._wider(source)))
        arriving = set().union(*(self._to.get((key, reach.service), ()) for key in self._wider(destination)))
        others = [self._parts[i] for i in sorted(leaving & arriving) if self._counts(self._parts[i][0], grant)]
        if reach.service is not None:
            return next(([other] for other, _ in others if _allows(other.mcp, grant.mcp)), [])
        return _enough(reach, others)

    def _wider(self, selector: Selector) -> tuple[str, ...]:
        """Keys of the selectors that stand for at least the same nodes."""
        return selector.key, ANYONE, *self._groups_of.get(selector.key, ())

    def _counts(self, other: Grant, grant: Grant) -> bool:
        if other.id == grant.id or other.id in self._idle:
            return False
        return other.expires is None or (grant.expires is not None and grant.expires <= other.expires)


def _enough(reach: Reach, others: list[_Part]) -> list[Grant]:
    """The grants among `others` whose ports hold those of `reach`; none when some are missing."""
    given: dict[Protocol, list[PortRange]] = {}
    useful = []
    wanted = services(reach.ip)
    for grant, other in others:
        entries = [(protocol, ports) for protocol, ports in services(other.ip) if protocol in dict(wanted)]
        for protocol, ports in entries:
            given.setdefault(protocol, []).extend(ports)
        if entries:
            useful.append(grant)
            if all(protocol in given and covers(merge(given[protocol]), ports) for protocol, ports in wanted):
                return useful
    return []


def _allows(wide: McpRules | None, narrow: McpRules | None) -> bool:
    """True when surely every call that `narrow` allows is one that `wide` does; patterns are compared as written."""
    if narrow is None:
        return True
    if wide is None:
        return not any((narrow.tools, narrow.prompts, narrow.resources, narrow.methods))
    return (
        all(name in wide.tools or ("*" not in name and compile_globs(wide.tools)(name)) for name in narrow.tools)
        and set(wide.deny_tools) <= set(narrow.deny_tools)
        and _listed(wide.prompts, narrow.prompts)
        and _listed(wide.resources, narrow.resources)
        and _listed(wide.methods, narrow.methods)
        and all(rules in narrow.args for rules in wide.args)
        and all(rate in narrow.limits for rate in wide.limits)
    )


def _listed(wide: tuple[str, ...], narrow: tuple[str, ...]) -> bool:
    return "*" in wide or set(narrow) <= set(wide)
