"""What people see of paths: `agentd paths` and `agentd netcheck`. Asks nothing, decides nothing."""

from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table

from controller.wire.netcheck import MappedPort

from .path_messages import Netcheck, Paths, PathStatus, PeerPaths

__all__ = ["netcheck", "paths"]

_NAT: Final = {
    "none": "none: this host is seen at its own address",
    "endpoint-independent": "endpoint-independent: every peer reaches the same endpoint",
    "endpoint-dependent": "endpoint-dependent: each destination sees another port, so that few peers reach this host",
    "unknown": "unknown: too few answers",
}
_UDP: Final = {
    "works": "works",
    "no answer": "no answer from the controller: is UDP to it blocked, or its STUN off?",
    "not asked": "the controller was not asked (yet)",
}
_PROTOCOLS: Final = {"pcp": "PCP", "nat-pmp": "NAT-PMP", "upnp": "UPnP", None: "nothing"}
_NO_PORT: Final = {
    "off": "not asked for: port_mapping is false",
    "not needed": "not needed: no NAT is in between over IPv4, as far as is known",
    "asking": "being asked for",
}


def paths(answer: Paths) -> None:
    """A line for each endpoint of each peer, or a sentence."""
    console = Console(highlight=False)
    if not answer.peers:
        console.print("no peers: policy lets this host talk to nobody")
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("peer", "endpoint", "state"):
        table.add_column(heading, overflow="fold")
    for heading in ("round trip", "mtu"):
        table.add_column(heading, justify="right")
    for peer in answer.peers:
        for number, row in enumerate(_rows(peer)):
            first = number == 0
            table.add_row(peer.name if first else "", *row, str(peer.mtu or "-") if first else "")
    console.print(table)


def _rows(peer: PeerPaths) -> list[tuple[str, str, str]]:
    if not peer.paths:
        return [(peer.endpoint or "-", "not checked", "-")]
    rows = [(path.endpoint, _state(peer, path), _milliseconds(path.rtt)) for path in peer.paths]
    if peer.endpoint is not None and peer.endpoint not in {path.endpoint for path in peer.paths}:
        rows.append((peer.endpoint, "in use, as WireGuard heard it", "-"))
    return rows


def _state(peer: PeerPaths, path: PathStatus) -> str:
    words: list[str] = [path.state, f"by relay {path.relay}"] if path.relay is not None else [path.state]
    words += ["chosen"] if path.chosen else []
    words += ["in use"] if path.endpoint == peer.endpoint else []
    words += ["learned"] if path.learned else []
    return ", ".join(words)


def netcheck(answer: Netcheck) -> None:
    """Facts, one a line."""
    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("NAT", _NAT[answer.nat])
    table.add_row("UDP", _UDP[answer.udp])
    table.add_row("router's port", _port(answer.mapping))
    if answer.remembered is not None:
        table.add_row("remembered", f"a silent flow, for {answer.remembered:.0f} s at least")
    unseen = "not known" if answer.nat == "unknown" else "its own endpoints"
    table.add_row("seen at", " ".join(answer.reflexive) or unseen)
    table.add_row("own endpoints", " ".join(answer.candidates) or "-")
    for server in answer.servers:
        said = f"sees {server.mapped} in {_milliseconds(server.rtt)}" if server.mapped else "does not answer"
        table.add_row("STUN", f"{server.server} {said}")
    for relay in answer.relays:
        said = "does not answer" if relay.rtt is None else f"answers in {_milliseconds(relay.rtt)}"
        table.add_row("relay", f"{relay.name} ({relay.region}) {said}{', chosen' if relay.chosen else ''}")
    console.print(table)


def _port(port: MappedPort) -> str:
    match port.state:
        case "mapped":
            return f"{port.endpoint} leads here, by {_PROTOCOLS.get(port.protocol)}"
        case "not seen":
            return f"{port.endpoint}, by {_PROTOCOLS.get(port.protocol)}, which is behind a further NAT: not used"
        case "none":
            return f"none: {port.problem}"
        case _:
            return _NO_PORT[port.state]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"
