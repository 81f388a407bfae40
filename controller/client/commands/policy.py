"""policy: show, check, diff, apply, roll back, and the schema of the document.

The document is text that belongs in version control; these commands carry it.
"""

from itertools import islice, takewhile
from pathlib import Path
from typing import Annotated

import typer

from controller.client.errors import ClientError, InputError, RefusedError
from controller.client.files import read_text
from controller.client.output import note, plain, print_json, print_line, table, when
from controller.client.session import connect
from controller.wire.rest import (
    PolicyDocument,
    PolicyFinding,
    PolicyReport,
    PolicyWrite,
    Problem,
)

from . import explaining
from .help import examples, group
from .options import FileArgument, JsonFlag, build, seconds
from .waiting import wait_for_hosts

__all__ = ["app"]

app = group(
    "Who may reach what. Without a policy, nothing is allowed.",
    "wardmesh policy show > policy.yaml",
    "wardmesh policy check policy.yaml",
    "wardmesh policy diff policy.yaml",
    "wardmesh policy apply policy.yaml",
    "wardmesh policy explain --from web1 --to db1 --port tcp:5432",
)


@app.command(epilog=examples("wardmesh policy show", "wardmesh policy show > policy.yaml"))
def show(json: JsonFlag = False) -> None:
    """Print the policy in force, as it was written."""
    with connect() as controller:
        policy = controller.policy().value
    if json:
        print_json(policy)
        return
    if policy.text:
        print_line(policy.text.rstrip("\n"))
        note(f"Revision {policy.revision}, applied {when(policy.applied)} by {plain(policy.actor or 'unknown')}.")
    else:
        note("There is no policy: nothing is allowed. `wardmesh policy apply FILE` sets one.")


@app.command(epilog=examples("wardmesh policy check policy.yaml", "wardmesh policy check - < policy.yaml"))
def check(file: FileArgument, json: JsonFlag = False) -> None:
    """Check a document against the present nodes; changes nothing. Exit code 1 when it would be refused."""
    with connect() as controller:
        report = controller.check_policy(_read(file))
    if json:
        print_json(report)
    else:
        for finding in report.findings:
            note(_located(file, finding))
        note(_verdict(file, report))
    if not report.ok:
        raise typer.Exit(1)


@app.command(
    epilog=examples(
        "wardmesh policy apply policy.yaml",
        "wardmesh policy apply policy.yaml --if-revision 17",
        "wardmesh policy apply policy.yaml --wait --timeout 30s",
    )
)
def apply(
    file: FileArgument,
    if_revision: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only if the policy in force is still this revision.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until every host that is online has it in force.")] = False,
    timeout: Annotated[str, typer.Option(metavar="DURATION", help="How long to wait, like 30s or 5m.")] = "60s",
    json: JsonFlag = False,
) -> None:
    """Put a document in force. It is refused, and nothing changes, when it has errors or its own tests fail.

    With --wait, exit code 1 when a host does not have it in force in time; the policy stays applied.
    """
    patience = seconds(timeout)
    document = _read(file)
    with connect() as controller:
        current = controller.policy()
        if if_revision is not None and current.value.revision != if_revision:
            raise ClientError(_stale(if_revision, current.value.revision, current.value.actor))
        if current.value.text == document.text:
            applied, changed = current.value, False
        else:
            try:
                applied, changed = controller.put_policy(document, current.etag), True
            except RefusedError as error:
                raise RefusedError(_placed(error.problem, _name(file))) from error
        if json:
            print_json(applied)
        elif changed:
            note(f"Policy revision {applied.revision} is in force.")
        else:
            note(f"That is already the policy in force, revision {applied.revision}: nothing changed.")
        if wait:
            wait_for_hosts(controller, patience, quiet=json)


@app.command(
    epilog=examples(
        "wardmesh policy diff policy.yaml", "wardmesh policy show | sed s/443/8443/ | wardmesh policy diff -"
    )
)
def diff(file: FileArgument, json: JsonFlag = False) -> None:
    """Show which nodes would gain or lose what access to which others; changes nothing."""
    document = _read(file)
    with connect() as controller:
        try:
            found = controller.diff_policy(document)
        except RefusedError as error:
            raise RefusedError(_placed(error.problem, _name(file))) from error
    if json:
        print_json(found)
        return
    table(
        ("FROM", "TO", "GAINS", "LOSES"),
        (
            (change.source, change.destination, ", ".join(change.gained) or "-", ", ".join(change.lost) or "-")
            for change in found.changes
        ),
        empty="No access changes between the nodes that are active now.",
    )
    if found.pairs > len(found.changes):
        note(f"These are the first {len(found.changes)} of {found.pairs} pairs of nodes.")


@app.command(epilog=examples("wardmesh policy schema > policy.schema.json"))
def schema() -> None:
    """Print the JSON Schema of policy documents, for editors.

    A document that begins with `# yaml-language-server: $schema=policy.schema.json` is then completed and checked in
    every editor that uses that server.
    """
    with connect() as controller:
        print_json(controller.policy_schema())


@app.command(epilog=examples("wardmesh policy history", "wardmesh policy history --limit 1 --json"))
def history(
    limit: Annotated[int, typer.Option(min=1, help="How many documents, newest first.")] = 20,
    json: JsonFlag = False,
) -> None:
    """List the policies that were applied, newest first; the first is in force. With --json, their texts, too."""
    with connect() as controller:
        documents = list(islice(controller.policies(), limit))
    if json:
        print_json(documents)
        return
    table(
        ("REVISION", "APPLIED", "ACTOR", "LINES"),
        (
            (str(one.revision), when(one.applied), plain(one.actor or "-"), str(len(one.text.splitlines())))
            for one in documents
        ),
        empty="No policy was ever applied. `wardmesh policy apply FILE` sets one.",
    )


@app.command(epilog=examples("wardmesh policy rollback 17"))
def rollback(
    revision: Annotated[int, typer.Argument(metavar="REVISION", min=1, help="One of `wardmesh policy history`.")],
    json: JsonFlag = False,
) -> None:
    """Put an earlier document in force again, as a new revision. It is checked like any other."""
    with connect() as controller:
        current = controller.policy()
        newer = takewhile(lambda one: one.revision >= revision, controller.policies())
        found = next((one for one in newer if one.revision == revision), None)
        if found is None:
            raise ClientError(_unknown(revision))
        if current.value.text == found.text:
            applied, said = current.value, f"That is already the policy in force, revision {current.value.revision}."
        else:
            wanted = build(lambda: PolicyWrite(text=found.text))
            try:
                pairs = controller.diff_policy(wanted).pairs
                applied = controller.put_policy(wanted, current.etag)
            except RefusedError as error:
                raise RefusedError(_placed(error.problem, f"revision {revision}")) from error
            said = _rolled_back(revision, current.value, applied, pairs)
    if json:
        print_json(applied)
    else:
        note(said)


app.command(epilog=explaining.EXPLAIN_EXAMPLES)(explaining.explain)
app.command(epilog=explaining.COUNTERS_EXAMPLES)(explaining.counters)


def _rolled_back(revision: int, before: PolicyDocument, after: PolicyDocument, pairs: int) -> str:
    return (
        f"The document of revision {revision} is in force again, as revision {after.revision}, instead of revision "
        f"{before.revision}; that changes access between {pairs} pairs of nodes."
    )


def _unknown(revision: int) -> Problem:
    return Problem(
        type="urn:wardmesh:problem:client:no-such-revision",
        title="No such policy",
        status=0,
        detail=f"no policy was applied as revision {revision}: `wardmesh policy history` lists those that were",
    )


def _read(file: Path) -> PolicyWrite:
    text = read_text(file)
    if not text.strip():
        raise InputError(f"{_name(file)} is empty: a policy that allows nothing is written `grants: []`")
    return build(lambda: PolicyWrite(text=text))


def _name(file: Path) -> str:
    return "standard input" if str(file) == "-" else str(file)


def _located(file: Path, finding: PolicyFinding) -> str:
    place = ":".join(str(part) for part in (_name(file), finding.line, finding.column) if part is not None)
    return f"{place}: {finding.severity}: {plain(finding.message)}"


def _verdict(file: Path, report: PolicyReport) -> str:
    counts = f"{report.grants} grants, {report.tests} tests"
    return f"{_name(file)} would be accepted ({counts})." if report.ok else f"{_name(file)} would be refused."


def _placed(problem: Problem, name: str) -> Problem:
    """The same problem with the document's name before each line number, as compilers print it."""
    named = tuple(
        item | {"field": ":".join(str(p) for p in (name, item.get("line"), item.get("column")) if p is not None)}
        if item.get("line") is not None
        else item
        for item in problem.errors
    )
    return problem.model_copy(update={"errors": named})


def _stale(expected: int, actual: int, actor: str | None) -> Problem:
    return Problem(
        type="urn:wardmesh:problem:client:stale",
        title="The policy has changed",
        status=0,
        detail=f"revision {actual} by {actor or 'unknown'} is in force, not {expected}: look at it with "
        "`wardmesh policy show`, then apply again",
    )
