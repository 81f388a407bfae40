"""grant: access for a while, beside the policy document. `wardmesh grant --from …` itself makes one."""

from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from json import dumps
from typing import Annotated

import typer
from rich.text import Text

from controller.client.errors import InputError
from controller.client.output import ago, detail, note, plain, print_json, print_line, table, when
from controller.client.session import connect
from controller.wire.grants import GrantCalls, GrantCreate, GrantPatch, TemporaryGrant

from .help import examples, group
from .options import JsonFlag, build, json_object, seconds
from .waiting import wait_for_hosts

__all__ = ["app"]

_MAKE = "wardmesh grant --from alice --to tag:db --ip tcp:5432 --ttl 1h --reason 'INC-1234: slow queries'"

app = group(
    "Access for a while, beside the policy. It ends by itself, also while the controller is away, and live flows with "
    "it. Selectors and `ip` are written as in a policy document.",
    _MAKE,
    "wardmesh grant --from group:ops --to svc:db --ttl 30m --reason 'rotate the password'",
    "wardmesh grant --from agent1 --to svc:github --tool 'search_*' --tool create_issue "
    """--args '{"create_issue": {"repo": {"equals": "web"}}}' --ttl 1h --reason INC-1234""",
    "wardmesh grant list",
    "wardmesh grant extend ID --ttl 2h",
    "wardmesh grant revoke ID",
)

GrantArgument = Annotated[str, typer.Argument(metavar="ID", help="As `wardmesh grant list` shows it.")]
TtlOption = Annotated[str, typer.Option(metavar="DURATION", help="How long from now: 90s, 15m, 12h, 7d.")]
WaitFlag = Annotated[bool, typer.Option("--wait", help="Until every host that is online has it in force.")]
TimeoutOption = Annotated[str, typer.Option(metavar="DURATION", help="How long to wait, like 30s or 5m.")]


@app.callback(invoke_without_command=True, no_args_is_help=True)
def create(
    context: typer.Context,
    *,
    source: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="SELECTOR", help="Who may open the flows: tag:x, node, group:x. Repeatable."),
    ] = None,
    destination: Annotated[
        list[str] | None, typer.Option("--to", metavar="SELECTOR", help="To whom; also svc:x. Repeatable.")
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(metavar="FLOW", help="tcp:PORT, udp:PORT, icmp; none for a service. Repeatable."),
    ] = None,
    tool: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Tools of a service that speaks MCP. Repeatable.")
    ] = None,
    deny_tool: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="None of these, although --tool names them. Repeatable.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Its prompts. Repeatable.")] = None,
    resource: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Its resources. Repeatable.")] = None,
    method: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Other methods. Repeatable.")] = None,
    args: Annotated[
        str, typer.Option(metavar="JSON", help="What arguments must be, as `args` in a policy document's grant.")
    ] = "",
    limit: Annotated[
        list[str] | None, typer.Option(metavar="GLOB=RATE", help="How often, like 'get_*=500/10s'. Repeatable.")
    ] = None,
    ttl: Annotated[str, typer.Option(metavar="DURATION", help="How long from now: 90s, 15m, 12h, 7d.")] = "",
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why; it is kept in the audit.")] = "",
    wait: WaitFlag = False,
    timeout: TimeoutOption = "60s",
    json: JsonFlag = False,
) -> None:
    """Grant access for a while, and print the grant's id."""
    needed = {"--from": source, "--to": destination, "--ttl": ttl, "--reason": reason}
    lists = {"--tool": tool, "--deny-tool": deny_tool, "--prompt": prompt, "--resource": resource, "--method": method}
    calls: Mapping[str, object] = {**lists, "--args": args, "--limit": limit}
    if context.invoked_subcommand is not None:
        stray = [option for option, value in {**needed, "--ip": ip, **calls}.items() if value]
        if stray or wait or json:
            option = stray[0] if stray else "--wait" if wait else "--json"
            raise InputError(f"{option} belongs after `{context.invoked_subcommand}`, or that word is one too many")
        return
    missing = [option for option, value in needed.items() if not value]
    if missing:
        raise InputError(f"a grant needs {' and '.join(missing)}, like `{_MAKE}`")
    patience, lifetime = seconds(timeout), seconds(ttl)

    def mcp() -> GrantCalls:
        return GrantCalls(
            tools=tuple(tool or ()),
            deny_tools=tuple(deny_tool or ()),
            prompts=tuple(prompt or ()),
            resources=tuple(resource or ()),
            methods=tuple(method or ()),
            args=json_object(args, "--args", '{"create_issue": {"repo": {"equals": "web"}}}') if args else {},
            limits=dict(_limit(text) for text in limit or ()),
        )

    wanted = build(
        lambda: GrantCreate(
            from_=tuple(source or ()),
            to=tuple(destination or ()),
            ip=tuple(ip or ()),
            mcp=mcp() if any(calls.values()) else None,
            ttl=lifetime,
            reason=reason,
        )
    )
    with connect() as controller:
        created = controller.create_grant(wanted)
        if json:
            print_json(created)
        else:
            print_line(created.id)
            note(f"{_what(created)}, until {when(created.expires)}. `wardmesh grant revoke {created.id}` ends it.")
        if wait:
            wait_for_hosts(controller, patience, quiet=json)


@app.command("list", epilog=examples("wardmesh grant list", "wardmesh grant list --all --json"))
def list_grants(
    *,
    everything: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 100,
    json: JsonFlag = False,
) -> None:
    """List the temporary grants in force, newest first; what one grants nothing for is said below."""
    with connect() as controller:
        grants = list(islice(controller.grants(state=None if everything else "active"), limit))
    if json:
        print_json(grants)
        return
    now = datetime.now(UTC)
    table(
        ("ID", "STATE", "ENDS", "FROM", "TO", "FLOWS, CALLS", "BY", "REASON"),
        (
            (
                grant.id,
                _state(grant),
                ago(grant.revoked or grant.expires, now),
                " ".join(grant.from_),
                " ".join(grant.to),
                _opens(grant) or "-",
                plain(grant.actor),
                plain(grant.reason),
            )
            for grant in grants
        ),
        empty="No temporary grants." if everything else "No temporary grant is in force; --all shows those that ended.",
    )
    for grant in grants:
        if grant.problem:
            note(f"{grant.id} grants nothing: {plain(grant.problem)}")


@app.command(epilog=examples("wardmesh grant show ID", "wardmesh grant show ID --json"))
def show(grant: GrantArgument, json: JsonFlag = False) -> None:
    """Show one temporary grant, also one that has ended."""
    with connect() as controller:
        found = controller.grant(grant).value
    if json:
        print_json(found)
        return
    detail(
        (
            ("id", found.id),
            ("state", _state(found)),
            ("from", " ".join(found.from_)),
            ("to", " ".join(found.to)),
            ("ip", " ".join(found.ip) or "the service's own port"),
            *((plain(key), plain(dumps(value))) for key, value in (found.mcp.written if found.mcp else {}).items()),
            ("reason", plain(found.reason)),
            ("by", plain(found.actor)),
            ("created", when(found.created)),
            (
                "ends" if found.state == "active" else "would have ended" if found.revoked else "ended",
                when(found.expires),
            ),
            *((("revoked", when(found.revoked)),) if found.revoked else ()),
            *((("grants nothing", plain(found.problem)),) if found.problem else ()),
        )
    )


@app.command(epilog=examples("wardmesh grant extend ID --ttl 2h"))
def extend(grant: GrantArgument, ttl: TtlOption, json: JsonFlag = False) -> None:
    """Let a grant end later: that long from now. One that has ended stays ended."""
    patch = build(lambda: GrantPatch(ttl=seconds(ttl)))
    with connect() as controller:
        extended = controller.extend_grant(grant, patch)
    if json:
        print_json(extended)
    else:
        note(f"Grant {extended.id} now ends {when(extended.expires)}.")


@app.command(epilog=examples("wardmesh grant revoke ID", "wardmesh grant revoke ID --wait"))
def revoke(
    grant: GrantArgument, *, wait: WaitFlag = False, timeout: TimeoutOption = "60s", json: JsonFlag = False
) -> None:
    """End a grant now, with the flows that live by it. One that has ended is left as it is."""
    patience = seconds(timeout)
    with connect() as controller:
        controller.revoke_grant(grant)
        found = controller.grant(grant).value
        if json:
            print_json(found)
        else:
            note(f"Grant {found.id} {'is revoked' if found.revoked else f'had ended at {when(found.expires)}'}.")
        if wait:
            wait_for_hosts(controller, patience, quiet=json)


def _what(grant: TemporaryGrant) -> str:
    return f"{' '.join(grant.from_)} -> {' '.join(grant.to)} {_opens(grant)}".rstrip()


def _opens(grant: TemporaryGrant) -> str:
    """Its flows, or the calls that it names; how these are narrowed is in `show`."""
    if grant.mcp is None:
        return " ".join(grant.ip)
    named = (*grant.mcp.tools, *grant.mcp.prompts, *grant.mcp.resources, *grant.mcp.methods)
    return plain(" ".join(named))


def _limit(text: str) -> tuple[str, str]:
    tool, equals, rate = text.partition("=")
    if not equals:
        raise InputError(f"--limit {text!r} names no tool: write it like 'get_*=500/10s'")
    return tool, rate


def _state(grant: TemporaryGrant) -> Text:
    if grant.problem:
        return Text("idle", style="yellow")
    if grant.state == "active":
        return Text("active", style="green")
    return Text("revoked", style="red") if grant.revoked else Text("ended", style="dim")
