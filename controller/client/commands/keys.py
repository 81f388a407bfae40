"""key: enrolment keys. `create` prints the join string alone on standard output, so that it can be piped to a host."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from controller.client.ask import agree
from controller.client.errors import InputError
from controller.client.output import ago, detail, note, plain, print_json, print_line, table, when
from controller.client.session import connect
from controller.wire.rest import EnrolmentKey, EnrolmentKeyCreate

from .help import examples, group
from .options import JsonFlag, YesFlag, build, seconds

__all__ = ["app"]

app = group(
    "Enrolment keys: what a host needs to join.",
    "wardmesh key create --tag tag:mcp",
    "wardmesh key list",
)

KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="Its id, as `wardmesh key list` shows it.")]


@app.command(
    epilog=examples(
        "wardmesh key create --tag tag:mcp",
        "wardmesh key create --uses 20 --ttl 7d --note 'autumn rack'",
        "wardmesh key create --unlimited --ephemeral --ttl 12h --tag tag:ci",
        "wardmesh key create | ssh host1 agentd join -",
    )
)
def create(
    *,
    tag: Annotated[list[str] | None, typer.Option(help="Tag of the nodes that join with it; may be repeated.")] = None,
    uses: Annotated[int, typer.Option(min=1, help="How many hosts may join with it.")] = 1,
    unlimited: Annotated[bool, typer.Option("--unlimited", help="Any number of hosts may.")] = False,
    ttl: Annotated[str, typer.Option(metavar="DURATION", help="How long it is valid: 90s, 15m, 12h, 7d, 2w.")] = "1h",
    ephemeral: Annotated[bool, typer.Option("--ephemeral", help="Its nodes are removed when they stay away.")] = False,
    approval: Annotated[bool, typer.Option("--approval", help="Each node waits for an admin's approval.")] = False,
    comment: Annotated[str, typer.Option("--note", help="For the people who see it in the list.")] = "",
    json: JsonFlag = False,
) -> None:
    """Make a key and print its join string, once: it is a secret, and the controller keeps only a hash."""
    if unlimited and uses != 1:
        raise InputError("--uses and --unlimited contradict each other: give one of them")
    lifetime = seconds(ttl)
    request = build(
        lambda: EnrolmentKeyCreate(
            tags=tuple(tag or ()),
            uses=None if unlimited else uses,
            ttl=lifetime,
            ephemeral=ephemeral,
            approved=not approval,
            note=comment,
        )
    )
    with connect() as controller:
        created = controller.create_enrolment_key(request)
    if json:
        print_json(created)
        return
    print_line(created.join)
    note(
        f"Key {created.key.id}, for {_count(created.key)}, until {when(created.key.expires)}. "
        "On the host, as root: `agentd join -`, then paste this string. It is not shown again."
    )


@app.command("list", epilog=examples("wardmesh key list", "wardmesh key list --json"))
def list_keys(json: JsonFlag = False) -> None:
    """List the keys, newest first."""
    with connect() as controller:
        keys = sorted(controller.enrolment_keys(), key=lambda key: key.created, reverse=True)
    if json:
        print_json(keys)
        return
    now = datetime.now(UTC)
    table(
        ("ID", "KEY", "STATE", "USED", "TAGS", "EXPIRES", "NOTE"),
        (
            (
                key.id,
                f"{key.prefix}…",
                _state(key, now),
                f"{key.used}/{key.uses if key.uses is not None else '∞'}",
                " ".join(key.tags) or "-",
                ago(key.expires, now),
                plain(key.note) or "-",
            )
            for key in keys
        ),
        empty="No keys. `wardmesh key create` makes one.",
    )


@app.command("show", epilog=examples("wardmesh key show KEY"))
def show(key: KeyArgument, json: JsonFlag = False) -> None:
    """Show one key; never its secret."""
    with connect() as controller:
        found = controller.enrolment_key(key)
    if json:
        print_json(found)
        return
    detail(
        (
            ("id", found.id),
            ("key", f"{found.prefix}…"),
            ("state", _state(found, datetime.now(UTC))),
            ("used", f"{found.used} of {found.uses if found.uses is not None else 'any number'}"),
            ("tags", " ".join(found.tags) or "-"),
            ("ephemeral", "yes" if found.ephemeral else "no"),
            ("approval", "not needed" if found.approved else "each node waits for it"),
            ("created", when(found.created)),
            ("expires", when(found.expires)),
            ("revoked", when(found.revoked)),
            ("note", plain(found.note) or "-"),
        )
    )


@app.command(epilog=examples("wardmesh key revoke KEY", "wardmesh key revoke KEY --yes"))
def revoke(key: KeyArgument, yes: YesFlag = False, json: JsonFlag = False) -> None:
    """End a key. Nodes that joined with it stay."""
    with connect() as controller:
        found = controller.enrolment_key(key)
        agree(f"Revoke key {found.id} ({found.prefix}…, {plain(found.note) or 'no note'})?", yes=yes)
        controller.revoke_enrolment_key(found.id)
        after = controller.enrolment_key(found.id)
    if json:
        print_json(after)
    else:
        note(f"Key {found.id} is revoked.")


def _count(key: EnrolmentKey) -> str:
    if key.uses is None:
        return "any number of hosts"
    return "one host" if key.uses == 1 else f"{key.uses} hosts"


def _state(key: EnrolmentKey, now: datetime) -> Text:
    if key.revoked:
        return Text("revoked", style="red")
    if key.uses is not None and key.used >= key.uses:
        return Text("used up", style="dim")
    if key.expires <= now:
        return Text("expired", style="dim")
    return Text("valid", style="green")
