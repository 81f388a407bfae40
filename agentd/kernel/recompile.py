"""The table for a map, again: what changed in the sets is moved, the rest is kept. Starts nothing.

Who is in which set changes far more often than rules do, and with ten thousand addresses the whole table takes tens of
milliseconds of Python. The result is the one that `compile_ruleset` gives; it remains the definition.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from agentd.model import LinkSettings, Ruleset
from controller.wire.base import Address
from controller.wire.netmap import Mesh, Netmap

from .forwarding import Forwarding, forwarding
from .ruleset import Place, compile_ruleset, elements_of, held_elements, live_rules, places_of, profile_name

__all__ = ["Recompiler"]


@dataclass(frozen=True, slots=True)
class _Frame:
    """What decides everything of a table but its membership elements."""

    link: LinkSettings
    mesh: Mesh
    addresses: tuple[Address, ...]
    places: list[Place]
    relayed: Forwarding


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
        places, relayed = places_of(netmap, live_rules(netmap, now)), forwarding(netmap, link)
        frame = _Frame(link, netmap.mesh, netmap.node.addresses, places, relayed)
        ruleset = None
        if self._last is not None and self._last.frame == frame:
            ruleset = _move(self._last, netmap)
        if ruleset is None:
            ruleset = compile_ruleset(netmap, link, now)
        self._last = _Last(frame, netmap, ruleset)
        return ruleset


def _move(last: _Last, netmap: Netmap) -> Ruleset | None:
    """The last ruleset with the addresses moved that joined or left a set, or that the host holds or no longer does.

    None when that makes or ends a profile.
    """
    elements = {**last.ruleset.elements, **held_elements(netmap, last.frame.places)}
    for place in last.frame.places:
        touched = _touched(last.netmap, netmap, place.sets)
        if not touched:
            continue
        moved = _move_in(place, netmap, touched, last.ruleset)
        if moved is None:
            return None
        elements |= moved
    return replace(last.ruleset, elements=elements)


def _move_in(
    place: Place, netmap: Netmap, touched: Iterable[Address], before: Ruleset
) -> dict[str, dict[str, str]] | None:
    elements = {name: dict(before.elements[name]) for name in place.containers()}
    left: set[str] = set()
    for address in touched:
        named = [name for name in place.sets if address in netmap.sets[name].addresses]
        profile = profile_name(named)
        if named and f"from/{profile}{place.suffix}" not in before.chains:
            return None
        for name, verdict in elements_of(place, profile, address):
            left.add(elements[name].pop(address, verdict))
            if named:
                elements[name][address] = verdict
    # A profile without addresses is not part of the table.
    return elements if all(_leads(elements, verdict) for verdict in left) else None


def _touched(old: Netmap, new: Netmap, sets: Iterable[str]) -> set[Address]:
    touched: set[Address] = set()
    for name in sets:
        before, after = old.sets[name], new.sets[name]
        if before is not after:
            touched |= before.addresses ^ after.addresses
    return touched


def _leads(elements: Mapping[str, Mapping[str, str]], verdict: str) -> bool:
    """True while any address is led to this chain."""
    kind = verdict.removeprefix("jump ").partition("/")[0]
    return any(verdict in keys.values() for name, keys in elements.items() if name.startswith(kind))
