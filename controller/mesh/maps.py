"""What each host is told: its whole map, or the present value of the objects that differ. Pure.

Reads the mesh in memory and changes nothing of it; which objects differ is for the state and the log to say.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from controller.policy.compile import CompiledPolicy, View
from controller.records import NodeRecord
from controller.wire.base import Revision
from controller.wire.mcp import GatewayPolicy, Service, ServiceName
from controller.wire.netmap import Delta, Mesh, Netmap, NodeId, Peer, SelfNode, SetChange

from .dirty import Dirty, merged
from .entries import ABSENT, Entry
from .index import Index
from .past import Named
from .places import Places, key_of, sets_of

__all__ = ["Maps"]


@dataclass(frozen=True, slots=True)
class Maps:
    """Written from a policy and from who and which service is where in it, as they are when asked."""

    mesh: Mesh
    policy: CompiledPolicy
    index: Index
    entries: Mapping[NodeId, Entry]
    places: Places

    def service(self, name: ServiceName) -> Service | None:
        """The gateway service of the policy in force, with its addresses and names as hosts get it."""
        declared = self.policy.gateway_services.get(name)
        return None if declared is None else self._placed(declared)

    def gateway_policy(self, name: ServiceName, revision: Revision) -> GatewayPolicy | None:
        """What the gateways that serve `name` decide by."""
        service = self.service(name)
        if service is None:
            return None
        view = self.policy.view(frozenset({key_of(name)}))
        sets = {key for grant in view.calls.values() for key in grant.peers}
        return GatewayPolicy.model_construct(
            revision=revision,
            services={name: service},
            grants=dict(view.calls),
            sets={key: self.index.address_set(key) for key in sorted(sets)},
        )

    def netmap(self, node_id: NodeId, revision: Revision) -> Netmap | None:
        """The whole map of a node; None for one that does not exist or cannot be described."""
        entry = self.entries.get(node_id, ABSENT)
        if entry.node is None:
            return None
        view = self.policy.view(entry.role)
        others = self.index.members_of(view.sets) - {node_id}
        peers = {other: peer for other in sorted(others) if (peer := self._peer(entry, view, other)) is not None}
        return Netmap.model_construct(
            revision=revision,
            mesh=self.mesh,
            node=self._self(node_id, entry.node, view),
            peers=peers,
            sets={name: self.index.address_set(name) for name in sorted(sets_of(view))},
            rules=dict(view.rules),
            services={name: self._placed(service) for name, service in view.services.items()},
            calls=dict(view.calls),
            names={name: found for name in sorted(view.names) if (found := self.places.addresses(name))},
            forwards=dict(view.forwards),
        )

    def delta(self, node_id: NodeId, dirty: Dirty, base: Revision, revision: Revision) -> Delta | None:
        """From `base` to `revision`, now: the present value of the objects that `dirty` names. None as for `netmap`."""
        entry = self.entries.get(node_id, ABSENT)
        if entry.node is None:
            return None
        view = self.policy.view(entry.role)
        visible = {
            other: self._peer(entry, view, other) if self._sees(view.sets, other) else None
            for other in sorted(dirty.peers - {node_id})
        }
        names = {name: found for name in sorted(dirty.names & view.names) if (found := self.places.addresses(name))}
        return Delta.model_construct(
            base=base,
            revision=revision,
            mesh=None,
            node=self._self(node_id, entry.node, view) if dirty.node else None,
            peers=tuple(peer for peer in visible.values() if peer is not None),
            peers_removed=tuple(other for other, peer in visible.items() if peer is None),
            sets=tuple(self._set_changes(dirty, sets_of(view))),
            rules=tuple(view.rules[rule] for rule in sorted(dirty.rules) if rule in view.rules),
            rules_removed=tuple(rule for rule in sorted(dirty.rules) if rule not in view.rules),
            services=tuple(
                self._placed(view.services[name]) for name in sorted(dirty.services) if name in view.services
            ),
            services_removed=tuple(name for name in sorted(dirty.services) if name not in view.services),
            calls=tuple(view.calls[grant] for grant in sorted(dirty.calls) if grant in view.calls),
            calls_removed=tuple(grant for grant in sorted(dirty.calls) if grant not in view.calls),
            names=names,
            names_removed=tuple(name for name in sorted(dirty.names) if name not in names),
            forwards=tuple(view.forwards[grant] for grant in sorted(dirty.forwards) if grant in view.forwards),
            forwards_removed=tuple(grant for grant in sorted(dirty.forwards) if grant not in view.forwards),
        )

    def named(
        self, node_id: NodeId, named: Named, records: Mapping[NodeId, NodeRecord], *, rules_changed: bool
    ) -> Dirty:
        """All that may differ in a node's map since these nodes and services changed, and neither it nor the rules.

        A node that is gone has left no address to name: the sets that it may have been in are stated whole. Where
        the rules have changed since (`rules_changed`), what the services were to this node is not known any more: what
        it holds and sees held is stated whole, too.
        """
        view = self.policy.view(self.entries.get(node_id, ABSENT).role)
        used = sets_of(view)
        unknown = bool(named.services) and rules_changed
        holders = used if unknown else {key_of(name) for name in named.services & view.names}
        dirty = Dirty(
            node=unknown or not named.services.isdisjoint(view.services),
            peers=set(named.nodes) | self.index.members_of(holders),
            sets={key_of(name) for name in named.services},
            services=named.services & view.services.keys(),
            names=set(named.services & view.names),
        )
        for other in named.nodes:
            record = records.get(other)
            if record is None:
                return merged([dirty, Dirty(sets=set(used))])
            for key in used:
                dirty.add_elements(key, record.addresses)
        return dirty

    def _sees(self, sets: frozenset[str], other: NodeId) -> bool:
        return not sets.isdisjoint(self.entries.get(other, ABSENT).role)

    def _peer(self, receiver: Entry, view: View, other: NodeId) -> Peer | None:
        """Of the addresses that it holds for services, a receiver is told those of services that it may call."""
        entry = self.entries[other]
        peer = entry.peer_keepalive if receiver.behind_nat else entry.peer
        held = self.places.held(other, self.policy.view(entry.role).services, view.names)
        return peer.model_copy(update={"held": held}) if peer is not None and held else peer

    def _self(self, node_id: NodeId, node: SelfNode, view: View) -> SelfNode:
        held = self.places.held(node_id, view.services)
        return node.model_copy(update={"held": held}) if held else node

    def _placed(self, service: Service) -> Service:
        names = (f"{service.name}.{self.mesh.domain}", service.name)
        return service.model_copy(update={"addresses": self.places.addresses(service.name), "names": names})

    def _set_changes(self, dirty: Dirty, used: frozenset[str]) -> list[SetChange]:
        make = SetChange.model_construct
        changes = []
        for name in sorted(dirty.sets):
            # Deleted first, even when it is in use: a set that was out of use and came back may still be on the host.
            changes.append(make(name=name, add=frozenset(), remove=frozenset(), delete=True))
            if name in used:
                addresses = self.index.address_set(name).addresses
                changes.append(make(name=name, add=addresses, remove=frozenset(), delete=False))
        for name in sorted((dirty.elements.keys() & used) - dirty.sets):
            present = frozenset(a for a in dirty.elements[name] if self.index.has(name, a))
            changes.append(make(name=name, add=present, remove=frozenset(dirty.elements[name]) - present, delete=False))
        return changes
