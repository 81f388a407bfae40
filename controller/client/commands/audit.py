"""audit: who changed what. The controller keeps it as a hash chain; this shows it."""

import json as jsonlib
import time
from collections.abc import Iterable
from itertools import islice, takewhile
from typing import Annotated, Any, Final

import typer

from controller.client.output import plain, print_json, print_line, table, when
from controller.client.rest import RestClient
from controller.client.session import connect
from controller.wire.denials import HostDenial
from controller.wire.rest import AuditEntry

from . import calls
from .help import examples, group
from .options import JsonFlag

__all__ = ["app"]

_POLL: Final = 1.0  # seconds between two looks at the newest page
_FOLLOWED: Final = 5000  # as many as the controller gives at once

app = group(
    "The record of every change, and of what hosts saw.",
    "wardmesh audit list",
    "wardmesh audit calls --denied --follow",
    "wardmesh audit denied",
)
app.command(epilog=calls.EXAMPLES)(calls.calls)


@app.command(
    "list",
    epilog=examples(
        "wardmesh audit list --limit 20",
        "wardmesh audit list --subject node:01J… --json",
        "wardmesh audit list --follow",
    ),
)
def list_entries(
    *,
    action: Annotated[str | None, typer.Option(help="Only this action.")] = None,
    subject: Annotated[str | None, typer.Option(help="Only changes of this subject.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only changes by this actor.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many entries, newest first.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then print new entries as they come.")] = False,
    json: JsonFlag = False,
) -> None:
    """List changes, newest first; with --follow, oldest first and one line (or JSON object) each."""
    filters = {"action": action, "subject": subject, "actor": actor}
    with connect() as controller:
        entries = list(islice(controller.audit(**filters), limit))
        if not follow:
            _show(entries, json=json)
            return
        last = -1
        while True:
            for entry in reversed(entries):
                last = entry.seq
                if json:
                    print_json(entry, line=True)
                else:
                    print_line("  ".join(_row(entry)))
            time.sleep(_POLL)
            entries = _after(last, controller.audit(**filters))


@app.command(
    epilog=examples(
        "wardmesh audit denied", "wardmesh audit denied --node db-1 --json", "wardmesh audit denied --follow"
    )
)
def denied(
    *,
    node: Annotated[
        str | None, typer.Option(metavar="NODE", help="Only what this host denied: its name or id.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=5000, help="How many flows, newest first.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then go on with what hosts report.")] = False,
    json: JsonFlag = False,
) -> None:
    """List the flows that hosts denied in the last hour, by minute; hosts report once a minute at most."""
    with connect() as controller:
        node_id = controller.find_node(node).value.id if node is not None else None
        found = controller.denials(node=node_id, limit=limit)
        if not follow:
            if json:
                print_json(found)
            else:
                names = _names(controller)
                for denial in found:
                    print_line(_denied(denial, names))
            return
        seen: set[HostDenial] = set()
        while True:
            new = [denial for denial in reversed(found) if denial not in seen]
            names = _names(controller) if new and not json else {}
            for denial in new:
                if json:
                    print_json(denial, line=True)
                else:
                    print_line(_denied(denial, names))
            seen = set(found)
            time.sleep(_POLL)
            found = controller.denials(node=node_id, limit=_FOLLOWED)


def _names(controller: RestClient) -> dict[str, str]:
    return {node.id: node.name for node in controller.nodes()}


def _denied(denial: HostDenial, names: dict[str, str]) -> str:
    """Minute, packets so far in it, the host that denied, and what it denied."""
    who = f"{when(denial.minute)}  {denial.packets:>5} packets  {plain(names.get(denial.node, denial.node))}"
    if denial.source is None:
        return f"{who}  further flows, too many to list"
    port = f":{denial.port}" if denial.port is not None else ""
    return f"{who}  {denial.direction}  {denial.source} -> {denial.destination}  {plain(denial.protocol or '-')}{port}"


def _after(seen: int, newest_first: Iterable[AuditEntry]) -> list[AuditEntry]:
    return list(takewhile(lambda entry: entry.seq > seen, newest_first))


def _show(entries: list[AuditEntry], *, json: bool) -> None:
    if json:
        print_json(entries)
        return
    table(
        ("SEQ", "TIME", "ACTOR", "ACTION", "SUBJECT", "CHANGE"),
        (_row(entry) for entry in entries),
        empty="No entries.",
    )


def _row(entry: AuditEntry) -> tuple[str, ...]:
    change = _change(entry.old, entry.new)
    return (str(entry.seq), when(entry.time), plain(entry.actor), entry.action, plain(entry.subject), plain(change))


def _change(old: Any, new: Any) -> str:
    """What differs, field by field; whole values where there are no fields."""
    before = old if isinstance(old, dict) else {}
    after = new if isinstance(new, dict) else {}
    if not before and not after:
        return "-" if old == new else f"{_short(old)} → {_short(new)}"
    fields = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not before:
        return " ".join(f"{key}={_short(after[key])}" for key in fields if after.get(key) not in (None, "", [], False))
    if not after:
        return "removed"
    return " ".join(f"{key}: {_short(before.get(key))} → {_short(after.get(key))}" for key in fields)


def _short(value: Any, limit: int = 60) -> str:
    text = value if isinstance(value, str) else jsonlib.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
