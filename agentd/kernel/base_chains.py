"""What every table of ours has, whatever the rules are: the hooks, and what becomes of a packet that no rule allows.

Knows the maps by name and not what is in them; that is `ruleset`'s.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from agentd.model import Chain, Container, LinkSettings
from controller.wire.netmap import Direction, Netmap
from controller.wire.stun import COOKIE

from .forwarding import TO_RELAY

__all__ = ["BASE_CONTAINERS", "LOG_GROUP", "LOG_PREFIX", "base_chains", "judged"]

LOG_GROUP: Final = 51820  # NFLOG group that denied packets go to
LOG_PREFIX: Final = "wardmesh denied "  # and the direction
_LOG: Final = f"log group {LOG_GROUP} prefix"
_ERRORS4: Final = "icmp type { destination-unreachable, time-exceeded, parameter-problem }"
_ERRORS6: Final = "icmpv6 type { destination-unreachable, packet-too-big, time-exceeded, parameter-problem }"

BASE_CONTAINERS: Final[Mapping[str, Container]] = {
    f"held.{direction}{family}": Container("map", f"type ipv{family}_addr : verdict")
    for direction in ("in", "out")
    for family in "46"
} | {
    f"logged{family}": Container("set", f"type ipv{family}_addr ; size 4096 ; flags dynamic,timeout ; timeout 1m")
    for family in "46"
}


def base_chains(netmap: Netmap, link: LinkSettings, *, relays: bool = False) -> dict[str, Chain]:
    """The chains that are in every table, with the hooks among them. `relays`: this host forwards for others."""
    name, mesh = f'"{link.name}"', netmap.mesh
    own4 = sorted(address for address in netmap.node.addresses if ":" not in address)
    own6 = sorted(address for address in netmap.node.addresses if ":" in address)
    return _probes(link) | {
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
                *_own("daddr", own4, own6, "held/in"),
                *judged("in"),
            ),
        ),
        "output": Chain(
            hook="type filter hook output priority filter ; policy accept",
            rules=(
                f"oifname != {name} goto elsewhere",
                *_own("saddr", own4, own6, "held/out"),
                *judged("out"),
            ),
        ),
        # For no address of the host's own: for one that it holds for a service, or for none that it may have.
        "held/in": Chain(("ip daddr vmap @held.in4", "ip6 daddr vmap @held.in6", "goto deny/in")),
        "held/out": Chain(("ip saddr vmap @held.out4", "ip6 saddr vmap @held.out6", "goto deny/out")),
        "forward": Chain(
            hook="type filter hook forward priority filter ; policy accept",
            rules=(
                *((f"iifname {name} oifname {name} goto {TO_RELAY}",) if relays else ()),
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


def _probes(link: LinkSettings) -> dict[str, Chain]:
    """agentd's STUN leaves from WireGuard's port and comes in by it, so that NATs and firewalls see one flow.

    Written into the packets without a state of its own: before connection tracking sees what leaves, and after all
    other tables have judged what arrives, for all of them the port is WireGuard's. No message of WireGuard's is taken
    for STUN: theirs begin with 01 to 04 and three zeros, and have no cookie (RFC 8489 section 5) but by chance.
    """
    if not link.probe_port:
        return {}
    cookie = f"@th,96,32 {COOKIE:#x}"  # bits from where the UDP header begins
    return {
        "probes/out": Chain(
            hook="type filter hook output priority raw - 10 ; policy accept",
            rules=(f"udp sport {link.probe_port} {cookie} udp sport set {link.listen_port}",),
        ),
        "probes/in": Chain(
            hook="type filter hook input priority filter + 300 ; policy accept",
            rules=(
                # The cookie first: it turns WireGuard's own packets away for less than a look-up among types.
                f"udp dport {link.listen_port} {cookie} @th,64,16 {{ 0x0001, 0x0101 }} udp dport set {link.probe_port}",
            ),
        ),
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


def judged(direction: Direction, suffix: str = "") -> tuple[str, ...]:
    """How a packet of the link is judged that is known to be for, or from, the addresses that `suffix` stands for."""
    field, kind = ("saddr", "from") if direction == "in" else ("daddr", "to")
    return (
        f"ip {field} vmap @{kind}4{suffix}",
        # A chain of extension headers, SCTP, GRE or another tunnel is no TCP or UDP, whatever bytes come where the
        # ports would be. IPv4 has no such chain; there the protocol is part of the look-up.
        f"ip6 nexthdr {{ tcp, udp, icmpv6 }} ip6 {field} vmap @{kind}6{suffix}",
        f"ct state related {_ERRORS4} accept",
        f"ct state related {_ERRORS6} accept",
        f"goto deny/{direction}",
    )


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
