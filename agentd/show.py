"""What people see of the daemon's answers: tables and sentences. Asks nothing, decides nothing."""

from datetime import UTC, datetime

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from controller.wire.denials import Denial

from .gateway_messages import GatewayStatus, ServiceStatus
from .local_api import Diff, Identity, PeerStatus, Status

__all__ = ["denial", "denied", "diff", "identity", "is_well", "peers", "status"]


def is_well(answer: Status) -> bool:
    """True when the map is in force, nobody took it away, and the services that this host holds can answer.

    Being without the controller is no illness by itself.
    """
    serves = all(service.error is None for service in answer.services if service.held)
    return answer.error is None and answer.map in {"saved", "current"} and answer.firewall and serves


def status(answer: Status) -> None:
    """The whole of `agentd status`."""
    console = Console(highlight=False)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    for key, value in _facts(answer):
        facts.add_row(key, value)
    console.print(facts)
    if answer.services:
        console.print()
        console.print(_service_table(answer.services))
    if answer.peers:
        console.print()
        console.print(_peer_table(answer.peers))


def peers(listed: tuple[PeerStatus, ...]) -> None:
    """A table of peers, or a sentence."""
    console = Console(highlight=False)
    if listed:
        console.print(_peer_table(listed))
    else:
        console.print("no peers: policy lets this host talk to nobody")


def identity(answer: Identity) -> None:
    """Who it is."""
    console = Console(highlight=False)
    whose = " (this host)" if answer.is_self else ""
    tags = f" {' '.join(answer.tags)}" if answer.tags else ""
    console.print(f"{answer.address} is [bold]{answer.name}[/bold]{whose}{escape(tags)}")
    console.print(f"  node {answer.node}, {answer.fqdn}, key {answer.public_key}, {answer.kind}")


def diff(answer: Diff) -> str:
    """One operation a line, or a sentence."""
    return "\n".join(answer.operations) or "nothing: the kernel is as it should be"


def denied(listed: tuple[Denial, ...]) -> str:
    """One flow and minute a line, or a sentence."""
    return "\n".join(map(denial, listed)) or "nothing was denied in the last hour"


def denial(one: Denial) -> str:
    """Minute, packets so far in it, and what was denied."""
    when = f"{_moment(one.minute)}  {one.packets:>5} packets"
    if one.source is None:
        return f"{when}  of further flows, too many to list"
    port = f":{one.port}" if one.port is not None else ""
    return f"{when}  {one.direction:<7}  {one.source} -> {one.destination}  {one.protocol}{port}"


def _facts(answer: Status) -> list[tuple[str, Text | str]]:
    facts: list[tuple[str, Text | str]] = [
        ("node", escape(f"{answer.name} ({answer.node}) in {answer.mesh}, {' '.join(answer.tags) or 'no tags'}")),
        ("addresses", " ".join(answer.addresses)),
        ("controller", _controller(answer)),
        ("map", _map(answer)),
        ("tunnel", escape(_tunnel(answer))),
        (
            "firewall",
            f"in force, {answer.rules} rules"
            if answer.firewall
            else Text("not in force: the table is missing or was changed", style="red"),
        ),
        ("certificate", f"until {_moment(answer.certificate_until)}, renewed from {_moment(answer.renewal)}"),
    ]
    if answer.names:
        called = (f"{name} ({' '.join(addresses)})" for name, addresses in sorted(answer.names.items()))
        facts.append(("may call", escape(", ".join(called))))
    if answer.gateway is not None:
        facts.append(("gateway", _gateway(answer.gateway)))
    facts += [
        (word, escape(", ".join(f"{count} packets {name}" for name, count in sorted(counts.items()) if count)))
        for word, counts in (("accepted", answer.accepted), ("denied", answer.denied))
        if any(counts.values())
    ]
    if answer.drifts:
        facts.append(("put back", f"{answer.drifts} times somebody changed what agentd made"))
    facts += [("notice", Text(notice, style="yellow")) for notice in answer.notices]
    if answer.save_error:
        facts.append(("notice", Text(answer.save_error, style="yellow")))
    return facts


def _controller(answer: Status) -> Text:
    controller = answer.controller
    if controller.connected:
        trouble = f"; {controller.error}" if controller.error else ""
        return Text.assemble((f"connected to {controller.url}", "green"), f" for {_age(controller.connected)}{trouble}")
    again = f"; next attempt in {_ahead(controller.retry)}" if controller.retry else ""
    return Text.assemble((f"{controller.phase}", "yellow"), f" ({controller.url}): {controller.error or '-'}{again}")


def _map(answer: Status) -> Text:
    if answer.map == "none":
        return Text("none yet: nothing may pass", style="yellow")
    origin = {
        "saved": "from the disk; the controller may have a newer one",
        "current": "from the controller",
        "denied": "emptied: an administrator removed or disabled this node",
    }[answer.map]
    if answer.error:
        force = f"revision {answer.in_force} in force" if answer.in_force is not None else "nothing in force"
        return Text(f"revision {answer.desired} is not in force ({force}): {answer.error}", style="red")
    return Text(f"revision {answer.in_force} in force, {origin}", style="red" if answer.map == "denied" else "")


def _tunnel(answer: Status) -> str:
    kind = (
        "kernel WireGuard" if answer.backend == "kernel" else "wireguard-go in user space (the kernel has no WireGuard)"
    )
    where = f", offered as {' '.join(answer.endpoints)}" if answer.endpoints else ", offers no endpoint"
    return f"{answer.link}, {kind}, port {answer.listen_port}{where}"


def _gateway(gateway: GatewayStatus) -> Text:
    by = "started by agentd" if gateway.started_by == "agentd" else "started by its own unit"
    if gateway.connected:
        return Text(f"connected, process {' '.join(map(str, gateway.processes))}, {by}")
    return Text(f"not connected ({by}): {gateway.error or 'it has not asked for its policy'}", style="red")


def _service_table(listed: tuple[ServiceStatus, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("service", "addresses", "upstream", "here", "state"):
        table.add_column(heading, overflow="fold")
    for service in listed:
        table.add_row(
            escape(service.fqdn),
            " ".join(service.addresses) + (_ports(service) if service.addresses else "none yet"),
            escape(service.upstream),
            "held" if service.held else "ready",
            _service_state(service),
        )
    return table


def _ports(service: ServiceStatus) -> str:
    return f" port {service.port}" + (f", {service.tls_port} with TLS" if service.tls_port is not None else "")


def _service_state(service: ServiceStatus) -> Text:
    if service.error is not None:
        return Text(service.error, style="red")
    if service.tls_error is not None:
        return Text(f"can answer, but not over TLS: {service.tls_error}", style="yellow")
    return Text("can answer")


def _peer_table(listed: tuple[PeerStatus, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("peer", "addresses", "endpoint", "handshake"):
        table.add_column(heading, overflow="fold")
    table.add_column("received", justify="right")
    table.add_column("sent", justify="right")
    for peer in listed:
        handshake = f"{_duration(peer.handshake_age)} ago" if peer.handshake_age is not None else "never"
        table.add_row(
            Text(peer.name, style="" if peer.applied else "red"),
            "\n".join(peer.addresses),
            peer.endpoint or "-",
            handshake if peer.applied else "not in the kernel",
            _size(peer.received),
            _size(peer.sent),
        )
    return table


def _moment(when: datetime) -> str:
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _age(since: datetime) -> str:
    return _duration((datetime.now(UTC) - since).total_seconds())


def _ahead(when: datetime) -> str:
    return _duration(max((when - datetime.now(UTC)).total_seconds(), 0))


def _duration(seconds: float) -> str:
    whole = int(max(seconds, 0))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= 2 * size:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
