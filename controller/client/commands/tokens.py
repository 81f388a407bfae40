"""token: admin tokens. `create` prints the token alone on standard output, once."""

from datetime import UTC, datetime
from typing import Annotated, Literal

import typer
from rich.text import Text

from controller.client.ask import agree
from controller.client.errors import NotFoundError
from controller.client.output import ago, note, plain, print_json, print_line, table, when
from controller.client.session import connect
from controller.wire.rest import AdminToken, AdminTokenCreate

from .help import examples, group
from .options import JsonFlag, YesFlag, build, seconds

__all__ = ["app"]

app = group(
    "Admin tokens: what people and scripts show the controller.",
    "wardmesh token create --role read --note dashboard",
    "wardmesh token list",
)


@app.command(
    epilog=examples(
        "wardmesh token create --note alice",
        "wardmesh token create --role read --ttl 30d --note dashboard > dashboard.token",
        "wardmesh token create --role member --user alice",
    )
)
def create(
    role: Annotated[
        Literal["admin", "member", "read"],
        typer.Option(help="read may look but change nothing; a member may give nodes the tags that its user owns."),
    ] = "admin",
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose it is, as the policy's tag owners name them.")
    ] = None,
    ttl: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long it is valid: 12h, 7d, 2w. Default: until revoked.")
    ] = None,
    comment: Annotated[str, typer.Option("--note", help="Whose it is.")] = "",
    json: JsonFlag = False,
) -> None:
    """Make a token and print it, once: the controller keeps only a hash."""
    lifetime = seconds(ttl) if ttl is not None else None
    request = build(lambda: AdminTokenCreate(note=comment, role=role, user=user, ttl=lifetime))
    with connect() as controller:
        created = controller.create_token(request)
    if json:
        print_json(created)
        return
    print_line(created.secret)
    note(f"Token {created.token.id}, role {created.token.role}{_until(created.token)}. It is not shown again.")


@app.command("list", epilog=examples("wardmesh token list", "wardmesh token list --json"))
def list_tokens(json: JsonFlag = False) -> None:
    """List the tokens, newest first."""
    with connect() as controller:
        tokens = sorted(controller.tokens(), key=lambda token: token.created, reverse=True)
    if json:
        print_json(tokens)
        return
    now = datetime.now(UTC)
    table(
        ("ID", "TOKEN", "ROLE", "USER", "STATE", "CREATED", "EXPIRES", "NOTE"),
        (
            (
                token.id,
                f"{token.prefix}…",
                token.role,
                token.user or "-",
                _state(token, now),
                ago(token.created, now),
                ago(token.expires, now),
                plain(token.note) or "-",
            )
            for token in tokens
        ),
        empty="No tokens.",
    )


@app.command(epilog=examples("wardmesh token revoke ID", "wardmesh token revoke ID --yes"))
def revoke(
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="Its id, as `wardmesh token list` shows it.")],
    yes: YesFlag = False,
    json: JsonFlag = False,
) -> None:
    """End a token: its next request is refused."""
    with connect() as controller:
        found = next((known for known in controller.tokens() if known.id == token), None)
        if found is None:
            raise NotFoundError(f"no token has the id {token!r}: see `wardmesh token list`")
        agree(f"Revoke token {found.id} ({found.prefix}…, {plain(found.note) or 'no note'})?", yes=yes)
        controller.revoke_token(found.id)
    if json:
        print_json(found)
    else:
        note(f"Token {found.id} is revoked.")


def _until(token: AdminToken) -> str:
    return f", until {when(token.expires)}" if token.expires else ""


def _state(token: AdminToken, now: datetime) -> Text:
    if token.revoked:
        return Text("revoked", style="red")
    if token.expires and token.expires <= now:
        return Text("expired", style="dim")
    return Text("valid", style="green")
