"""A node's record as wire values, checked once where it enters the mesh.

One bad record must not break the maps of others: what a host's kernel would refuse (a broken key, an address or key
that another node has) is found here and left out, with the reason.
"""

import ipaddress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from pydantic import ValidationError

from controller.policy.compile import CompiledPolicy, Role
from controller.records import NodeRecord
from controller.wire.base import Address, Prefix
from controller.wire.netmap import Mesh, NodeId, Peer, SelfNode

__all__ = ["ABSENT", "BadRecordError", "ConflictError", "Entry", "Registry", "entry_for", "role_of"]

# RFC 4787 section 4.3 wants NATs to keep a UDP mapping for 120 s, but Linux forgets an unanswered one after 30 s.
KEEPALIVE: Final = 25


class BadRecordError(ValueError):
    """The record cannot be given to a host."""


class ConflictError(BadRecordError):
    """Another node holds something of it; when that is released, the record is good."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A node in the mesh. `peer` is None, and the role empty, for a node that is in nobody's map.

    `peer_keepalive` is the same peer for those who sit behind a NAT.
    """

    node: SelfNode | None
    peer: Peer | None
    peer_keepalive: Peer | None
    role: Role
    behind_nat: bool

    @property
    def addresses(self) -> frozenset[Address]:
        return frozenset(self.peer.addresses) if self.peer is not None else frozenset()

    def with_role(self, role: Role) -> "Entry":
        return Entry(self.node, self.peer, self.peer_keepalive, role, self.behind_nat)

    def isolated(self) -> "Entry":
        """The same node with a map of its own, and in nobody else's."""
        return Entry(self.node, None, None, frozenset(), self.behind_nat)


ABSENT: Final = Entry(None, None, None, frozenset(), behind_nat=False)


def entry_for(record: NodeRecord, mesh: Mesh, policy: CompiledPolicy) -> Entry:
    """The entry of a record. Raises BadRecordError."""
    tags = tuple(sorted(record.tags))
    try:
        node = SelfNode(id=record.id, name=record.name, addresses=record.addresses, tags=tags)
        if record.state != "active":
            return Entry(node, None, None, frozenset(), record.behind_nat)
        peer = Peer(
            id=record.id,
            name=record.name,
            public_key=record.public_key,
            addresses=record.addresses,
            tags=tags,
            kind=record.kind,
            endpoints=record.endpoints,
        )
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        raise BadRecordError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from error
    for address in peer.addresses:
        if not any(ipaddress.ip_address(address) in network for network in _networks(mesh.prefix4, mesh.prefix6)):
            raise BadRecordError(f"the address {address} is outside the mesh ({mesh.prefix4}, {mesh.prefix6})")
    return Entry(node, peer, peer.model_copy(update={"keepalive": KEEPALIVE}), role_of(policy, peer), record.behind_nat)


def role_of(policy: CompiledPolicy, peer: Peer) -> Role:
    """The selectors of the policy that match a node."""
    return policy.role(peer.name, peer.tags, peer.addresses, relayed=peer.kind == "agent")


@lru_cache(maxsize=8)
def _networks(*prefixes: Prefix) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(prefix) for prefix in prefixes)


class Registry:
    """Which node holds which name, key and address: each may have one holder, since policy and routing go by them."""

    def __init__(self) -> None:
        self._holders: dict[str, NodeId] = {}

    def claim(self, node_id: NodeId, peer: Peer) -> None:
        """Raises ConflictError when another node holds something of it; then nothing is claimed."""
        facts = _facts(peer)
        for fact in facts:
            holder = self._holders.get(fact, node_id)
            if holder != node_id:
                raise ConflictError(f"the {fact} belongs to node {holder}")
        self._holders.update(dict.fromkeys(facts, node_id))

    def release(self, peer: Peer) -> None:
        for fact in _facts(peer):
            del self._holders[fact]


def _facts(peer: Peer) -> list[str]:
    return [
        f"name {peer.name}",
        f"public key {peer.public_key}",
        *dict.fromkeys(f"address {address}" for address in peer.addresses),
    ]
