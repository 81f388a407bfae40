"""path: list, netcheck. How hosts reach their peers, and from where they are seen, as they report it."""

from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Final

import typer

from controller.client.output import ago, detail, milliseconds, plain, print_json, table
from controller.client.session import connect
from controller.wire.netcheck import HostNetcheck, MappedPort, NetcheckReport
from controller.wire.netmap import NodeId

from .help import examples, group
from .options import JsonFlag

__all__ = ["app"]

app = group(
    "How hosts reach their peers.", "wardmesh path list", "wardmesh path list --node db-1", "wardmesh path netcheck"
)


@app.command(
    "list",
    epilog=examples("wardmesh path list", "wardmesh path list --node db-1", "wardmesh path list --peer db-1 --json"),
)
def list_paths(
    *,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Only from this host: its name or id.")] = None,
    peer: Annotated[str | None, typer.Option(metavar="NODE", help="Only to this one: its name or id.")] = None,
    json: JsonFlag = False,
) -> None:
    """List the paths that connected hosts use, from each to each of its peers; a host reports within half a minute."""
    with connect() as controller:
        chosen = [controller.find_node(each).value.id if each is not None else None for each in (node, peer)]
        found = controller.paths(node=chosen[0], peer=chosen[1])
        names = {} if json or not found else {each.id: each.name for each in controller.nodes()}
    if json:
        print_json(found)
        return
    now = datetime.now(UTC)
    table(
        ("FROM", "TO", "PATH", "ENDPOINT", "ROUND TRIP", "MTU", "SINCE"),
        (
            (
                plain(names.get(path.node, path.node)),
                plain(names.get(path.peer, path.peer)),
                path.kind,
                path.endpoint or "-",
                milliseconds(path.rtt),
                str(path.mtu or "-"),
                ago(path.since, now),
            )
            for path in found
        ),
        empty="No paths. Hosts report them while they are connected, and have peers when policy lets them talk.",
    )


_KINDS: Final = {"host": "own", "nat": "of a NAT", "router": "of a router", "relay": "by relay"}
_STATES: Final = {
    "silent": "connected, and has not said anything yet",
    "elsewhere": "connected to another controller: ask that one",
    "offline": "not connected",
}


@app.command(
    epilog=examples(
        "wardmesh path netcheck", "wardmesh path netcheck --node db-1", "wardmesh path netcheck --node db-1 --json"
    )
)
def netcheck(
    *,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Only this host: its name or id.")] = None,
    json: JsonFlag = False,
) -> None:
    """Tell for each host which NAT it is behind, where peers may look for it, and how far the relays are; with --node,
    all that is known of one. `agentd netcheck` is the same there."""
    with connect() as controller:
        chosen = controller.find_node(node).value.id if node is not None else None
        found = list(controller.netchecks(node=chosen))
        relays = {} if json else {relay.id: relay.name for relay in controller.relays()}
    if json:
        print_json(found)
    elif node is not None and found and (report := found[0].netcheck) is not None:
        _show(found[0].name, report, relays)
    else:
        table(
            ("NODE", "NAT", "UDP", "ROUTER'S PORT", "CANDIDATES", "RELAYS"),
            (_row(host, relays) for host in found),
            empty="No hosts. Static peers have no agentd that would report.",
        )


def _row(host: HostNetcheck, relays: Mapping[NodeId, str]) -> tuple[str, ...]:
    report = host.netcheck
    if report is None:
        return (host.name, _STATES[host.state], "-", "-", "-", "-")
    kinds: Counter[str] = Counter(candidate.kind for candidate in report.candidates)
    candidates = ", ".join(f"{kinds[kind]} {_KINDS[kind]}" for kind in _KINDS if kinds[kind])
    return (host.name, report.nat, report.udp, _port(report.mapping), candidates or "-", _relays(report, relays))


def _relays(report: NetcheckReport, relays: Mapping[NodeId, str]) -> str:
    chosen = (each for each in report.relays if each.chosen)
    return ", ".join(f"{relays.get(each.node, each.node)} {milliseconds(each.rtt)}" for each in chosen) or "-"


def _port(mapping: MappedPort) -> str:
    return f"{mapping.endpoint} by {mapping.protocol}" if mapping.state == "mapped" else mapping.state


def _show(name: str, report: NetcheckReport, relays: Mapping[NodeId, str]) -> None:
    why = f": {plain(mapping.problem)}" if (mapping := report.mapping).problem else ""
    silent = f"{report.remembered:.0f} s at least" if report.remembered is not None else "-"
    detail(
        (
            ("name", name),
            ("NAT", report.nat),
            ("UDP", report.udp),
            ("remembers silent flows", silent),
            ("router's port", f"{_port(mapping)}{why}"),
            *((f"candidate {_KINDS[each.kind]}", each.endpoint) for each in report.candidates),
            *(
                (
                    f"relay {plain(relays.get(each.node, each.node))}",
                    f"{milliseconds(each.rtt) if each.rtt is not None else 'no answer'}{', chosen' * each.chosen}",
                )
                for each in report.relays
            ),
        )
    )
