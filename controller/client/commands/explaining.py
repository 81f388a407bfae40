"""policy explain and policy counters: by which grant something may pass, and what the hosts' kernels say of it."""

from typing import Annotated, Final

import typer

from controller.client.errors import InputError
from controller.client.output import detail, note, plain, print_json, print_line, table, when
from controller.client.session import connect
from controller.wire.rest import (
    ExplainedGrant,
    ExplainedHost,
)
from controller.wire.services import CallQuestion

from .help import examples
from .options import JsonFlag, build, json_object

__all__ = ["COUNTERS_EXAMPLES", "EXPLAIN_EXAMPLES", "counters", "explain"]

EXPLAIN_EXAMPLES: Final = examples(
    "wardmesh policy explain --from web1 --to db1 --port tcp:5432",
    "wardmesh policy explain --from web1 --to db1 --port icmp --json",
    'wardmesh policy explain --from agent1 --to svc:github --tool create_issue --args \'{"repo": "web"}\'',
)
COUNTERS_EXAMPLES: Final = examples("wardmesh policy counters", "wardmesh policy counters --node db1 --json")


def explain(
    *,
    source: Annotated[str, typer.Option("--from", metavar="NODE", help="Who opens the flow: a node's name or id.")],
    destination: Annotated[
        str, typer.Option("--to", metavar="NODE", help="To whom: a node's name or id, or svc:NAME.")
    ],
    port: Annotated[str | None, typer.Option(metavar="FLOW", help="tcp:PORT, udp:PORT or icmp.")] = None,
    tool: Annotated[
        str | None, typer.Option(metavar="TOOL", help="Instead: may it call this tool of svc:NAME?")
    ] = None,
    args: Annotated[str, typer.Option(metavar="JSON", help="The tool's arguments, an object.")] = "{}",
    json: JsonFlag = False,
) -> None:
    """Say whether one node may open a flow to another, or call a tool of a service, and by which grants.

    For a flow, also what both hosts have in force. Exit code 1 when the policy denies it.
    """
    if (port is None) == (tool is None):
        raise InputError("say what to explain: --port FLOW, or --tool TOOL of a service")
    if tool is not None:
        _explain_call(source, destination, tool, args, json=json)
        return
    assert port is not None
    with connect() as controller:
        found = controller.explain(source, destination, port)
    if json:
        print_json(found)
    else:
        verdict = "allowed" if found.allowed else "denied: no grant names it"
        policy = f"revision {found.policy_revision}" if found.policy_revision else "none: nothing is allowed"
        detail(
            (
                (f"{found.source.name} -> {found.destination.name} {found.flow}", verdict),
                ("policy", policy),
                *(_grant(grant) for grant in found.grants),
                (f"at {found.source.name}, going out", _in_force(found.source)),
                (f"in {found.source.name}'s kernel", _in_kernel(found.source)),
                (f"at {found.destination.name}, coming in", _in_force(found.destination)),
                (f"in {found.destination.name}'s kernel", _in_kernel(found.destination)),
            )
        )
    if not found.allowed:
        raise typer.Exit(1)


def _explain_call(source: str, service: str, tool: str, args: str, *, json: bool) -> None:
    arguments = json_object(args, "--args", '{"repo": "web"}')
    question = build(lambda: CallQuestion(source=source, service=service, tool=tool, arguments=arguments))
    with connect() as controller:
        found = controller.explain_call(question)
    if json:
        print_json(found)
    else:
        detail(
            (
                (
                    f"{found.source} -> svc:{found.service} {plain(found.tool)}",
                    "allowed" if found.allowed else "denied",
                ),
                ("policy", f"revision {found.policy_revision}"),
                *(_grant(grant) for grant in found.grants),
                *((("because", plain(found.reason)),) if found.reason else ()),
                *(
                    (name, f"{where}: names it, and takes it out by deny_tools")
                    for name, where in map(_grant, found.taken_out_by)
                ),
                *((("needed", plain(found.needed)),) if found.needed else ()),
            )
        )
    if not found.allowed:
        raise typer.Exit(1)


def counters(
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Only this host: its name or id.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show the packets that hosts accepted by each grant, and denied, as their kernels have counted them until now.

    Each host counts since its agentd last wrote the whole table, and both ends of a flow count it.
    """
    with connect() as controller:
        found = controller.policy_counters(node=node)
    if json:
        print_json(found)
        return
    table(
        ("GRANT", "ACCEPTED", "HOSTS"),
        (
            (plain(one.grant), str(one.accepted), " ".join(f"{name}:{count}" for name, count in one.hosts.items()))
            for one in found.grants
        ),
        empty="No packet was accepted by any grant.",
    )
    if found.denied:
        print_line("")
        table(
            ("HOST", "DENIED", "WHERE"),
            (
                (one.node, str(sum(one.denied.values())), " ".join(f"{k}:{n}" for k, n in sorted(one.denied.items())))
                for one in found.denied
            ),
            empty="",
        )
    if found.silent:
        note(f"Not counted, as they did not answer in time: {' '.join(found.silent)}.")
    if not found.asked:
        note("No host is online.")


def _grant(grant: ExplainedGrant) -> tuple[str, str]:
    """What it is called, and where it stands: in the document, or with whom who made it."""
    until = f", until {when(grant.expires)}" if grant.expires else ""
    note = f"{': ' if grant.note else ''}{plain(grant.note)}"
    if grant.line is None:
        return f"temporary grant {grant.id}", f"by {plain(grant.actor or 'unknown')}{until}{note}"
    return f"grant {grant.id}", f"line {grant.line}, column {grant.column}{until}{note}"


def _in_force(host: ExplainedHost) -> str:
    """What the host should do by its newest map, and whether it has that map."""
    verdict = "allowed" if host.allows else "denied"
    if host.state != "active":
        return f"{verdict}; the node is {host.state}"
    if host.current:
        return f"{verdict}, in force (revision {host.in_force})"
    had = f"revision {host.in_force}" if host.in_force is not None else "nothing known"
    problem = f", its error: {plain(host.error)}" if host.error else ""
    if not host.online:
        return f"{verdict}, once it has the newest map; it is offline, with {had} in force{problem}"
    return f"{verdict}, once it has the newest map; it still has {had} in force{problem}"


def _in_kernel(host: ExplainedHost) -> str:
    """What the host read back from its kernel when it was asked."""
    kernel = host.kernel
    if kernel is None:
        return "no answer" if host.online else "no answer: it is offline"
    verdict = {True: "passes", False: "does not pass", None: "not known"}[kernel.passes]
    by = f" by grant {plain(kernel.grant)}" if kernel.grant else ""
    why = f": {plain(kernel.why)}" if kernel.why else ""
    return f"{verdict}{by}{f' (revision {kernel.revision})' if kernel.revision is not None else ''}{why}"
