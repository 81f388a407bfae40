"""Nodes: what may happen to one after it has joined, and what its host reports of itself.

Who hears of a change is not known here: the store announces every commit.
"""

import ipaddress
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from controller.admission import MAX_ENDPOINTS, check_name_free, check_public_key_free, summary
from controller.audit import Action
from controller.mesh.hub import Hub, Presence
from controller.problems import Kind, Refused
from controller.store.store import Mutation, Seen, Store
from controller.store.values import NodeFilter, StoredNode
from controller.together import Together
from controller.wire.base import Address, Endpoint, NodeName, Tag, format_endpoint, split_endpoint
from controller.wire.netmap import NodeId
from controller.wire.rest import Node, NodePatch, NodeState
from controller.wire.stream import HostReport

__all__ = ["PRESENCE_STEP", "Nodes"]

# What an admin may make of a node's state, and what the audit calls it. Nothing returns to pending.
_TRANSITIONS: Final[dict[tuple[NodeState, NodeState], Action]] = {
    ("pending", "active"): Action.NODE_APPROVE,
    ("pending", "disabled"): Action.NODE_DISABLE,
    ("active", "disabled"): Action.NODE_DISABLE,
    ("disabled", "active"): Action.NODE_ENABLE,
}
PRESENCE_STEP: Final = timedelta(minutes=15)  # how coarsely the database knows when a node was last seen


class Nodes:
    """The domain of nodes."""

    def __init__(self, store: Store, hub: Hub) -> None:
        self._store = store
        self._hub = hub
        self._noted: dict[NodeId, datetime] = {}
        self._together = Together(self._with_ids)

    async def get(self, node_id: NodeId) -> Node:
        """One node. Raises Refused (NOT_FOUND)."""
        return self.describe(await self.stored(node_id))

    async def stored(self, node_id: NodeId) -> StoredNode:
        """One node with what is not shown. Raises Refused (NOT_FOUND)."""
        async with self._store.read() as tables:
            node = await tables.nodes.get(node_id)
        if node is None:
            raise _missing(node_id)
        return node

    async def page(self, which: NodeFilter, *, after: NodeName | None, limit: int) -> list[Node]:
        """At most `limit` nodes, by name."""
        async with self._store.read() as tables:
            nodes = await tables.nodes.page(which, after=after, limit=limit)
        return [self.describe(node) for node in nodes]

    async def update(
        self,
        actor: str,
        node_id: NodeId,
        patch: NodePatch,
        expected: Collection[int] | None = None,
        *,
        check_tags: Callable[[Set[Tag]], None] = lambda _tags: None,
    ) -> Node:
        """Rename, tag, approve, enable, disable, or move a static peer's endpoints; absent fields stay.

        `expected`: the revisions that the caller may have seen, None for any. `check_tags` raises Refused for tags that
        the caller may not give or take away. Raises Refused.
        """
        async with self._store.mutation(actor, Action.NODE_UPDATE, f"node:{node_id}") as tx:
            node = await self._expect(tx, node_id, expected)
            if patch.tags is not None:
                check_tags(frozenset(patch.tags) ^ node.tags)
            changed, actions = await self._apply(tx, node, patch)
            if not actions:
                tx.discard()
                return self.describe(node)
            if len(actions) == 1:
                tx.entry = replace(tx.entry, action=actions[0])
            saved = await tx.nodes.save(changed)
            before, after = summary(node), summary(saved)
            fields = [name for name in before if before[name] != after[name]]
            tx.record(old={name: before[name] for name in fields}, new={name: after[name] for name in fields})
        return self.describe(saved)

    async def delete(self, actor: str, node_id: NodeId, expected: Collection[int] | None = None) -> None:
        """Remove the node at an admin's wish. Its certificate is worth nothing from then on. Raises Refused."""
        await self._remove(actor, Action.NODE_DELETE, node_id, expected)

    async def leave(self, node_id: NodeId) -> None:
        """Remove the node at its host's own wish. Raises Refused (NOT_FOUND)."""
        await self._remove(f"node:{node_id}", Action.NODE_LEAVE, node_id, None)

    async def report(self, node_id: NodeId, report: HostReport, observed_address: str) -> None:
        """Record what a host says of itself, and where the controller sees it: `observed_address`, without port.

        Raises Refused (NODE_REMOVED, PUBLIC_KEY_IN_USE).
        """
        node = await self._together.get(node_id)
        if node is None:
            raise _removed(node_id)
        if self._reported(node, report, observed_address) == node:
            return
        action = Action.NODE_REPORT if report.public_key == node.public_key else Action.NODE_ROTATE
        async with self._store.mutation(f"node:{node_id}", action, f"node:{node_id}") as tx:
            node = await tx.nodes.get(node_id)
            if node is None:
                raise _removed(node_id)
            changed = self._reported(node, report, observed_address)
            if changed == node:
                tx.discard()
                return
            if changed.public_key != node.public_key:
                await check_public_key_free(tx, changed.public_key, besides=node_id)
            await tx.nodes.save(changed)
            tx.record(old=_where(node), new=_where(changed))

    async def note_presence(self, now: datetime) -> None:
        """Write down when nodes were last seen: now, if connected. Times that have moved by less than a step wait."""
        known = [record.id for record in self._hub.records() if record.kind == "agent"]
        seen: list[Seen] = []
        for node_id in known:
            presence = self._hub.presence(node_id)
            last_seen = now if presence.online else presence.last_seen
            noted = self._noted.get(node_id)
            if last_seen and (noted is None or last_seen - noted >= PRESENCE_STEP):
                seen.append((node_id, last_seen, presence.agent_version, presence.backend))
        if seen:
            await self._store.note_presence(seen)
        self._noted = {node_id: self._noted[node_id] for node_id in known if node_id in self._noted}
        self._noted.update({node_id: last_seen for node_id, last_seen, *_ in seen})

    async def expire(self, *, now: datetime, since: datetime, after: timedelta) -> list[NodeId]:
        """Remove ephemeral nodes that stayed away for longer than `after`; return them.

        Absence counts from `since`, the controller's own start, at the earliest: while it was away, so was everybody.
        """
        if all(self._hub.presence(record.id).online for record in self._hub.records() if record.ephemeral):
            return []  # mostly, and then without asking the database
        async with self._store.read() as tables:
            candidates = await tables.nodes.ephemeral()
        expired = []
        for node in candidates:
            presence = self._hub.presence(node.id)
            last = max(filter(None, (presence.last_seen, node.last_seen, node.created, since)))
            if not presence.online and now - last > after:
                await self._remove("system", Action.NODE_EXPIRE, node.id, None)
                expired.append(node.id)
        return expired

    def describe(self, node: StoredNode) -> Node:
        """The node as the API shows it: what is decided, and how the host is now."""
        presence = self._hub.presence(node.id)
        return Node(
            id=node.id,
            name=node.name,
            kind=node.kind,
            state=node.state,
            tags=tuple(sorted(node.tags)),
            addresses=node.addresses,
            public_key=node.public_key,
            endpoints=node.endpoints,
            ephemeral=node.ephemeral,
            online=presence.online,
            behind=presence.online and presence.behind,
            lag=presence.lag(self._hub.clock()),
            in_force=presence.in_force,
            error=presence.error,
            backend=presence.backend or node.backend,
            agent_version=presence.agent_version or node.agent_version,
            created=node.created,
            last_seen=_latest(presence, node),
            revision=node.revision,
        )

    async def _apply(self, tx: Mutation, node: StoredNode, patch: NodePatch) -> tuple[StoredNode, list[Action]]:
        actions = []
        changed = node
        if patch.name is not None and patch.name != node.name:
            await check_name_free(tx, patch.name, besides=node.id)
            changed = replace(changed, name=patch.name)
            actions.append(Action.NODE_RENAME)
        if patch.tags is not None and frozenset(patch.tags) != node.tags:
            changed = replace(changed, tags=frozenset(patch.tags))
            actions.append(Action.NODE_TAG)
        if patch.state is not None and patch.state != node.state:
            changed = replace(changed, state=patch.state)
            actions.append(_TRANSITIONS[node.state, patch.state])
        if patch.endpoints is not None and patch.endpoints != node.reported:
            if node.kind != "static":
                raise Refused(
                    Kind.NOT_EDITABLE,
                    f"the endpoints of {node.name!r} are its agentd's to report: only a static peer's can be set",
                )
            changed = replace(changed, reported=patch.endpoints)
            actions.append(Action.NODE_UPDATE)
        return changed, actions

    async def _remove(self, actor: str, action: Action, node_id: NodeId, expected: Collection[int] | None) -> None:
        async with self._store.mutation(actor, action, f"node:{node_id}") as tx:
            node = await self._expect(tx, node_id, expected)
            await tx.nodes.remove(node_id)
            await tx.addresses.release(node.number, tx.now)
            tx.record(old=summary(node))

    async def _expect(self, tx: Mutation, node_id: NodeId, expected: Collection[int] | None) -> StoredNode:
        node = await tx.nodes.get(node_id)
        if node is None:
            raise _missing(node_id)
        if expected is not None and node.revision not in expected:
            raise Refused(
                Kind.PRECONDITION_FAILED,
                f"the node {node.name!r} is at revision {node.revision} by now: get it again and repeat the change",
            )
        return node

    async def _with_ids(self, ids: Sequence[NodeId]) -> Mapping[NodeId, StoredNode]:
        async with self._store.read() as tables:
            return {node.id: node for node in await tables.nodes.with_ids(ids)}

    def _reported(self, node: StoredNode, report: HostReport, observed_address: str) -> StoredNode:
        observed = _observed(observed_address, report, self._store.plan.contains)
        addresses = {split_endpoint(endpoint)[0] for endpoint in report.endpoints}
        # With what STUN says of an address, the port need not be guessed.
        known = {split_endpoint(endpoint)[0] for endpoint in report.reflexive}
        behind_nat = observed is not None and split_endpoint(observed)[0] not in addresses
        return replace(
            node,
            public_key=report.public_key,
            reported=(
                *(*report.reflexive, *report.endpoints)[: MAX_ENDPOINTS - len(report.relayed)],
                *report.relayed,
            ),
            observed=None if observed is not None and split_endpoint(observed)[0] in known else observed,
            behind_nat=behind_nat or bool(report.reflexive),
        )


def _observed(address: str, report: HostReport, in_mesh: Callable[[Address], bool]) -> Endpoint | None:
    """Where the host would be reached if nothing translated its port; None when its address says nothing to peers."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped  # an IPv4 client at a socket that listens on [::]
    # The controller's own machine, its own link, or the tunnel itself.
    if parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified or in_mesh(str(parsed)):
        return None
    return format_endpoint(str(parsed), report.listen_port)


def _latest(presence: Presence, node: StoredNode) -> datetime | None:
    return max(filter(None, (presence.last_seen, node.last_seen)), default=None)


def _where(node: StoredNode) -> dict[str, object]:
    return {"public_key": node.public_key, "endpoints": list(node.endpoints), "behind_nat": node.behind_nat}


def _missing(node_id: NodeId) -> Refused:
    return Refused(Kind.NOT_FOUND, f"there is no node {node_id!r}: `wardmesh node list` shows those that exist")


def _removed(node_id: NodeId) -> Refused:
    return Refused(Kind.NODE_REMOVED, f"the node {node_id} was removed from the mesh: join again")
