"""Why a flow passes or not: the grants that allow it, by the document, and what each of its two hosts has of them.

The answer comes from the mesh in memory, where the document and the maps are of the same moment, and from the hosts'
kernels, which are asked; a host that does not answer in time is no error. No SQL here.
"""

from datetime import UTC, datetime
from typing import Final

from controller.asking import Questions
from controller.mesh.hub import Hub
from controller.policy.document import Grant
from controller.policy.model import Member, allowing_grants
from controller.policy.ports import parse_ports
from controller.problems import Kind, Refused
from controller.records import NodeRecord
from controller.wire.asking import Answer
from controller.wire.base import Address
from controller.wire.netmap import NodeId, Protocol
from controller.wire.rest import ExplainedGrant, ExplainedHost, Explanation, KernelVerdict
from controller.wire.rules import Flow, allowing

__all__ = ["explain", "explained"]

_FAVOUR: Final = {False: 0, None: 1, True: 2}


async def explain(
    hub: Hub, questions: Questions, *, source: str, destination: str, flow: str, now: datetime
) -> Explanation:
    """May `source` open `flow` (`tcp:443`, `udp:53`, `icmp`) to `destination`? Nodes by name or id.

    `svc:NAME` stands for the service's addresses at the node that holds them now. Raises Refused: NOT_FOUND for a node
    or service that does not exist or that nobody holds, INVALID for a port that does not exist, or one node twice.
    """
    protocol, port = _service(flow)
    name = destination.removeprefix("svc:") if destination.startswith("svc:") else None
    addresses, holder = _held(hub, name) if name is not None else ((), destination)
    one, other = _node(hub, source), _node(hub, holder)
    if one is other:
        raise Refused(Kind.INVALID, f"{one.name!r} is on both sides, and a node's traffic with itself is not filtered")
    revision, document = hub.policy()
    grants: list[Grant] = []
    if one.state == other.state == "active":
        grants = allowing_grants(
            document, _member(one), _member(other), protocol, port, now=now.timestamp(), service=name
        )
    outward = [
        Flow(direction="out", peer=address, protocol=protocol, port=port) for address in addresses or other.addresses
    ]
    inward = [
        Flow(direction="in", peer=address, protocol=protocol, port=port, local=_same_family(address, addresses))
        for address in one.addresses
    ]
    found = Explanation(
        source=_host(hub, one, outward, now),
        destination=_host(hub, other, inward, now),
        flow=flow,
        allowed=bool(grants),
        grants=tuple(explained(hub, grant) for grant in grants),
        policy_revision=revision,
    )
    told = await questions.ask({node.id: flows for node, flows in ((one, outward), (other, inward)) if flows})
    return found.model_copy(
        update={
            "source": _with_kernel(found.source, told.get(one.id), _elsewhere(hub, one)),
            "destination": _with_kernel(found.destination, told.get(other.id), _elsewhere(hub, other)),
        }
    )


def _service(text: str) -> tuple[Protocol, int | None]:
    kind, _, ports = text.partition(":")
    if kind == "icmp":
        return "icmp", None
    try:
        low, _ = parse_ports(ports)
    except ValueError as error:
        raise Refused(Kind.INVALID, f"query.port: {error}") from error
    return "tcp" if kind == "tcp" else "udp", low


def _held(hub: Hub, name: str) -> tuple[tuple[Address, ...], NodeId]:
    """The addresses of a service, and who holds them."""
    service, holder = hub.service(name), hub.given_to(name)
    if service is None:
        raise Refused(
            Kind.NOT_FOUND,
            f"the policy in force has no service {name!r} with addresses of its own: `GET /services` lists them",
        )
    if holder not in hub.servers(name) or holder is None:
        raise Refused(Kind.NOT_FOUND, f"nobody holds svc:{name} now: `wardmesh service show {name}` says why")
    return service.addresses, holder


def _same_family(address: Address, among: tuple[Address, ...]) -> Address | None:
    return next((one for one in among if (":" in one) == (":" in address)), None)


def _node(hub: Hub, reference: str) -> NodeRecord:
    record = hub.find(reference)
    if record is None:
        raise Refused(Kind.NOT_FOUND, f"no node is named {reference!r} or has that id: `GET /nodes` lists them")
    return record


def _member(record: NodeRecord) -> Member:
    return Member(record.name, record.tags, record.addresses)


def _host(hub: Hub, host: NodeRecord, flows: list[Flow], now: datetime) -> ExplainedHost:
    presence, netmap = hub.presence(host.id), hub.netmap(host.id)
    return ExplainedHost(
        name=host.name,
        state=host.state,
        online=presence.online,
        in_force=presence.in_force,
        current=presence.online and not presence.behind,
        allows=netmap is not None and bool(flows) and all(allowing(netmap, flow, now.timestamp()) for flow in flows),
        error=presence.error,
    )


def _with_kernel(host: ExplainedHost, told: Answer | None, elsewhere: KernelVerdict | None) -> ExplainedHost:
    verdict = _verdict(told) if told is not None else elsewhere
    return host if verdict is None else host.model_copy(update={"kernel": verdict})


def _elsewhere(hub: Hub, host: NodeRecord) -> KernelVerdict | None:
    """Who could have asked the host; None when it is connected here, or nowhere."""
    found = None if hub.here(host.id).online else hub.elsewhere.online(host.id)
    if found is None:
        return None
    word, replica = found
    why = f"it is connected to another controller and was not asked: ask {replica.url}"
    return KernelVerdict(passes=None, revision=word.presence.in_force, why=why)


def _verdict(told: Answer) -> KernelVerdict:
    """One verdict of those on each pair of addresses: the least favourable."""
    if told.error is not None or not told.judged:
        return KernelVerdict(passes=None, revision=told.revision, why=told.error or "the host judged nothing")
    worst = min(told.judged, key=lambda judged: _FAVOUR[judged.passes])
    return KernelVerdict(passes=worst.passes, revision=told.revision, grant=worst.grant, why=worst.why)


def explained(hub: Hub, grant: Grant) -> ExplainedGrant:
    """The grant as people find it again."""
    expires = None if grant.expires is None else datetime.fromtimestamp(grant.expires, UTC)
    temporary = hub.temporary_grant(grant.id)
    if temporary is not None:
        return ExplainedGrant(id=grant.id, note=grant.note, expires=expires, actor=temporary.actor)
    return ExplainedGrant(
        id=grant.id, line=grant.place.line, column=grant.place.column, note=grant.note, expires=expires
    )
