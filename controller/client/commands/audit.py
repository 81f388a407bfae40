"""audit: who changed what. The controller keeps it as a hash chain; this shows it."""

import json as jsonlib
import time
from itertools import islice, takewhile
from typing import Annotated, Any, Final

import typer

from controller.client.output import plain, print_json, print_line, table, when
from controller.client.session import connect
from controller.wire.rest import AuditEntry

from .options import JsonFlag, examples, group

__all__ = ["app"]

_POLL: Final = 1.0  # seconds between two looks at the newest page

app = group("The record of every change.", "wardmesh audit list", "wardmesh audit list --follow")


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
            seen = last
            entries = list(takewhile(lambda entry: entry.seq > seen, controller.audit(**filters)))  # noqa: B023


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
