"""Who uses the relays of the policy in force, and what they pass on: by what hosts said of themselves, and what the
relays' kernels answer when they are asked. No SQL here.
"""

from collections import defaultdict
from heapq import nsmallest

from controller.asking import Questions
from controller.mesh.hub import Hub
from controller.paths import PathBook
from controller.problems import Kind, Refused
from controller.records import NodeRecord
from controller.wire.asking import Answer
from controller.wire.netcheck import HostNetcheck
from controller.wire.netmap import NodeId
from controller.wire.relay_use import MeshRelay, RelayDetail, Relayed, RelayedPair, RelayUser

__all__ = ["netchecks", "relay", "relays"]


def netchecks(
    hub: Hub, book: PathBook, most: int, *, after: str | None = None, node: NodeId | None = None
) -> list[HostNetcheck]:
    """Active hosts with an agentd, by name: at most so many of those after a name, or `node` alone."""
    found = [
        record
        for record in hub.records()
        if record.kind == "agent"
        and record.state == "active"
        and node in {None, record.id}
        and (after is None or record.name > after)
    ]
    return [_netcheck(hub, book, record) for record in nsmallest(most, found, key=lambda record: record.name)]


def _netcheck(hub: Hub, book: PathBook, record: NodeRecord) -> HostNetcheck:
    if hub.here(record.id).online:
        report = book.netcheck(record.id)
        told = report is not None
        return HostNetcheck(node=record.id, name=record.name, state="reported" if told else "silent", netcheck=report)
    online = hub.presence(record.id).online
    return HostNetcheck(node=record.id, name=record.name, state="elsewhere" if online else "offline")


def relays(hub: Hub, book: PathBook) -> list[MeshRelay]:
    """Those of the policy in force, by name."""
    users = _users(hub, book)
    found = (_relay(hub, node, region, users[node]) for node, region in hub.relays().items())
    return sorted((one for one in found if one is not None), key=lambda one: one.name)


async def relay(hub: Hub, book: PathBook, questions: Questions, reference: str) -> RelayDetail:
    """One of them, by name or id, whose kernel is asked. Raises Refused (NOT_FOUND)."""
    record, regions = hub.find(reference), hub.relays()
    users = _users(hub, book)
    found = None
    if record is not None and record.id in regions:
        found = _relay(hub, record.id, regions[record.id], users[record.id])
    if record is None or found is None:
        raise Refused(Kind.NOT_FOUND, f"no node that relays is named {reference!r} or has that id: see `GET /relays`")
    answers = await questions.ask({record.id: ()}, counters=True, relayed=True)
    return _detail(hub, found, users[record.id], answers.get(record.id))


def _relay(hub: Hub, node: NodeId, region: str, users: list[RelayUser]) -> MeshRelay | None:
    record = hub.record(node)
    if record is None:
        return None
    spares = sum(user.spare for user in users)
    return MeshRelay(
        id=node,
        name=record.name,
        region=region,
        online=hub.presence(node).online,
        homes=len(users) - spares,
        spares=spares,
    )


def _detail(hub: Hub, found: MeshRelay, users: list[RelayUser], answer: Answer | None) -> RelayDetail:
    told = answer.relayed if answer is not None else None
    denied = answer.denied if answer is not None and told is not None else None
    relayed = told or Relayed()
    return RelayDetail(
        **dict(found),
        users=tuple(sorted(users, key=lambda user: (user.spare, user.name))),
        answered=told is not None,
        pairs=tuple(
            RelayedPair(
                source=_name(hub, pair.source),
                destination=_name(hub, pair.destination),
                packets=pair.packets,
                bytes=pair.bytes,
            )
            for pair in relayed.pairs
        ),
        pair_count=relayed.count,
        rate=relayed.rate if told is not None else None,
        limited=denied.get("relay", 0) if denied is not None else None,
        refused=denied.get("forward", 0) if denied is not None else None,
        problem=relayed.problem or (answer.error if answer is not None else None),
    )


def _name(hub: Hub, node: NodeId) -> str:
    record = hub.record(node)
    return record.name if record is not None else node


def _users(hub: Hub, book: PathBook) -> defaultdict[NodeId, list[RelayUser]]:
    """By relay, the hosts that chose it."""
    found: defaultdict[NodeId, list[RelayUser]] = defaultdict(list)
    for record in hub.records():
        for place, (node, rtt) in enumerate(book.relays(record.id) if hub.here(record.id).online else ()):
            found[node].append(RelayUser(name=record.name, spare=place > 0, rtt=rtt))
    return found
