"""path: list. How hosts reach their peers, as they report it."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from controller.client.output import ago, plain, print_json, table
from controller.client.session import connect

from .help import examples, group
from .options import JsonFlag

__all__ = ["app"]

app = group("How hosts reach their peers.", "wardmesh path list", "wardmesh path list --node db-1")


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
                f"{path.rtt * 1000:.1f} ms" if path.rtt is not None else "-",
                str(path.mtu or "-"),
                ago(path.since, now),
            )
            for path in found
        ),
        empty="No paths. Hosts report them while they are connected, and have peers when policy lets them talk.",
    )
