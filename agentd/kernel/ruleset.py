"""From a map to our nftables table, as data. Pure: starts nothing, and takes the time from the caller.

How a packet on the mesh link is judged, each one, not only the first of a flow:

    peer's address --(map from4/from6, to4/to6)--> the chain of its profile
    direction, protocol, port --(the profile's maps in/… and out/…)--> the chain of a grant: count, accept
    anything that falls through: count, log at a limited rate, drop

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

__all__ = [
    "LOG_GROUP",
    "LOG_PREFIX",
    "compile_ruleset",
    "elements_of",
    "identifier",
    "live_rules",
    "named_sets",
    "profile_name",
]

LOG_GROUP: Final = 51820  # NFLOG group that denied packets go to
LOG_PREFIX: Final = "wardmesh denied "  # and the direction
_LOG: Final = f"log group {LOG_GROUP} prefix"
_LONGEST: Final = 120  # kernel names have 255 bytes; two of ours and a prefix must fit where names are joined
_PLAIN: Final = re.compile(r"[a-z0-9-]")
_SINGLE_PORTS: Final = Container("map", "type inet_proto . inet_service : verdict")
_PORT_RANGES: Final = Container("map", "type inet_service : verdict ; flags interval")
_ERRORS4: Final = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
_ERRORS6: Final = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"


def compile_ruleset(netmap: Netmap, link: LinkSettings, now: float) -> Ruleset:
    """The table for this map. Rules whose `expires` is not after `now` (seconds since the epoch) are left out."""
    rules = live_rules(netmap, now)
    profiles = _profiles(netmap, rules)
    chains = _base_chains(netmap, link)
    containers = dict(_CONTAINERS)
    elements: dict[str, dict[str, str]] = {name: {} for name in ("from4", "from6", "to4", "to6")}
    for profile in profiles:
        chains |= profile.chains()
        for name, (container, keys) in profile.maps().items():
            containers[name], elements[name] = container, keys
        for address in profile.addresses:
            for name, verdict in elements_of(profile.name, address):
                elements[name][address] = verdict
    used = {grant for profile in profiles for grant in profile.grants()}
    chains |= {grant.chain: grant.definition() for grant in used}
    counters = {"denied/in", "denied/out", "denied/forward", "denied/spoofed", "denied/leaked"}
    return Ruleset(
        table=link.table,
        counters=frozenset(counters | {grant.counter for grant in used}),
        containers=containers,
        chains=chains,
        elements=elements,
    )


def live_rules(netmap: Netmap, now: float) -> list[Rule]:
    """The rules that have not ended, the one that counts a packet before the others that would allow it, too."""
    return sorted(
        (rule for rule in netmap.rules.values() if rule.expires is None or now < rule.expires), key=_preference
    )


def named_sets(netmap: Netmap, rules: Iterable[Rule]) -> list[str]:
    """The sets that the rules name and the map has: what profiles are made of."""
    return sorted({name for rule in rules for name in rule.peers if name in netmap.sets})


def elements_of(profile: str, address: Address) -> tuple[tuple[str, str], tuple[str, str]]:
    """Which maps lead an address to its profile, and their verdicts: arriving, leaving."""
    family = "6" if ":" in address else "4"
    return (f"from{family}", f"jump from/{profile}"), (f"to{family}", f"jump to/{profile}")


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
    addresses: tuple[Address, ...]
    ports: Mapping[tuple[Direction, Protocol], tuple[tuple[PortRange, _Grant], ...]]
    icmp: Mapping[Direction, _Grant]

    def name_of(self, kind: str) -> str:
        return f"{kind}/{self.name}"

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


def _profiles(netmap: Netmap, rules: list[Rule]) -> list[_Profile]:
    order = named_sets(netmap, rules)
    membership: dict[Address, int] = {}  # address -> bit mask over `order`
    for bit, name in enumerate(order):
        for address in netmap.sets[name].addresses:
            membership[address] = membership.get(address, 0) | 1 << bit
    members: dict[int, list[Address]] = {}
    for address, mask in membership.items():
        members.setdefault(mask, []).append(address)
    return [
        _profile([name for bit, name in enumerate(order) if mask >> bit & 1], addresses, rules)
        for mask, addresses in members.items()
    ]


def profile_name(sets: list[str]) -> str:
    """The name of the combination of these sets, which are sorted."""
    name = "/".join(identifier(one) for one in sets)
    if len(name) > _LONGEST:
        return f"{len(sets)}-sets_x{hashlib.sha256(chr(0).join(sets).encode()).hexdigest()[:32]}"
    return name


def _profile(sets: list[str], addresses: list[Address], rules: list[Rule]) -> _Profile:
    mine = [rule for rule in rules if not set(sets).isdisjoint(rule.peers)]
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
    return _Profile(name=profile_name(sets), addresses=tuple(addresses), ports=ports, icmp=icmp)


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


# --- what every table has ---------------------------------------------------------------------------------------------

_CONTAINERS: Final[Mapping[str, Container]] = {
    f"{direction}{family}": Container("map", f"type ipv{family}_addr : verdict")
    for direction in ("from", "to")
    for family in "46"
} | {
    f"logged{family}": Container("set", f"type ipv{family}_addr ; size 4096 ; flags dynamic,timeout ; timeout 1m")
    for family in "46"
}


def _base_chains(netmap: Netmap, link: LinkSettings) -> dict[str, Chain]:
    name, mesh = f'"{link.name}"', netmap.mesh
    own4 = sorted(address for address in netmap.node.addresses if ":" not in address)
    own6 = sorted(address for address in netmap.node.addresses if ":" in address)
    return {
        # A mesh address on any other link, as source or as destination, is somebody who has not been through the
        # tunnel. Before connection tracking and before any other table can rewrite it.
        "arriving": Chain(
            hook="type filter hook prerouting priority raw - 10 ; policy accept",
            rules=(
                f"iifname {name} return",
                'iifname "lo" return',
                *(f"{part} goto deny/spoofed" for part in _mesh("saddr", mesh.prefix4, mesh.prefix6)),
                *(f"{part} goto deny/spoofed" for part in _mesh("daddr", mesh.prefix4, mesh.prefix6)),
            ),
        ),
        "input": Chain(
            hook="type filter hook input priority filter ; policy accept",
            rules=(
                f"iifname != {name} return",
                *_own("daddr", own4, own6, "deny/in"),
                *_judge_all("saddr", "from"),
                f"ct state related {_ERRORS4} accept",
                f"ct state related {_ERRORS6} accept",
                "goto deny/in",
            ),
        ),
        "output": Chain(
            hook="type filter hook output priority filter ; policy accept",
            rules=(
                f"oifname != {name} goto elsewhere",
                *_own("saddr", own4, own6, "deny/out"),
                *_judge_all("daddr", "to"),
                f"ct state related {_ERRORS4} accept",
                f"ct state related {_ERRORS6} accept",
                "goto deny/out",
            ),
        ),
        "forward": Chain(
            hook="type filter hook forward priority filter ; policy accept",
            rules=(
                f"iifname {name} goto deny/forward",
                f"oifname {name} goto deny/forward",
                "goto elsewhere",
            ),
        ),
        # While the link is away, the default route must not carry the mesh's packets in clear. In output and forward,
        # which together see every packet that leaves, and not in postrouting: one hook less for each packet.
        "elsewhere": Chain(
            rules=(
                'oifname "lo" return',
                *(f'{part} counter name "denied/leaked" drop' for part in _mesh("daddr", mesh.prefix4, mesh.prefix6)),
            ),
        ),
        "deny/in": _deny("in", "saddr"),
        "deny/out": _deny("out", "daddr", "ip daddr 224.0.0.0/4 drop", "ip6 daddr ff00::/8 drop"),
        "deny/forward": _deny("forward", "saddr"),
        "deny/spoofed": _deny("spoofed", "saddr"),
    }


def _mesh(field: str, prefix4: str, prefix6: str) -> tuple[str, str]:
    return f"ip {field} {prefix4}", f"ip6 {field} {prefix6}"


def _own(field: str, own4: list[str], own6: list[str], otherwise: str) -> Iterable[str]:
    for family, word, own in (("ipv4", "ip", own4), ("ipv6", "ip6", own6)):
        if own:
            # A comparison where one will do: a look-up in a set of one costs several times as much.
            expected = own[0] if len(own) == 1 else f"{{ {', '.join(own)} }}"
            yield f"{word} {field} != {expected} goto {otherwise}"
        else:
            yield f"meta nfproto {family} goto {otherwise}"


def _judge_all(field: str, direction: str) -> Iterable[str]:
    yield f"ip {field} vmap @{direction}4"
    # A chain of extension headers, SCTP, GRE or another tunnel is no TCP or UDP, whatever bytes come where the ports
    # would be. IPv4 has no such chain; there the protocol is part of the look-up.
    yield f"ip6 nexthdr {{ tcp, udp, icmpv6 }} ip6 {field} vmap @{direction}6"


def _deny(name: str, field: str, *before: str) -> Chain:
    limit = "limit rate 5/second burst 10 packets"
    prefix = f'"{LOG_PREFIX}{name}"'
    return Chain(
        rules=(
            *before,
            f"update @logged4 {{ ip {field} {limit} }} {_LOG} {prefix}",
            f"update @logged6 {{ ip6 {field} {limit} }} {_LOG} {prefix}",
            f'counter name "denied/{name}" drop',
        )
    )
