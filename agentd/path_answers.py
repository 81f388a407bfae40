"""What the daemon answers about paths: `agentd paths`, `agentd ping`. Changes nothing."""

import difflib
import ipaddress
from collections.abc import Iterable, Sequence

from controller.wire.base import NodeName
from controller.wire.netmap import Netmap, NodeId
from controller.wire.paths import PathKind

from .errors import AgentError
from .local_api import PeerStatus
from .path_messages import Paths, PathStatus, PeerPaths, PingRequest, Pong
from .paths.checks import View
from .probing import Prober

__all__ = ["paths", "ping"]


def paths(prober: Prober, netmap: Netmap | None, listed: Iterable[PeerStatus]) -> Paths:
    """The ways to these peers."""

    def status(view: View) -> PathStatus:
        return PathStatus(
            endpoint=view.endpoint,
            state=view.state.value,
            rtt=view.rtt,
            chosen=view.chosen,
            learned=view.learned,
            relay=_name(netmap, prober.relay_of(view.endpoint)),
        )

    return Paths(
        peers=tuple(
            PeerPaths(
                id=peer.id,
                name=peer.name,
                endpoint=peer.endpoint,
                mtu=prober.known_mtu(peer.id),
                paths=tuple(map(status, prober.paths(peer.id))),
            )
            for peer in listed
        )
    )


def _name(netmap: Netmap | None, node: NodeId | None) -> NodeName | None:
    peer = netmap.peers.get(node) if netmap is not None and node is not None else None
    return None if peer is None else peer.name


async def ping(prober: Prober, netmap: Netmap | None, listed: Sequence[PeerStatus], request: PingRequest) -> Pong:
    """Ask a peer's agentd once, at the endpoint and from the port that WireGuard uses. Raises AgentError.

    An echo through the tunnel would say what policy lets pass; this says what the path does.
    """
    peer = _find(netmap, listed, request.peer)
    endpoint, rtt = peer.endpoint, None
    kind: PathKind = prober.kind(endpoint) if endpoint is not None else "none"
    if endpoint is not None:
        rtt = await prober.ask(peer.id, endpoint, patience=request.timeout)
    return Pong(
        id=peer.id,
        name=peer.name,
        endpoint=endpoint,
        path=kind,
        relay=_name(netmap, prober.relay_of(endpoint)) if endpoint is not None else None,
        rtt=rtt,
        handshake_age=peer.handshake_age,
    )


def _find(netmap: Netmap | None, listed: Sequence[PeerStatus], text: str) -> PeerStatus:
    """The peer of that name, full name, id or address that has an agentd."""
    if netmap is None:
        raise AgentError("no map is in force yet, so nobody is known: look at `agentd status`")
    name = text.lower().rstrip(".").removesuffix(f".{netmap.mesh.domain}")
    if name == netmap.node.name or text == netmap.node.id or _address(text) in netmap.node.addresses:
        raise AgentError(f"{text} is this host itself")
    for peer in listed:
        if name == peer.name or text == peer.id or _address(text) in peer.addresses:
            if peer.kind == "static":
                raise AgentError(
                    f"{text} is a static peer, without an agentd that would answer: use `ping {peer.addresses[0]}`, "
                    "which needs a grant for icmp"
                )
            return peer
    raise AgentError(f"{text} is nobody that this host may talk to: {_remedy(netmap, listed, name)}")


def _remedy(netmap: Netmap, listed: Sequence[PeerStatus], name: str) -> str:
    if name in netmap.names or name.removeprefix("svc:") in netmap.names:
        return "it is a service, whose holder is asked by its own name; `agentd status` has the services' addresses"
    if not listed:
        return "no grant of the policy lets it talk to anybody"
    near = difflib.get_close_matches(name, [peer.name for peer in listed], n=1)
    return f"did you mean {near[0]!r}?" if near else "look at `agentd peers`"


def _address(text: str) -> str | None:
    """The canonical text of an address; None for what is none."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None
