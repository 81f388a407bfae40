"""From a map to our nftables table, as data. Pure: starts nothing, and takes the time from the caller.

How a packet on the mesh link is judged, each one, not only the first of a flow:

    peer's address --(map from4/from6, to4/to6)--> the chain of its profile
    direction, protocol, port --(the profile's maps in/… and out/…)--> the chain of a grant: count, accept
    anything that falls through: count, log at a limited rate, drop

This is for the host's own addresses. An address that it holds for a service leads, by the maps held.in and held.out, to
maps and chains of that service's own, which are alike and whose names end in `_at_` and the service; only rules that
name the service are in them. A service that comes or goes is an element, as its place is there either way.

A profile is the combination of sets that an address is in, so that every address is in exactly one, and the two
look-ups cost the same with ten peers or ten thousand. With the address first, N addresses and R rules take N + R
elements; with the port first, every port's map would repeat every address. Who joins or leaves a set is one element.
"""

import hashlib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from agentd.model import Chain, Container, LinkSettings, Ruleset
from controller.wire.base import Address
from controller.wire.netmap import Direction, Netmap, PortRange, Protocol, Rule

from .base_chains import BASE_CONTAINERS, base_chains, judged
from .forwarding import TO_RELAY, forwarding, relayed_places

__all__ = [
    "Place",
    "compile_ruleset",
    "elements_of",
    "held_elements",
    "identifier",
    "live_rules",
    "places_of",
    "profile_name",
]

_LONGEST: Final = 120  # kernel names have 255 bytes; two of ours and a prefix must fit where names are joined
_PLAIN: Final = re.compile(r"[a-z0-9-]")
_SINGLE_PORTS: Final = Container("map", "type inet_proto . inet_service : verdict")
_PORT_RANGES: Final = Container("map", "type inet_service : verdict ; flags interval")


def compile_ruleset(netmap: Netmap, link: LinkSettings, now: float) -> Ruleset:
    """The table for this map. Rules whose `expires` is not after `now` (seconds since the epoch) are left out."""
    places = places_of(netmap, live_rules(netmap, now))
    relayed = forwarding(netmap, link)
    chains = {**base_chains(netmap, link, relays=TO_RELAY in relayed.chains), **relayed.chains}
    containers = {**BASE_CONTAINERS, **relayed.containers}
    elements = held_elements(netmap, places) | {name: dict(keys) for name, keys in relayed.elements.items()}
    used: set[_Grant] = set()
    for place in places:
        chains |= place.chains()
        containers |= place.containers()
        elements |= {name: {} for name in place.containers()}
        for profile in _profiles(netmap, place):
            chains |= profile.chains()
            for name, (container, keys) in profile.maps().items():
                containers[name], elements[name] = container, keys
            for address in profile.addresses:
                for name, verdict in elements_of(place, profile.name, address):
                    elements[name][address] = verdict
            used.update(profile.grants())
    chains |= {grant.chain: grant.definition() for grant in used}
    counters = {"denied/in", "denied/out", "denied/forward", "denied/spoofed", "denied/leaked"}
    return Ruleset(
        table=link.table,
        counters=frozenset(counters | {grant.counter for grant in used} | relayed.counters),
        containers=containers,
        chains=chains,
        elements=elements,
    )


def live_rules(netmap: Netmap, now: float) -> list[Rule]:
    """The rules that have not ended, the one that counts a packet before the others that would allow it, too."""
    return sorted(
        (rule for rule in netmap.rules.values() if rule.expires is None or now < rule.expires), key=_preference
    )


def _preference(rule: Rule) -> tuple[float, str]:
    # Where several rules allow the same, the one that lasts longest counts the packets, so that nothing changes hands
    # when the others end.
    return (-(math.inf if rule.expires is None else rule.expires), rule.id)


def identifier(name: str) -> str:
    """An nft name for one of ours; different names give different identifiers.

    `:` becomes `.`, any other byte outside a-z, 0-9 and `-` becomes `_` and two hex digits; what is too long is cut
    and ends in `_x` and its SHA-256, which no escape can look like. No `/` remains, so names can be joined with it.
    """
    text = "".join(
        character
        if _PLAIN.fullmatch(character)
        else "."
        if character == ":"
        else "".join(f"_{byte:02x}" for byte in character.encode())
        for character in name
    )
    if len(text) <= _LONGEST:
        return text
    return f"{text[:40]}_x{hashlib.sha256(name.encode()).hexdigest()[:32]}"


# --- places -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """What rules are for: the host's own addresses, or those of a service (of several, where they share addresses).

    `addresses` are the service's, held now or not, so that a service that moves is an element of held.in and held.out;
    () for the host's own. `sets` are those of peers that the rules name and the map has. `suffix` ends the name of
    every map and chain of this place; `_at_` is part of no identifier, where `_` begins an escape.
    """

    suffix: str
    addresses: tuple[Address, ...]
    rules: tuple[Rule, ...]
    sets: tuple[str, ...]

    def chains(self) -> dict[str, Chain]:
        """Where packets are judged that are for this place, and from it. For the own addresses the hooks do it."""
        if not self.suffix:
            return {}
        return {
            f"input{self.suffix}": Chain(judged("in", self.suffix)),
            f"output{self.suffix}": Chain(judged("out", self.suffix)),
        }

    def containers(self) -> dict[str, Container]:
        """The maps that lead peers to their profiles."""
        return {
            f"{direction}{family}{self.suffix}": Container("map", f"type ipv{family}_addr : verdict")
            for direction in ("from", "to")
            for family in "46"
        }


def places_of(netmap: Netmap, rules: Iterable[Rule]) -> list[Place]:
    """The host's own place first, then the services'. Nothing depends on which addresses the host holds now."""
    rules = list(rules)
    found = [_place(netmap, "", (), [rule for rule in rules if not rule.local])]
    services = _combinations(netmap, {name for rule in rules for name in rule.local})
    for sets, addresses in services.items():
        meant = [rule for rule in rules if not set(sets).isdisjoint(rule.local)]
        found.append(_place(netmap, f"_at_{profile_name(list(sets))}", addresses, meant))
    return found


def _place(netmap: Netmap, suffix: str, addresses: Iterable[Address], rules: list[Rule]) -> Place:
    sets = sorted({name for rule in rules for name in rule.peers if name in netmap.sets})
    return Place(suffix, tuple(sorted(addresses)), tuple(rules), tuple(sets))


def held_elements(netmap: Netmap, places: Iterable[Place]) -> dict[str, dict[str, str]]:
    """What leads packets for and from the addresses that the host holds now to their service's place.

    Its own places behind relays are such addresses, too.
    """
    found: dict[str, dict[str, str]] = {f"held.{way}{family}": {} for way in ("in", "out") for family in "46"}
    found |= relayed_places(netmap)
    for place in places:
        for address in place.addresses:
            if address in netmap.node.held:
                family = "6" if ":" in address else "4"
                found[f"held.in{family}"][address] = f"goto input{place.suffix}"
                found[f"held.out{family}"][address] = f"goto output{place.suffix}"
    return found


def elements_of(place: Place, profile: str, address: Address) -> tuple[tuple[str, str], tuple[str, str]]:
    """Which maps lead an address to its profile, and their verdicts: arriving, leaving."""
    family, suffix = "6" if ":" in address else "4", place.suffix
    return (
        (f"from{family}{suffix}", f"jump from/{profile}{suffix}"),
        (f"to{family}{suffix}", f"jump to/{profile}{suffix}"),
    )


# --- grants -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Grant:
    """Where an allowed packet ends. The kernel itself compares its clock with the grant's end, for every packet."""

    name: str
    expires: int | None

    @property
    def counter(self) -> str:
        return f"grant/{identifier(self.name)}"

    @property
    def chain(self) -> str:
        return self.counter if self.expires is None else f"{self.counter}/until.{self.expires}"

    def definition(self) -> Chain:
        # An integer is seconds since the epoch; a date would be read in the time zone of the nft process.
        limit = "" if self.expires is None else f"meta time < {self.expires} "
        return Chain(rules=(f'{limit}counter name "{self.counter}" accept',))


# --- profiles ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Profile:
    """What the addresses of one combination of sets may do. Ranges are sorted and disjoint, ICMP has none."""

    name: str
    suffix: str  # the place's
    addresses: tuple[Address, ...]
    ports: Mapping[tuple[Direction, Protocol], tuple[tuple[PortRange, _Grant], ...]]
    icmp: Mapping[Direction, _Grant]

    def name_of(self, kind: str) -> str:
        return f"{kind}/{self.name}{self.suffix}"

    def grants(self) -> Iterable[_Grant]:
        yield from self.icmp.values()
        for ranges in self.ports.values():
            yield from (grant for _range, grant in ranges)

    def maps(self) -> dict[str, tuple[Container, dict[str, str]]]:
        """Map name -> (declaration, elements). Single ports are in a hash map, ranges in an interval map."""
        found: dict[str, tuple[Container, dict[str, str]]] = {}
        for (direction, protocol), ranges in self.ports.items():
            for (low, high), grant in ranges:
                if low == high:
                    name, key = self.name_of(direction), f"{protocol} . {low}"
                    container = _SINGLE_PORTS
                else:
                    name, key = self.name_of(f"{direction}.{protocol}"), f"{low}-{high}"
                    container = _PORT_RANGES
                found.setdefault(name, (container, {}))[1][key] = f"goto {grant.chain}"
        return found

    def chains(self) -> dict[str, Chain]:
        """Packets from these addresses, and packets to them.

        A packet in a flow's original direction is judged by its destination port, a reply by its source port, and by
        the same rules: the one that let the flow begin. Without connection tracking neither matches.
        """
        opened, answered = "ct direction original", "ct direction reply ct state established"
        return {
            self.name_of("from"): Chain(
                (*self._judge("in", opened, "dport", "request"), *self._judge("out", answered, "sport", "reply"))
            ),
            self.name_of("to"): Chain(
                (*self._judge("out", opened, "dport", "request"), *self._judge("in", answered, "sport", "reply"))
            ),
        }

    def _judge(self, direction: Direction, condition: str, port: str, echo: str) -> Iterable[str]:
        maps = self.maps()
        if (name := self.name_of(direction)) in maps:
            yield f"{condition} meta l4proto . th {port} vmap @{name}"
        for protocol in ("tcp", "udp"):
            if (name := self.name_of(f"{direction}.{protocol}")) in maps:
                yield f"{condition} {protocol} {port} vmap @{name}"
        if (grant := self.icmp.get(direction)) is not None:
            yield f"{condition} icmp type echo-{echo} goto {grant.chain}"
            yield f"{condition} icmpv6 type echo-{echo} goto {grant.chain}"


def _profiles(netmap: Netmap, place: Place) -> list[_Profile]:
    combinations = _combinations(netmap, place.sets)
    return [_profile(list(sets), addresses, place) for sets, addresses in combinations.items()]


def _combinations(netmap: Netmap, names: Iterable[str]) -> dict[tuple[str, ...], list[Address]]:
    """The addresses that are in any of these sets of the map, by the sorted names of all that they are in."""
    order = sorted(name for name in names if name in netmap.sets)
    membership: dict[Address, int] = {}  # address -> bit mask over `order`
    for bit, name in enumerate(order):
        for address in netmap.sets[name].addresses:
            membership[address] = membership.get(address, 0) | 1 << bit
    members: dict[int, list[Address]] = {}
    for address, mask in membership.items():
        members.setdefault(mask, []).append(address)
    return {
        tuple(name for bit, name in enumerate(order) if mask >> bit & 1): addresses
        for mask, addresses in members.items()
    }


def profile_name(sets: list[str]) -> str:
    """The name of the combination of these sets, which are sorted."""
    name = "/".join(identifier(one) for one in sets)
    if len(name) > _LONGEST:
        return f"{len(sets)}-sets_x{hashlib.sha256(chr(0).join(sets).encode()).hexdigest()[:32]}"
    return name


def _profile(sets: list[str], addresses: list[Address], place: Place) -> _Profile:
    mine = [rule for rule in place.rules if not set(sets).isdisjoint(rule.peers)]
    ports: dict[tuple[Direction, Protocol], tuple[tuple[PortRange, _Grant], ...]] = {}
    icmp: dict[Direction, _Grant] = {}
    directions: tuple[Direction, ...] = ("in", "out")
    protocols: tuple[Protocol, ...] = ("tcp", "udp")
    for direction in directions:
        for protocol in protocols:
            chosen = _assign([rule for rule in mine if (rule.direction, rule.protocol) == (direction, protocol)])
            if chosen:
                ports[direction, protocol] = chosen
        for rule in mine:
            if rule.direction == direction and rule.protocol == "icmp":
                icmp.setdefault(direction, _Grant(rule.grant, rule.expires))
    return _Profile(profile_name(sets), place.suffix, tuple(addresses), ports, icmp)


def _assign(rules: list[Rule]) -> tuple[tuple[PortRange, _Grant], ...]:
    """Give each port that any of the rules names to the first rule that names it, as disjoint ranges."""
    edges = sorted({edge for rule in rules for low, high in rule.ports for edge in (low, high + 1)})
    found: list[tuple[PortRange, _Grant]] = []
    for low, after in itertools.pairwise(edges):
        rule = next((rule for rule in rules if any(a <= low <= b for a, b in rule.ports)), None)
        if rule is None:
            continue
        grant = _Grant(rule.grant, rule.expires)
        if found and found[-1][1] == grant and found[-1][0][1] == low - 1:
            found[-1] = ((found[-1][0][0], after - 1), grant)
        else:
            found.append(((low, after - 1), grant))
    return tuple(found)
