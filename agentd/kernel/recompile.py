"""The table for a map, again: what changed in the sets is moved, the rest is kept. Starts nothing.

Who is in which set changes far more often than rules do, and with ten thousand addresses the whole table takes tens of
milliseconds of Python. The result is the one that `compile_ruleset` gives; it remains the definition.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from agentd.model import LinkSettings, Ruleset
from controller.wire.base import Address
from controller.wire.netmap import Mesh, Netmap, Rule, SelfNode

from .ruleset import compile_ruleset, elements_of, live_rules, named_sets, profile_name

__all__ = ["Recompiler"]


@dataclass(frozen=True, slots=True)
class _Frame:
    """What decides everything of a table but its membership elements."""

    link: LinkSettings
    mesh: Mesh
    node: SelfNode
    rules: list[Rule]
    sets: list[str]


@dataclass(frozen=True, slots=True)
class _Last:
    frame: _Frame
    netmap: Netmap
    ruleset: Ruleset


class Recompiler:
    """`compile_ruleset` that remembers its last result."""

    def __init__(self) -> None:
        self._last: _Last | None = None

    def __call__(self, netmap: Netmap, link: LinkSettings, now: float) -> Ruleset:
        """As `compile_ruleset`, which see."""
        rules = live_rules(netmap, now)
        frame = _Frame(link, netmap.mesh, netmap.node, rules, named_sets(netmap, rules))
        ruleset = None
        if self._last is not None and self._last.frame == frame:
            ruleset = _move(self._last, netmap)
        if ruleset is None:
            ruleset = compile_ruleset(netmap, link, now)
        self._last = _Last(frame, netmap, ruleset)
        return ruleset


def _move(last: _Last, netmap: Netmap) -> Ruleset | None:
    """The last ruleset with the addresses that joined or left a set moved; None when that makes or ends a profile."""
    sets = last.frame.sets
    touched = _touched(last.netmap, netmap, sets)
    if not touched:
        return last.ruleset
    elements = {name: dict(keys) for name, keys in last.ruleset.elements.items() if name in _MEMBERSHIP}
    left: set[str] = set()
    for address in touched:
        named = [name for name in sets if address in netmap.sets[name].addresses]
        profile = profile_name(named)
        if named and f"from/{profile}" not in last.ruleset.chains:
            return None
        for name, verdict in elements_of(profile, address):
            left.add(elements[name].pop(address, verdict))
            if named:
                elements[name][address] = verdict
    if not all(_leads(elements, verdict) for verdict in left):
        return None
    return replace(last.ruleset, elements={**last.ruleset.elements, **elements})


_MEMBERSHIP = frozenset({"from4", "from6", "to4", "to6"})


def _touched(old: Netmap, new: Netmap, sets: Iterable[str]) -> set[Address]:
    touched: set[Address] = set()
    for name in sets:
        before, after = old.sets[name], new.sets[name]
        if before is not after:
            touched |= before.addresses ^ after.addresses
    return touched


def _leads(elements: dict[str, dict[str, str]], verdict: str) -> bool:
    """True while any address is led to this chain: a profile without addresses is not part of the table."""
    kind = verdict.removeprefix("jump ").partition("/")[0]
    return any(verdict in elements[f"{kind}{family}"].values() for family in "46")
