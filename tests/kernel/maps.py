"""Maps for tests, built in a line: members by number, rules by their ports. Pure."""

import base64
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from controller.wire.netmap import (
    ALL_PORTS,
    AddressSet,
    Direction,
    Forward,
    Mesh,
    Netmap,
    Peer,
    Protocol,
    Rule,
    SelfNode,
)
from controller.wire.relays import relay_set

__all__ = ["MESH", "Member", "allow", "everything", "netmap", "public_key", "with_relays"]

MESH: Final = Mesh(id="m1", name="test", prefix4="100.64.0.0/16", prefix6="fd77:7761:7264::/48")


def public_key(private: bytes) -> str:
    return base64.b64encode(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()).decode()


@dataclass(frozen=True)
class Member:
    """A member of the mesh as maps name it. Number n has 100.64.0.n and fd77:7761:7264::n.

    `held` are the addresses of the services that it holds.
    """

    number: int
    private_key: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    endpoints: tuple[str, ...] = ()
    keepalive: int | None = None
    address: str = ""
    address6: str = ""
    held: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "address", self.address or f"100.64.{self.number // 256}.{self.number % 256}")
        object.__setattr__(self, "address6", self.address6 or f"fd77:7761:7264::{self.number:x}")

    @property
    def name(self) -> str:
        return f"n{self.number}"

    @property
    def public_key(self) -> str:
        return public_key(self.private_key)

    def peer(self) -> Peer:
        return Peer(
            id=self.name,
            name=self.name,
            public_key=self.public_key,
            addresses=(self.address, self.address6),
            held=self.held,
            endpoints=self.endpoints,
            keepalive=self.keepalive,
        )

    def own_set(self) -> AddressSet:
        return AddressSet(name=f"node:{self.name}", addresses=frozenset({self.address, self.address6}))


def allow(
    direction: Direction,
    protocol: Protocol,
    *ports: int | tuple[int, int],
    peers: Iterable[str] = ("all",),
    grant: str | None = None,
    expires: int | None = None,
    local: Iterable[str] = (),
) -> Rule:
    """One rule; without ports (and not for ICMP) all ports. `local`: for the addresses in these sets."""
    ranges = tuple(sorted((port, port) if isinstance(port, int) else port for port in ports))
    if not ranges and protocol != "icmp":
        ranges = (ALL_PORTS,)
    name = grant or f"{direction}-{protocol}"
    peers, local = tuple(peers), tuple(local)
    return Rule(
        id=f"{name}/{direction}/{protocol}/{'+'.join(map(str, ranges))}/{'+'.join(peers)}/{'+'.join(local)}",
        grant=name,
        direction=direction,
        protocol=protocol,
        ports=ranges,
        peers=peers,
        local=local,
        expires=expires,
    )


def everything() -> tuple[Rule, ...]:
    """Rules that allow all that rules can allow, both ways."""
    return tuple(allow(direction, protocol) for direction in ("in", "out") for protocol in ("tcp", "udp", "icmp"))


def netmap(own: Member, *others: Member, rules: Iterable[Rule] | None = None, revision: int = 1) -> Netmap:
    """The map of `own` with these peers, each in a set of its own and all in the set `all`."""
    sets = {f"node:{other.name}": other.own_set() for other in others}
    members = frozenset(address for one in sets.values() for address in one.addresses)
    return Netmap(
        revision=revision,
        mesh=MESH,
        node=SelfNode(id=own.name, name=own.name, addresses=(own.address, own.address6), held=own.held),
        peers={other.name: other.peer() for other in others},
        sets=sets | {"all": AddressSet(name="all", addresses=members)},
        rules={rule.id: rule for rule in (everything() if rules is None else rules)},
    )


def with_relays(wanted: Netmap, *relays: Member, between: Iterable[tuple[Member, Member]] = ()) -> Netmap:
    """The map with these relays, which no rule mentions; they forward for these pairs, if the map is one of theirs."""
    region = AddressSet(
        name=relay_set("here"), addresses=frozenset(a for relay in relays for a in (relay.address, relay.address6))
    )
    pairs = list(between)
    sets = {one.own_set().name: one.own_set() for pair in pairs for one in pair} | {region.name: region}
    forwards = {
        f"{one.name}-{other.name}": Forward(
            id=f"{one.name}-{other.name}", between=(one.own_set().name,), and_=(other.own_set().name,)
        )
        for one, other in pairs
    }
    return wanted.model_copy(
        update={
            "peers": wanted.peers | {relay.name: relay.peer() for relay in relays if relay.name != wanted.node.id},
            "sets": wanted.sets | sets,
            "forwards": forwards,
        }
    )
