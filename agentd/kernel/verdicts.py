"""What the chains of a kernel do with one packet, by the listing of its tables. Pure, but for the look-ups it is given.

Every way that a packet may take is followed, each with how sure it is: a rule whose condition is open or unread is both
taken and passed by. So a verdict is claimed only where every way ends in it. Not followed: marks (packets are taken
to have none), what a rule changes in a packet, and how fast a limit is reached.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .conditions import Answer, Find, Found, NoValue, Packet, Scope, meets, meets_xt, value_of
from .listing import ChainName, ListedChain, ListedRule, Listing

__all__ = ["Lookup", "Outcome", "Verdict", "outcomes"]

Verdict = Literal["accept", "drop", "divert"]

_STEPS: Final = 50_000  # rules, for one packet in one base chain
_VERDICTS: Final[Mapping[str, Verdict]] = {
    "accept": "accept",
    "drop": "drop",
    "reject": "drop",
    "dnat": "divert",
    "redirect": "divert",
    "tproxy": "divert",
    "snat": "accept",
    "masquerade": "accept",
}
_XT_TARGETS: Final = {name.upper(): name for name in _VERDICTS}


class Lookup:
    """Where elements of named sets come from. The kernel's is in `readback`."""

    def find(self, family: str, table: str, name: str, key: Sequence[object]) -> Found | None:
        """The element of a key, None when there is none. Raises LookupError where that cannot be known."""
        raise LookupError(name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One end of a packet's ways through a base chain: `place` is the chain with the rule, or with the policy.

    `packets`: what the rule's own counter has, of any packets; None without one. `sure` is never Answer.NO.
    """

    verdict: Verdict
    sure: Answer
    place: ChainName
    by_policy: bool = False
    packets: int | None = None


def outcomes(listing: Listing, base: ListedChain, packet: Packet, lookup: Lookup) -> list[Outcome]:
    """All ends of the ways that the packet may take through this base chain; never none."""
    walk = _Walk(listing, packet, lookup)
    through = walk.run(base, Answer.YES)
    if through is not None:
        policy: Verdict = "drop" if base.policy == "drop" else "accept"
        walk.found.append(Outcome(policy, through, base.name, by_policy=True))
    return walk.found


_Step = tuple[str, str]  # a verdict as nft names it, and the chain of jump and goto
_UNKNOWN: Final[_Step] = ("unknown", "")


@dataclass(slots=True)
class _Walk:
    listing: Listing
    packet: Packet
    lookup: Lookup
    found: list[Outcome] = field(default_factory=list)
    steps: int = 0

    def run(self, chain: ListedChain, sure: Answer) -> Answer | None:
        """How surely packets come out at the chain's end; None when none does."""
        out: Answer | None = None
        for rule in chain.rules:
            self.steps += 1
            if self.steps > _STEPS:
                return Answer.UNREAD
            passing: Answer | None = sure
            for step, met, packets in self._steps(chain.name, rule):
                before = len(self.found)
                out, after = self._take(chain.name, step, max(sure, *met), packets, out)
                if max(met) is Answer.YES:
                    passing = after
                elif len(self.found) > before or after is None:
                    # Those that did not meet the conditions: where one is left open, some surely did not.
                    passing = max(sure, min(answer for answer in met if answer is not Answer.YES))
            if passing is None:
                return out
            sure = passing
        return _surer(out, sure)

    def _take(
        self, place: ChainName, step: _Step, level: Answer, packets: int | None, out: Answer | None
    ) -> tuple[Answer | None, Answer | None]:
        """What leaves the chain, and what goes on to the next rule, after this step."""
        verdict, target = step
        if verdict == "return":
            return _surer(out, level), None
        if verdict in {"jump", "goto"}:
            chain = self.listing.chains.get(ChainName(place.family, place.table, target))
            through = self.run(chain, level) if chain is not None else Answer.UNREAD
            return (out, through) if verdict == "jump" else (_surer(out, through), None)
        if verdict in _VERDICTS:
            self.found.append(Outcome(_VERDICTS[verdict], level, place, packets=packets))
            return out, None
        if verdict == "continue":
            return out, level
        # A queue, where another program decides, or an element that could not be looked up: anything may come of it.
        self.found.append(Outcome("accept", Answer.UNREAD, place, packets=packets))
        self.found.append(Outcome("drop", Answer.UNREAD, place, packets=packets))
        return out, Answer.UNREAD

    def _steps(self, place: ChainName, rule: ListedRule) -> Iterator[tuple[_Step, set[Answer], int | None]]:
        """The verdicts that the rule may have for the packet, on which answers, and the counter before them."""
        scope = Scope(self.packet, self._finder(place))
        met, packets = {Answer.YES}, None
        for expression in rule.expressions:
            kind, what = next(iter(expression.items()))
            if kind == "vmap":
                for step, chosen in self._chosen(scope, what):
                    yield step, met | {chosen}, packets
                    if chosen is Answer.YES:
                        return
                continue
            if kind == "counter":
                packets = what.get("packets") if isinstance(what, dict) else None
                continue
            if (verdict := _step(kind, what)) is not None:
                yield verdict, met, packets
                return
            met.add(_condition(scope, rule, kind, what))
            if Answer.NO in met:
                return

    def _chosen(self, scope: Scope, vmap: Mapping[str, Any]) -> Iterator[tuple[_Step, Answer]]:
        data = vmap["data"]
        if isinstance(data, str):
            yield from self._looked_up(scope, value_of(scope.packet, vmap["key"]), data[1:])
            return
        for wanted, verdict in data.get("set", ()):
            answer = meets(scope, {"op": "==", "left": vmap["key"], "right": wanted})
            if answer is not Answer.NO:
                kind, what = next(iter(verdict.items()))
                yield _step(kind, what) or ("continue", ""), answer
                if answer is Answer.YES:
                    return

    def _looked_up(self, scope: Scope, value: object, name: str) -> Iterator[tuple[_Step, Answer]]:
        if value is NoValue.NEVER:
            return
        key = value if isinstance(value, tuple) else (value,)
        found: Found | None = _UNKNOWN
        if all(isinstance(part, str | int) for part in key):
            with suppress(LookupError):
                found = scope.find(name, key)
        if found is not None:
            yield found, Answer.UNREAD if found is _UNKNOWN else Answer.YES

    def _finder(self, place: ChainName) -> Find:
        return lambda name, key: self.lookup.find(place.family, place.table, name, key)


def _step(kind: str, what: Any) -> _Step | None:
    """The verdict that an expression is, if it is one."""
    if kind in {"jump", "goto"}:
        return kind, what["target"]
    if kind in _VERDICTS or kind in {"return", "continue", "queue"}:
        return kind, ""
    if kind == "xt" and isinstance(what, dict) and what.get("type") == "target" and what.get("name") in _XT_TARGETS:
        return _XT_TARGETS[what["name"]], ""
    return None


def _condition(scope: Scope, rule: ListedRule, kind: str, what: Any) -> Answer:
    if kind == "match":
        return meets(scope, what)
    if kind == "limit":
        return Answer.SOMETIMES
    if kind == "xt":
        if isinstance(what, dict) and what.get("type") == "match":
            return meets_xt(scope, what.get("name", ""), rule.text)
        # A target that is no verdict (LOG, MARK, …) lets the packet go on; null is of an nft that does not tell.
        return Answer.YES if isinstance(what, dict) else Answer.UNREAD
    return Answer.YES  # log, mangle, notrack, set and the like


def _surer(one: Answer | None, other: Answer | None) -> Answer | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
