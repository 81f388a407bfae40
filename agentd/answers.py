"""What the daemon answers to each request of the local API.

Reads the daemon's parts; changes nothing but by calling one of them.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import assert_never

from controller.wire.asking import MOST_COUNTED, Ask
from controller.wire.asking import Answer as Told
from controller.wire.netmap import Netmap, Peer, SelfNode
from controller.wire.relay_use import Relayed

from .apply import Applier
from .certify import certify
from .config import Config
from .control import Control
from .denied import DeniedLog
from .denied_report import denial
from .errors import AgentError, StateError
from .facts import OwnAddresses, relay_problem
from .gateway_messages import (
    Certified,
    CertifyRequest,
    GatewayRequest,
    GatewayStatus,
    Listening,
    ListenRequest,
    RecordsRequest,
    ServingReport,
)
from .hidden import notice, shown
from .host import agent_version, endpoints
from .local_api import (
    Answer,
    ControllerStatus,
    Denied,
    DeniedRequest,
    Diff,
    DiffRequest,
    HidingChain,
    Identity,
    LeaveRequest,
    Left,
    Peers,
    PeersRequest,
    PeerStatus,
    Request,
    Rotated,
    RotateKeyRequest,
    Status,
    StatusRequest,
    WhoisRequest,
)
from .local_server import Handed, Subscription
from .model import Counted, KernelError, Observed
from .naming import Naming
from .netcheck import netcheck
from .netmap import live_rules, whois
from .path_answers import paths, ping
from .path_messages import NetcheckRequest, PathsRequest, PingRequest
from .probing import Prober
from .reconcile import Reconciler
from .records import RecordsPost
from .relayed import relayed
from .renew import due
from .serving import Serving
from .session import Phase
from .state import NodeFile, StateDir
from .telling import Telling
from .tunnel_key import TunnelKey

__all__ = ["Parts", "answer", "peers_now", "rotate", "tell"]


@dataclass(frozen=True, slots=True)
class Parts:
    """The running daemon, as far as questions go."""

    config: Config
    state: StateDir
    node: NodeFile
    kernel: Reconciler
    applier: Applier
    control: Control
    telling: Telling
    key: TunnelKey
    own: OwnAddresses
    prober: Prober
    denied: DeniedLog
    records: RecordsPost
    serving: Serving
    naming: Naming
    notices: tuple[str, ...]
    started: datetime
    leave: Callable[[bool], Awaitable[Left]]  # takes `force`


async def answer(parts: Parts, request: Request) -> Answer | Handed | Subscription:
    """Answer one request. Raises AgentError."""
    if isinstance(request, GatewayRequest):
        return parts.serving.follow(request.worker)
    if isinstance(request, ListenRequest):
        return Handed(Listening(), parts.serving.listen(request))
    if isinstance(request, CertifyRequest):
        parts.serving.check_served(request.service)
        signed = await asyncio.to_thread(certify, parts.state, parts.node, request.service, request.csr)
        return Certified(certificate=signed)
    if isinstance(request, ServingReport):
        raise AgentError("serving is for the connection that asked for the gateway's policy")
    if isinstance(request, NetcheckRequest):
        candidates = endpoints(parts.config, parts.own.now, parts.node.mesh)
        return netcheck(parts.prober, parts.applier.in_force, candidates, parts.config.listen_port)
    return await _answer(parts, request)


async def _answer(
    parts: Parts,
    request: StatusRequest
    | PeersRequest
    | WhoisRequest
    | DiffRequest
    | DeniedRequest
    | PathsRequest
    | PingRequest
    | RecordsRequest
    | RotateKeyRequest
    | LeaveRequest,
) -> Answer:
    try:
        match request:
            case StatusRequest():
                return await _status(parts)
            case PeersRequest() | PathsRequest() | PingRequest():
                return await _about_peers(parts, request)
            case WhoisRequest():
                return _identity(parts, request.address)
            case DiffRequest():
                return await _diff(parts)
            case DeniedRequest():
                return Denied(denied=tuple(map(denial, parts.denied.listed())))
            case RecordsRequest() | RotateKeyRequest() | LeaveRequest():
                return await _act(parts, request)
            case _:
                assert_never(request)
    except KernelError as error:
        raise AgentError(str(error)) from error


async def tell(parts: Parts, question: Ask) -> Told:
    """Answer the controller; what the kernel refuses is said in the answer."""
    revision = parts.applier.in_force.revision if parts.applier.in_force else None
    try:
        judged = tuple(await parts.kernel.judge(question.flows)) if question.flows else ()
        counted = await parts.kernel.count() if question.counters else Counted({}, {})
        passed = await _relayed(parts) if question.relayed else None
    except KernelError as error:
        return Told(id=question.id, revision=revision, error=str(error)[:1000])
    most = sorted(counted.accepted.items(), key=lambda item: -item[1])[:MOST_COUNTED]
    return Told(
        id=question.id,
        revision=revision,
        judged=judged,
        accepted={grant: packets for grant, packets in most if packets},
        denied={where: packets for where, packets in counted.denied.items() if packets},
        relayed=passed,
    )


async def _relayed(parts: Parts) -> Relayed:
    return await relayed(parts.applier.in_force, parts.config.table, parts.config.relay_rate)


async def peers_now(parts: Parts) -> tuple[PeerStatus, ...]:
    """The peers that policy allows, as the kernel has them. Raises KernelError."""
    return _peers(_map(parts), await parts.kernel.observe())


async def _about_peers(parts: Parts, request: PeersRequest | PathsRequest | PingRequest) -> Answer:
    netmap = _map(parts)
    listed = _peers(netmap, await parts.kernel.observe())
    match request:
        case PeersRequest():
            return Peers(peers=listed)
        case PathsRequest():
            return paths(parts.prober, netmap, listed)
        case PingRequest():
            return await ping(parts.prober, netmap, listed, request)


async def _act(parts: Parts, request: RecordsRequest | RotateKeyRequest | LeaveRequest) -> Answer:
    if isinstance(request, RecordsRequest):
        return await parts.records.ship(request)
    return await (rotate(parts) if isinstance(request, RotateKeyRequest) else parts.leave(request.force))


async def _status(parts: Parts) -> Status:
    observed, counted = await parts.kernel.observe(), await parts.kernel.count()
    hidden_by, unread = await _hidden_by(parts)
    netmap, applier, standing = _map(parts), parts.applier, parts.control.standing
    certificate = parts.state.certificate()
    if certificate is None:
        raise StateError(
            f"{parts.state.path} has lost the node's certificate: run `agentd leave --force` and join again"
        )
    return Status(
        version=agent_version(),
        process=os.getpid(),
        started=parts.started,
        mesh=parts.node.mesh.name,
        mesh_id=parts.node.mesh.id,
        prefixes=(parts.node.mesh.prefix4, parts.node.mesh.prefix6),
        ca=netmap.mesh.ca if netmap else "",
        node=parts.node.node_id,
        name=netmap.node.name if netmap else parts.node.name,
        addresses=netmap.node.addresses if netmap else parts.node.addresses,
        tags=netmap.node.tags if netmap else (),
        public_key=parts.key.public,
        endpoints=endpoints(parts.config, parts.own.now, parts.node.mesh),
        controller=ControllerStatus(
            url=standing.url,
            phase=standing.phase,
            since=standing.since,
            connected=standing.connected,
            error=standing.error,
            retry=standing.retry,
        ),
        map=_origin(parts),
        desired=applier.desired.netmap.revision if applier.desired else None,
        in_force=applier.in_force.revision if applier.in_force else None,
        error=applier.outcome.error if applier.outcome else None,
        save_error=applier.save_error,
        notices=(*parts.notices, *map(notice, hidden_by), *unread, *filter(None, _problems(parts))),
        hidden_by=hidden_by,
        certificate_until=certificate.not_valid_after_utc,
        renewal=due(certificate),
        link=parts.config.link,
        listen_port=parts.config.listen_port,
        backend=observed.backend,
        firewall=observed.ruleset is not None,
        rules=len(live_rules(applier.in_force, time.time())) if applier.in_force else 0,
        accepted=dict(counted.accepted),
        denied=dict(counted.denied),
        drifts=applier.drifts,
        peers=_peers(netmap, observed),
        services=parts.serving.services(),
        names={f"{name}.{netmap.mesh.domain}": addresses for name, addresses in netmap.names.items()} if netmap else {},
        gateway=_gateway(parts),
    )


def _gateway(parts: Parts) -> GatewayStatus | None:
    followers = parts.serving.followers
    if not parts.serving.wanted and not followers:
        return None
    return GatewayStatus(
        started_by="agentd" if parts.config.gateway else "unit",
        connected=bool(followers),
        processes=tuple(follower.process for follower in followers),
        error=parts.serving.problem,
    )


def _problems(parts: Parts) -> tuple[str | None, ...]:
    netmap = parts.applier.in_force
    return parts.naming.problem, relay_problem(netmap) if netmap is not None else None


async def _hidden_by(parts: Parts) -> tuple[tuple[HidingChain, ...], tuple[str, ...]]:
    """Which chains of others hide the mesh, and why that cannot be told: a status must not fail of it."""
    try:
        return tuple(map(shown, await parts.kernel.hiding())), ()
    except KernelError as error:
        return (), (f"whether another table hides the mesh is not known: {error}",)


def _map(parts: Parts) -> Netmap | None:
    """The map in force; before the first was applied, the one that is about to be."""
    desired = parts.applier.desired
    return parts.applier.in_force or (desired.netmap if desired else None)


def _origin(parts: Parts) -> str:
    desired = parts.applier.desired
    if desired is None:
        return "none"
    if not desired.resume:
        return "denied"
    return "current" if parts.control.standing.phase is Phase.STREAMING else "saved"


def _peers(netmap: Netmap | None, observed: Observed) -> tuple[PeerStatus, ...]:
    listed = sorted(netmap.peers.values(), key=lambda peer: (peer.name, peer.id)) if netmap else []
    return tuple(_peer(peer, observed) for peer in listed)


def _peer(peer: Peer, observed: Observed) -> PeerStatus:
    there = observed.peers.get(peer.public_key)
    handshake = there.last_handshake if there else 0.0
    return PeerStatus(
        id=peer.id,
        name=peer.name,
        addresses=peer.addresses,
        public_key=peer.public_key,
        kind=peer.kind,
        endpoint=str(there.endpoint) if there and there.endpoint else None,
        handshake=datetime.fromtimestamp(handshake, UTC) if handshake else None,
        handshake_age=max(observed.now - handshake, 0.0) if handshake else None,
        received=there.rx_bytes if there else 0,
        sent=there.tx_bytes if there else 0,
        applied=there is not None,
    )


def _identity(parts: Parts, address: str) -> Identity:
    netmap = parts.applier.in_force
    if netmap is None:
        raise AgentError("no map is in force yet, so nobody is known: look at `agentd status`")
    found = whois(netmap, address)
    if found is None:
        raise AgentError(f"{address} is nobody that this host may talk to: look at `agentd peers`")
    return _described(parts, netmap, address, found)


def _described(parts: Parts, netmap: Netmap, address: str, found: Peer | SelfNode) -> Identity:
    other = found if isinstance(found, Peer) else None
    return Identity(
        address=address,
        addresses=found.addresses,
        node=found.id,
        name=found.name,
        fqdn=f"{found.name}.{netmap.mesh.domain}",
        tags=found.tags,
        public_key=other.public_key if other else parts.key.public,
        kind=other.kind if other else "agent",
        is_self=other is None,
    )


async def _diff(parts: Parts) -> Diff:
    desired = parts.applier.desired
    planned = await parts.kernel.plan(desired.netmap) if desired else ()
    return Diff(operations=tuple(str(operation) for operation in planned))


async def rotate(parts: Parts) -> Rotated:
    """Replace the WireGuard key, and tell the controller. Raises AgentError: the old key stands."""
    if parts.control.standing.phase is not Phase.STREAMING:
        raise AgentError("the controller is away, so no peer could learn the new key: try again when it is back")
    await parts.key.rotate()
    parts.telling.changed()
    return Rotated(public_key=parts.key.public)
