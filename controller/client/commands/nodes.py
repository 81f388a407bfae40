"""node: list, show, rename, tag, approve, disable, enable, delete."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer
from rich.text import Text

from controller.client.ask import agree
from controller.client.errors import InputError
from controller.client.output import ago, detail, lasting, note, plain, print_json, table, when
from controller.client.session import connect
from controller.wire.rest import Node, NodePatch

from .help import examples, group
from .options import JsonFlag, NodeArgument, YesFlag, build

__all__ = ["app", "show_node"]

app = group("Hosts and static peers of the mesh.", "wardmesh node list --tag tag:mcp", "wardmesh node show db1")


@app.command("list", epilog=examples("wardmesh node list", "wardmesh node list --state pending --json"))
def list_nodes(
    tag: Annotated[str | None, typer.Option(help="Only nodes with this tag.")] = None,
    state: Annotated[Literal["pending", "active", "disabled"] | None, typer.Option(help="Only this state.")] = None,
    kind: Annotated[Literal["agent", "static"] | None, typer.Option(help="Only this kind.")] = None,
    json: JsonFlag = False,
) -> None:
    """List the nodes."""
    with connect() as controller:
        nodes = sorted(controller.nodes(tag=tag, state=state, kind=kind), key=lambda node: node.name)
    if json:
        print_json(nodes)
        return
    now = datetime.now(UTC)
    table(
        ("NAME", "STATE", "ONLINE", "ADDRESSES", "TAGS", "IN FORCE", "LAST SEEN"),
        (
            (
                node.name,
                _state(node),
                _online(node),
                " ".join(node.addresses),
                " ".join(node.tags) or "-",
                _in_force(node),
                ago(node.last_seen, now),
            )
            for node in nodes
        ),
        empty="No nodes. `wardmesh key create` makes the join string for the first one.",
    )


@app.command("show", epilog=examples("wardmesh node show db1", "wardmesh node show db1 --json"))
def show(node: NodeArgument, json: JsonFlag = False) -> None:
    """Show one node."""
    with connect() as controller:
        found = controller.find_node(node).value
    show_node(found, json=json)


@app.command(epilog=examples("wardmesh node rename db1 db-main"))
def rename(
    node: NodeArgument,
    name: Annotated[str, typer.Argument(metavar="NEW-NAME", help="A DNS label: a-z, 0-9 and '-'.")],
    json: JsonFlag = False,
) -> None:
    """Give a node another name. Its address, keys and connections stay."""
    patch = build(lambda: NodePatch(name=name))
    with connect() as controller:
        old = controller.find_node(node).value
        new = controller.edit_node(old.id, lambda current: None if current.name == name else patch)
    _changed(new, f"{old.name} is now {new.name}.", json=json)


@app.command(
    epilog=examples(
        "wardmesh node tag db1 --add tag:db --remove tag:new",
        "wardmesh node tag db1 --set tag:db --set tag:eu",
        "wardmesh node tag db1 --clear",
    )
)
def tag(
    node: NodeArgument,
    *,
    add: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Add this tag; may be repeated.")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Remove this tag; may be repeated.")] = None,
    replace: Annotated[
        list[str] | None, typer.Option("--set", metavar="TAG", help="Exactly these tags; may be repeated.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="No tags at all.")] = False,
    json: JsonFlag = False,
) -> None:
    """Change a node's tags. Policy speaks of tags, so this changes what the node may reach."""
    chosen = [bool(add or remove), bool(replace), clear]
    if sum(chosen) != 1:
        raise InputError("say what to change: --add and --remove, or --set, or --clear")

    def change(current: Node) -> NodePatch | None:
        tags = set(replace or ()) if replace or clear else set(current.tags) - set(remove or ()) | set(add or ())
        return None if tags == set(current.tags) else NodePatch(tags=tuple(sorted(tags)))

    build(lambda: NodePatch(tags=(*(add or ()), *(remove or ()), *(replace or ()))))
    with connect() as controller:
        new = controller.edit_node(controller.find_node(node).value.id, change)
    _changed(new, f"{new.name} has {' '.join(new.tags) or 'no tags'}.", json=json)


@app.command(epilog=examples("wardmesh node list --state pending", "wardmesh node approve db1"))
def approve(node: NodeArgument, json: JsonFlag = False) -> None:
    """Let a pending node into the mesh."""
    _set_state(node, "active", allowed_from={"pending"}, remedy="use `wardmesh node enable`", json=json)


@app.command(epilog=examples("wardmesh node disable db1"))
def disable(node: NodeArgument, json: JsonFlag = False) -> None:
    """Take a node out of everybody's map; `enable` brings it back with the same address."""
    _set_state(node, "disabled", allowed_from={"active", "pending"}, remedy="", json=json)


@app.command(epilog=examples("wardmesh node enable db1"))
def enable(node: NodeArgument, json: JsonFlag = False) -> None:
    """Bring a disabled node back."""
    _set_state(node, "active", allowed_from={"disabled"}, remedy="use `wardmesh node approve`", json=json)


@app.command(epilog=examples("wardmesh node delete db1", "wardmesh node delete db1 --yes"))
def delete(node: NodeArgument, yes: YesFlag = False, json: JsonFlag = False) -> None:
    """Remove a node for good: its certificate and key are worth nothing afterwards."""
    with connect() as controller:
        found = controller.find_node(node).value
        agree(f"Delete {found.name} ({' '.join(found.addresses)})?", yes=yes)
        controller.delete_node(found.id)
    _changed(found, f"{found.name} is deleted.", json=json)


def show_node(node: Node, *, json: bool) -> None:
    """One node, whole."""
    if json:
        print_json(node)
        return
    now = datetime.now(UTC)
    rows: list[tuple[str, str | Text]] = [
        ("name", node.name),
        ("id", node.id),
        ("kind", node.kind + (", ephemeral" if node.ephemeral else "")),
        ("state", _state(node)),
        ("tags", " ".join(node.tags) or "-"),
        ("addresses", " ".join(node.addresses)),
        ("public key", node.public_key),
        ("endpoints", " ".join(node.endpoints) or "-"),
        ("created", when(node.created)),
        ("revision", str(node.revision)),
    ]
    if node.kind == "agent":
        rows += [
            ("online", _online(node)),
            ("last seen", f"{when(node.last_seen)} ({ago(node.last_seen, now)})" if node.last_seen else "never"),
            ("in force", _in_force(node)),
            (
                "data path",
                {"kernel": "kernel WireGuard", "userspace": "userspace WireGuard"}.get(node.backend or "", "-"),
            ),
            ("agent", plain(node.agent_version or "-")),
        ]
    if node.error:
        rows.append(("error", Text(plain(node.error), style="red")))
    detail(rows)


def _set_state(
    reference: str, state: Literal["active", "disabled"], *, allowed_from: set[str], remedy: str, json: bool
) -> None:
    def change(current: Node) -> NodePatch | None:
        if current.state == state:
            return None
        if current.state not in allowed_from:
            raise InputError(f"{current.name} is {current.state}: {remedy}")
        return NodePatch(state=state)

    with connect() as controller:
        node = controller.edit_node(controller.find_node(reference).value.id, change)
    _changed(node, f"{node.name} is {node.state}.", json=json)


def _changed(node: Node, sentence: str, *, json: bool) -> None:
    if json:
        print_json(node)
    else:
        note(sentence)


def _state(node: Node) -> Text:
    return Text(node.state, style={"active": "green", "pending": "yellow", "disabled": "red"}[node.state])


def _online(node: Node) -> Text:
    if node.kind == "static":
        return Text("static", style="dim")
    return Text("yes", style="green") if node.online else Text("no", style="red")


def _in_force(node: Node) -> Text:
    revision = str(node.in_force) if node.in_force is not None else "-"
    lag = f"{lasting(node.lag)} behind" if node.lag is not None else ""
    if node.error:
        return Text(f"{revision} ({', '.join(filter(None, ('error', lag)))})", style="red")
    return Text(f"{revision} ({lag})", style="yellow") if lag else Text(revision)
