"""The mesh in memory: every node's map, and whom a change concerns.

Pure: no clock, no I/O, no connection. The cost of a change follows the nodes whose maps it touches, because everything
is looked up through two indexes: selector -> nodes, and selector -> the selectors that policy connects it with.
"""

import logging
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Set
from typing import Final

from controller.policy import Document, PolicyError, compile_policy, parse
from controller.policy.temporary import beside
from controller.records import ENDED_KEPT, Change, Fleet, NodeRecord, PolicyRecord, ServiceRecord, TemporaryGrant
from controller.wire.base import Revision
from controller.wire.mcp import GatewayPolicy, Service, ServiceName
from controller.wire.netmap import Delta, Netmap, NodeId
from controller.wire.relays import relay_set

from .dirty import Affected, Dirty, Touched
from .entries import ABSENT, BadRecordError, ConflictError, Entry, Registry, entry_for, role_of
from .index import Index
from .maps import Maps
from .past import Named
from .places import Places, key_of, sets_of
from .recompile import Layout, changes_between, differing

__all__ = ["MeshState"]

_log = logging.getLogger(__name__)
# Changes are published by concurrent requests and may arrive out of order, but never by this many objects.
_REMEMBERED: Final = 10_000
_POLICY: Final = ""  # stands beside node ids, none of which is empty
_GRANT: Final = "grant/"  # before a temporary grant's id; no node id has a slash


class MeshState:
    """Everything hosts are told, at one revision. `now` (seconds since the epoch) decides which grants have ended."""

    def __init__(self, fleet: Fleet, now: float) -> None:
        self.mesh = fleet.mesh
        self.revision: Revision = fleet.revision
        self._loaded: Final = fleet.revision
        self._rules_changed = False  # since then
        self.granted: Revision = fleet.revision  # with this, the policy or a temporary grant changed last, since then
        self._seen: OrderedDict[str, Revision] = OrderedDict()
        self._records: dict[NodeId, NodeRecord] = {}
        self._entries: dict[NodeId, Entry] = {}
        self._left_out: dict[NodeId, BadRecordError] = {}
        self._registry = Registry()
        self._places = Places(fleet.services)
        self.written = _parse(fleet.policy)
        self.policy_revision: Revision = fleet.policy.revision
        self._temporary: dict[str, TemporaryGrant] = dict(fleet.grants)
        self._ended: dict[str, TemporaryGrant] = {}  # lately
        self._unread: Mapping[str, str] = {}
        self.document = self._in_force(now)
        self._policy = compile_policy(self.document.at(now))
        self.next_expiry = self.document.next_expiry(now)
        self._index = self._empty_index()
        self._maps = self._written()
        for node_id, record in fleet.nodes.items():
            self._set(node_id, record, None)
        self._retry(None)

    # Reading

    @property
    def left_out(self) -> Mapping[NodeId, str]:
        """Nodes that are in nobody's map because their record is bad, and why."""
        return {node_id: str(fault) for node_id, fault in self._left_out.items()}

    def record(self, node_id: NodeId) -> NodeRecord | None:
        return self._records.get(node_id)

    @property
    def records(self) -> Iterable[NodeRecord]:
        """Every node, of any state."""
        return self._records.values()

    def temporary(self, grant_id: str) -> TemporaryGrant | None:
        """The temporary grant with this id, while it has not ended."""
        return self._temporary.get(grant_id)

    def idleness(self, grant_id: str) -> str | None:
        """Why a temporary grant allows nothing now, though it has not ended; None when it does allow something."""
        if grant_id in self._unread:
            return f"the policy in force no longer says what it means: {self._unread[grant_id]}"
        grant = next((grant for grant in self.document.grants if grant.id == grant_id), None)
        sides = (("from", grant.from_), ("to", grant.to)) if grant is not None else ()
        for side, selectors in sides:
            if not self._index.members_of(selector.key for selector in selectors):
                return f"nobody matches {side!r} now: {', '.join(selector.key for selector in selectors)}"
        return None

    def find(self, reference: str) -> NodeRecord | None:
        """The node of this name or, when none has it, of this id."""
        named = (record for record in self._records.values() if record.name == reference)
        return next(named, None) or self._records.get(reference)

    def service_names(self) -> Collection[ServiceName]:
        """The gateway services of the policy in force."""
        return self._policy.gateway_services.keys()

    def given_to(self, name: ServiceName) -> NodeId | None:
        """The node that was given the addresses of the service, whether or not it may serve it."""
        place = self._places.get(name)
        return place.holder if place is not None else None

    def service(self, name: ServiceName) -> Service | None:
        """The gateway service of the policy in force, with its addresses and names as hosts get it."""
        return self._maps.service(name)

    def servers(self, name: ServiceName) -> Set[NodeId]:
        """The active hosts that policy lets serve this gateway service."""
        members = self._index.members(key_of(name)) if name in self._policy.gateway_services else ()
        return {node_id for node_id in members if self._records[node_id].kind == "agent"}

    def relays(self) -> dict[NodeId, str]:
        """The active hosts that relay, and the region of each: where there are several, the first by name, as in
        `wire.relays`."""
        found: dict[NodeId, str] = {}
        for region in sorted(self.document.relays, reverse=True):
            found |= dict.fromkeys(self._index.members(relay_set(region)), region)
        return found

    def gateway_policy(self, name: ServiceName) -> GatewayPolicy | None:
        """What the gateways that serve `name` decide by."""
        return self._maps.gateway_policy(name, self.revision)

    def services(self, node_id: NodeId) -> frozenset[str]:
        """The gateway services that policy lets this node serve, by name."""
        return frozenset(self._policy.view(self._entries.get(node_id, ABSENT).role).services)

    def netmap(self, node_id: NodeId) -> Netmap | None:
        """The whole map of a node; None for one that does not exist or cannot be described."""
        return self._maps.netmap(node_id, self.revision)

    def delta(self, node_id: NodeId, dirty: Dirty, base: Revision) -> Delta | None:
        """From `base` to now: the present value of the objects that `dirty` names. None as for `netmap`."""
        return self._maps.delta(node_id, dirty, base, self.revision)

    def last_ended(self, now: float) -> int | None:
        """When a grant of the document last ended by its time."""
        ends = (grant.expires for grant in self.written.grants if grant.expires is not None)
        return max((end for end in ends if end <= now), default=None)

    def named(self, node_id: NodeId, named: Named) -> Dirty:
        """All that may differ in a node's map since these nodes and services changed, and neither it nor the rules."""
        return self._maps.named(node_id, named, self._records, rules_changed=self._rules_changed)

    # Changing

    def apply(self, change: Change, now: float) -> Affected:
        """Apply a change and say whose maps it touches, and where. Older values than those known are ignored."""
        touched = Touched()
        for node_id, record in change.nodes.items():
            if self._is_news(node_id, change.revision):
                self._set(node_id, record, touched)
        self._retry(touched)
        for name, place in change.services.items():
            if self._is_news(key_of(name), change.revision):
                self._set_place(name, place, touched)
        self.revision = max(self.revision, change.revision)
        if self._take_grants(change):
            self.granted = self.revision
            self._recompile(now, touched)
        return touched.affected()

    def expire(self, now: float) -> Affected:
        """End the grants whose time has come. Hosts do so by themselves; this takes the peers left over, too."""
        touched = Touched()
        self._recompile(now, touched)
        return touched.affected()

    def _take_grants(self, change: Change) -> bool:
        """Remember the policy and the temporary grants of a change; False when there are none, or only old ones."""
        is_news = False
        if change.policy is not None and self._is_news(_POLICY, change.revision):
            self.written = _parse(change.policy)
            self.policy_revision = change.policy.revision
            self._rules_changed = True
            is_news = True
        for grant_id, grant in change.grants.items():
            if self._is_news(_GRANT + grant_id, change.revision):
                is_news = True
                self._ended.pop(grant_id, None)
                if grant is None:
                    self._temporary.pop(grant_id, None)
                else:
                    self._temporary[grant_id] = grant
        return is_news

    def _in_force(self, now: float) -> Document:
        """The document with the temporary grants beside its own, without those of them that have ended."""
        known = self._temporary | self._ended
        self._temporary = {key: grant for key, grant in known.items() if now < grant.expires}
        self._ended = {key: grant for key, grant in known.items() if grant.expires <= now < grant.expires + ENDED_KEPT}
        document, self._unread = beside(self.written, self._temporary.values())
        return document

    def _is_news(self, key: str, revision: Revision) -> bool:
        if revision < self._seen.get(key, self._loaded):
            return False
        self._seen[key] = revision
        self._seen.move_to_end(key)
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return True

    def _set(self, node_id: NodeId, record: NodeRecord | None, touched: Touched | None) -> None:
        """Put a record in its place, and note in `touched` whom that concerns; None while nobody has a map yet."""
        old = self._entries.get(node_id, ABSENT)
        if old.peer is not None:
            self._registry.release(old.peer)
        known = self._left_out.pop(node_id, None)
        entry, fault = (ABSENT, None) if record is None else self._admit(record)
        if fault is not None:
            self._left_out[node_id] = fault
            if str(fault) != str(known):
                _log.error("node %s is left out of every map: %s", node_id, fault)
        if touched is not None and entry != old:
            self._touch(node_id, old, entry, touched)
        self._index.remove(node_id, old.role, old.addresses)
        self._index.add(node_id, entry.role, entry.addresses)
        if record is not None:
            self._records[node_id], self._entries[node_id] = record, entry
            return
        self._records.pop(node_id, None)
        self._entries.pop(node_id, None)
        if touched is not None:
            touched.forget(node_id)

    def _set_place(self, name: ServiceName, place: ServiceRecord | None, touched: Touched) -> None:
        """Put a service in its place. It concerns who may call it, who holds or held it, and who may serve it."""
        old = self._places.get(name)
        self._places.put(name, place)
        if name not in self._policy.gateway_services:
            return
        key = key_of(name)
        before = frozenset(old.addresses if old is not None else ())
        after = frozenset(place.addresses if place is not None else ())
        self._index.pin(key, after)
        servers = self._index.members(key)
        holders = {node_id for node_id in servers for found in (old, place) if found and found.holder == node_id}
        if old == place:
            return
        told, callers = Dirty(), Dirty(peers=holders)
        if before != after:
            told.services.add(name)
            callers.names.add(name)
            for dirty in (told, callers):
                dirty.add_elements(key, before ^ after)
            touched.add(servers, told)
        touched.add(holders, Dirty(node=True))
        for counterpart in self._policy.counterparts.get(key, ()):
            touched.add(self._index.members(counterpart), callers)

    def _admit(self, record: NodeRecord) -> tuple[Entry, BadRecordError | None]:
        """The entry that stands for a record; for a bad one, an entry that is in nobody's map, and the fault."""
        entry = ABSENT
        try:
            entry = entry_for(record, self.mesh, self._policy)
            if entry.peer is not None:
                self._registry.claim(record.id, entry.peer)
        except BadRecordError as fault:
            return entry.isolated(), fault
        return entry, None

    def _retry(self, touched: Touched | None) -> None:
        """What was held by another node may be free now."""
        for node_id in [node_id for node_id, fault in self._left_out.items() if isinstance(fault, ConflictError)]:
            self._set(node_id, self._records[node_id], touched)

    def _touch(self, node_id: NodeId, old: Entry, new: Entry, touched: Touched) -> None:
        elements = {
            key: addresses for key, addresses in _element_changes(old, new).items() if not self._index.is_pinned(key)
        }
        self._touch_others(node_id, old, new, elements, touched)
        mine = self._touched_self(node_id, old, new, elements)
        if not mine.is_empty():
            touched.add([node_id], mine)

    def _touch_others(
        self, node_id: NodeId, old: Entry, new: Entry, elements: Mapping[str, frozenset[str]], touched: Touched
    ) -> None:
        """Those whose rules use a set that the node is or was in: they have it as a peer."""
        if old.peer == new.peer and not elements:
            return
        peers: set[NodeId] = set()
        for key in old.role | new.role:
            using = self._index.members_of(self._policy.counterparts[key])
            peers |= using
            if key in elements:
                dirty = Dirty()
                dirty.add_elements(key, elements[key])
                touched.add(using - {node_id}, dirty)
        touched.add(peers - {node_id}, Dirty(peers={node_id}))

    def _touched_self(self, node_id: NodeId, old: Entry, new: Entry, elements: Mapping[str, frozenset[str]]) -> Dirty:
        before, after = self._policy.view(old.role), self._policy.view(new.role)
        held = {self._places.held(node_id, view.services) for view in (before, after)}
        mine = Dirty(node=old.node != new.node or len(held) > 1)
        for key in elements.keys() & sets_of(before) & sets_of(after):
            mine.add_elements(key, elements[key])
        if before is not after:
            mine.rules = set(before.rules.keys() ^ after.rules.keys())
            mine.sets = set(sets_of(before) ^ sets_of(after))
            mine.services = set(before.services.keys() ^ after.services.keys())
            mine.calls = differing(before.calls, after.calls)
            mine.names = set(before.names ^ after.names)
            mine.forwards = differing(before.forwards, after.forwards)
        if before.sets != after.sets or before.names != after.names or old.behind_nat != new.behind_nat:
            seen, sees = self._index.members_of(before.sets), self._index.members_of(after.sets)
            mine.peers = seen | sees if old.behind_nat != new.behind_nat else seen ^ sees
            mine.peers |= self._holders(before.names ^ after.names)
            mine.peers.discard(node_id)
        return mine

    def _recompile(self, now: float, touched: Touched) -> None:
        """Put the document, as of `now`, in force. Looks at every node, but touches only those whose map differs."""
        self.document = self._in_force(now)
        self.next_expiry = self.document.next_expiry(now)
        old = self._layout()
        self._policy = compile_policy(self.document.at(now))
        self._index = self._empty_index()
        self._maps = self._written()
        for node_id, entry in self._entries.items():
            if entry.peer is not None:
                role = role_of(self._policy, entry.peer)
                self._entries[node_id] = entry.with_role(role)
                self._index.add(node_id, role, entry.peer.addresses)
        for node_id, dirty in changes_between(old, self._layout()):
            touched.add([node_id], dirty)

    def _holders(self, names: Iterable[ServiceName]) -> set[NodeId]:
        """The nodes that hold any of these services."""
        return {node_id for name in names for node_id in self._index.members(key_of(name)) & {self.given_to(name)}}

    def _layout(self) -> Layout:
        roles = {node_id: entry.role for node_id, entry in self._entries.items()}
        return Layout(self._policy, self._index, roles, self._places)

    def _written(self) -> Maps:
        return Maps(self.mesh, self._policy, self._index, self._entries, self._places)

    def _empty_index(self) -> Index:
        index = Index()
        for name in self._policy.gateway_services:
            index.pin(key_of(name), self._places.addresses(name))
        return index


def _element_changes(old: Entry, new: Entry) -> dict[str, frozenset[str]]:
    """Of each set that the node is or was in, the addresses that enter or leave it."""
    changes = {}
    for key in old.role | new.role:
        before = old.addresses if key in old.role else frozenset()
        after = new.addresses if key in new.role else frozenset()
        if before != after:
            changes[key] = before ^ after
    return changes


def _parse(policy: PolicyRecord) -> Document:
    try:
        return parse(policy.text)
    except PolicyError:
        # It was accepted once, so an older version must be running. What it cannot read it must not allow.
        _log.exception(
            "the policy of revision %d cannot be read: nothing is allowed until it is replaced", policy.revision
        )
        return Document()
