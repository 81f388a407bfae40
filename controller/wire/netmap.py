"""What one host must know: itself, the peers it may exchange packets with, and the rules between them.

`fold` is the only way a netmap changes on a host, and `diff` the only way the controller says what changed;
`fold(old, diff(old, new)) == new` holds for every pair. Deltas state the present value of each object, so folding
one twice, or folding a merged one, gives the same map.
"""

from collections.abc import Iterable
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from .base import Address, Endpoint, Message, NodeName, Prefix, PublicKey, Revision, Tag
from .mcp import McpGrant, Service, ServiceName
from .sets import AddressSet

__all__ = [
    "ALL_PORTS",
    "AddressSet",
    "Delta",
    "Direction",
    "FoldError",
    "Forward",
    "Mesh",
    "Netmap",
    "NodeId",
    "Peer",
    "PortRange",
    "Protocol",
    "Rule",
    "SelfNode",
    "SetChange",
    "diff",
    "fold",
]

NodeId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Protocol = Literal["tcp", "udp", "icmp"]
Direction = Literal["in", "out"]
Port = Annotated[int, Field(ge=0, le=65535)]
PortRange = tuple[Port, Port]
ALL_PORTS: Final[PortRange] = (0, 65535)

T = TypeVar("T")


class Mesh(Message):
    """Facts that all hosts of one mesh share.

    `timeline` names the history that revisions belong to: it changes when the controller is restored from a backup,
    because revisions after that mean something else. `ca` is what clients of its services trust when these answer over
    TLS: the certificate of the mesh's CA (PEM); empty from a controller that did not say.
    """

    id: str
    name: NodeName
    domain: str = "mesh.internal"
    prefix4: Prefix
    prefix6: Prefix
    ca: Annotated[str, Field(max_length=16 * 1024)] = ""
    timeline: Annotated[str, Field(max_length=64)] = ""


class SelfNode(Message):
    """The host that this netmap is for. `held`: the addresses of the services that it is to answer for now."""

    id: NodeId
    name: NodeName
    addresses: tuple[Address, ...]
    held: tuple[Address, ...] = ()
    tags: tuple[Tag, ...] = ()


class Peer(Message):
    """A node that policy lets this host exchange packets with, in either direction.

    `addresses` are its mesh addresses; with those of the services that it holds now, `held`, they are, as /32 and /128,
    its allowed IPs: cryptokey routing makes them its identity.
    `endpoints` are candidates, best first. `keepalive` is in seconds, None for off.
    """

    id: NodeId
    name: NodeName
    public_key: PublicKey
    addresses: tuple[Address, ...]
    held: tuple[Address, ...] = ()
    tags: tuple[Tag, ...] = ()
    kind: Literal["agent", "static"] = "agent"
    endpoints: tuple[Endpoint, ...] = ()
    keepalive: Annotated[int, Field(ge=1, le=65535)] | None = None


class Rule(Message):
    """One allowance, additive. `in`: members of `peers` may open flows to this host's `ports`; `out`: the reverse.

    `ports` are inclusive destination ports of the flow's first packet, sorted and disjoint; empty for ICMP, which has
    none. `expires` is in seconds since the epoch: the host itself ends the rule then. `grant` names the policy's grant.
    `local`, of an `in` rule: names of sets, in which the address that the packet is for must be; empty: it must be one
    of the host's own addresses, not one that it holds for a service.
    """

    id: str
    grant: str
    direction: Direction
    protocol: Protocol
    ports: tuple[PortRange, ...] = ()
    peers: tuple[str, ...]
    local: tuple[str, ...] = ()
    expires: int | None = None


class Forward(Message):
    """What a relay passes on: packets between hosts of the sets `between` and hosts of the sets `and_`, both ways.

    `id` is that of the policy's grant that connects them. Only sealed packets: what is in them is for the two to judge.
    """

    id: str
    between: tuple[str, ...]
    and_: tuple[str, ...]


class Netmap(Message):
    """The whole desired state of one host at one revision.

    `services`: those that this host may serve, whether it holds their addresses now or another host does. `calls`: who
    may make which calls on them. `names`: the services that this host may call, each with its addresses.
    `forwards`: what this host passes on as a relay. The relays of the mesh are the peers in sets named `relay:REGION`.
    """

    revision: Revision
    mesh: Mesh
    node: SelfNode
    peers: dict[str, Peer] = Field(default_factory=dict, description="by node id")
    sets: dict[str, AddressSet] = Field(default_factory=dict, description="by set name")
    rules: dict[str, Rule] = Field(default_factory=dict, description="by rule id")
    services: dict[str, Service] = Field(default_factory=dict, description="by service name")
    calls: dict[str, McpGrant] = Field(default_factory=dict, description="by grant id")
    names: dict[ServiceName, tuple[Address, ...]] = Field(default_factory=dict, description="by service name")
    forwards: dict[str, Forward] = Field(default_factory=dict, description="by grant id")


class SetChange(Message):
    """Element changes of one set. A set that does not exist yet is created; `delete` removes it whole."""

    name: str
    add: frozenset[Address] = frozenset()
    remove: frozenset[Address] = frozenset()
    delete: bool = False


class Delta(Message):
    """From revision `base` to `revision`: the present state of every object that changed between them."""

    base: Revision
    revision: Revision
    mesh: Mesh | None = None
    node: SelfNode | None = None
    peers: tuple[Peer, ...] = ()
    peers_removed: tuple[NodeId, ...] = ()
    sets: tuple[SetChange, ...] = ()
    rules: tuple[Rule, ...] = ()
    rules_removed: tuple[str, ...] = ()
    services: tuple[Service, ...] = ()
    services_removed: tuple[ServiceName, ...] = ()
    calls: tuple[McpGrant, ...] = ()
    calls_removed: tuple[str, ...] = ()
    names: dict[ServiceName, tuple[Address, ...]] = Field(default_factory=dict)
    names_removed: tuple[ServiceName, ...] = ()
    forwards: tuple[Forward, ...] = ()
    forwards_removed: tuple[str, ...] = ()

    def is_empty(self) -> bool:
        """True when folding would change nothing but the revision."""
        return not any(getattr(self, name) for name in _CHANGES)


_CHANGES: Final = tuple(name for name in Delta.model_fields if name not in ("base", "revision"))


class FoldError(Exception):
    """The delta does not continue this map; the receiver asks for a snapshot."""


def fold(netmap: Netmap, delta: Delta) -> Netmap:
    """Return the map after the delta.

    Raises FoldError when the delta starts after the map's revision (something was lost) or ends before it (replayed).
    """
    if not delta.base <= netmap.revision <= delta.revision:
        raise FoldError(
            f"the map is at revision {netmap.revision}, the delta goes from {delta.base} to {delta.revision}"
        )
    return Netmap.model_construct(
        revision=delta.revision,
        mesh=delta.mesh or netmap.mesh,
        node=delta.node or netmap.node,
        peers=_replace(netmap.peers, {p.id: p for p in delta.peers}, delta.peers_removed),
        sets=_fold_sets(netmap.sets, delta.sets),
        rules=_replace(netmap.rules, {r.id: r for r in delta.rules}, delta.rules_removed),
        services=_replace(netmap.services, {s.name: s for s in delta.services}, delta.services_removed),
        calls=_replace(netmap.calls, {c.id: c for c in delta.calls}, delta.calls_removed),
        names=_replace(netmap.names, delta.names, delta.names_removed),
        forwards=_replace(netmap.forwards, {f.id: f for f in delta.forwards}, delta.forwards_removed),
    )


def diff(old: Netmap, new: Netmap) -> Delta:
    """The delta that turns `old` into `new`."""
    names = [*old.sets, *(name for name in new.sets if name not in old.sets)]
    changes = (_diff_set(name, old.sets.get(name), new.sets.get(name)) for name in names)
    return Delta(
        base=old.revision,
        revision=new.revision,
        mesh=new.mesh if new.mesh != old.mesh else None,
        node=new.node if new.node != old.node else None,
        peers=tuple(_changed(old.peers, new.peers).values()),
        peers_removed=_gone(old.peers, new.peers),
        sets=tuple(change for change in changes if change is not None),
        rules=tuple(_changed(old.rules, new.rules).values()),
        rules_removed=_gone(old.rules, new.rules),
        services=tuple(_changed(old.services, new.services).values()),
        services_removed=_gone(old.services, new.services),
        calls=tuple(_changed(old.calls, new.calls).values()),
        calls_removed=_gone(old.calls, new.calls),
        names=_changed(old.names, new.names),
        names_removed=_gone(old.names, new.names),
        forwards=tuple(_changed(old.forwards, new.forwards).values()),
        forwards_removed=_gone(old.forwards, new.forwards),
    )


def _changed(old: dict[str, T], new: dict[str, T]) -> dict[str, T]:
    return {key: value for key, value in new.items() if old.get(key) != value}


def _gone(old: dict[str, T], new: dict[str, T]) -> tuple[str, ...]:
    return tuple(key for key in old if key not in new)


def _diff_set(name: str, old: AddressSet | None, new: AddressSet | None) -> SetChange | None:
    if new is None:
        return SetChange(name=name, delete=True)
    before = old.addresses if old else frozenset()
    if old is not None and before == new.addresses:
        return None
    return SetChange(name=name, add=new.addresses - before, remove=before - new.addresses)


def _fold_sets(old: dict[str, AddressSet], changes: Iterable[SetChange]) -> dict[str, AddressSet]:
    sets = dict(old)
    for change in changes:
        if change.delete:
            sets.pop(change.name, None)
            continue
        before = sets[change.name].addresses if change.name in sets else frozenset()
        sets[change.name] = AddressSet(name=change.name, addresses=(before - change.remove) | change.add)
    return sets


def _replace(old: dict[str, T], changed: dict[str, T], removed: Iterable[str]) -> dict[str, T]:
    gone = set(removed)
    return {key: value for key, value in (old | changed).items() if key not in gone}
