"""From where this host is seen, and what is in between: for `agentd netcheck` and the controller. Asks nobody."""

from controller.wire.base import Endpoint
from controller.wire.netcheck import (
    MOST_CANDIDATES,
    MOST_RELAYS,
    Candidate,
    MappedPort,
    MappingState,
    NetcheckReport,
    RelayDistance,
    UdpState,
)
from controller.wire.netmap import Netmap

from .path_messages import Netcheck, RelayStatus, StunServer
from .probing import Prober

__all__ = ["netcheck", "netcheck_report"]

_LONGEST = 500  # characters


def netcheck(prober: Prober, netmap: Netmap | None, candidates: tuple[Endpoint, ...], listen_port: int) -> Netcheck:
    """For people on this host. `candidates` are its own endpoints."""
    servers = tuple(StunServer(server=each.server, mapped=each.mapped, rtt=each.rtt) for each in prober.servers)
    names = {peer.id: peer.name for peer in netmap.peers.values()} if netmap is not None else {}
    return Netcheck(
        nat=prober.nat,
        udp=_udp(prober),
        candidates=candidates,
        reflexive=prober.reflexive,
        servers=servers,
        mapping=_mapped(prober),
        remembered=prober.keeping.lived,
        relays=tuple(
            RelayStatus(name=names[each.node], region=each.region, rtt=each.rtt, chosen=each.chosen)
            for each in prober.relays
            if each.node in names
        ),
        listen_port=listen_port,
    )


def netcheck_report(prober: Prober, own: tuple[Endpoint, ...]) -> NetcheckReport:
    """For the controller. `own` are the host's own endpoints: the first to be left out where there are too many."""
    mapped = prober.mapping.endpoint
    candidates = [
        *(Candidate(kind="router" if each == mapped else "nat", endpoint=each) for each in prober.reflexive),
        *(Candidate(kind="relay", endpoint=each) for each in prober.relayed),
        *(Candidate(kind="host", endpoint=each) for each in own),
    ]
    distances = (RelayDistance(node=each.node, rtt=each.rtt, chosen=each.chosen) for each in prober.relays)
    return NetcheckReport(
        nat=prober.nat,
        udp=_udp(prober),
        candidates=tuple(candidates[:MOST_CANDIDATES]),
        mapping=_mapped(prober),
        relays=tuple(distances)[:MOST_RELAYS],
        remembered=prober.keeping.lived,
    )


def _udp(prober: Prober) -> UdpState:
    if not prober.servers:
        return "not asked"
    return "works" if any(server.mapped is not None for server in prober.servers) else "no answer"


def _mapped(prober: Prober) -> MappedPort:
    mapping = prober.mapping
    state: MappingState
    if not mapping.allowed:
        state = "off"
    elif not mapping.wanted:
        state = "not needed"
    elif mapping.endpoint is None:
        state = "asking" if mapping.problem is None else "none"
    else:
        state = "mapped" if mapping.endpoint in prober.reflexive else "not seen"
    problem = mapping.problem[:_LONGEST] if mapping.problem is not None and mapping.wanted else None
    return MappedPort(state=state, protocol=mapping.protocol, endpoint=mapping.endpoint, problem=problem)
