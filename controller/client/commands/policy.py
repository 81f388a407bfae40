"""policy: show, check, apply. The document is text that belongs in version control; these commands carry it."""

from pathlib import Path
from typing import Annotated

import typer

from controller.client.errors import ClientError, InputError, RefusedError
from controller.client.files import read_text
from controller.client.output import note, plain, print_json, print_line, when
from controller.client.session import connect
from controller.wire.rest import PolicyFinding, PolicyReport, PolicyWrite, Problem

from .options import FileArgument, JsonFlag, build, examples, group

__all__ = ["app"]

app = group(
    "Who may reach what. Without a policy, nothing is allowed.",
    "wardmesh policy show > policy.yaml",
    "wardmesh policy check policy.yaml",
    "wardmesh policy apply policy.yaml",
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
    )
)
def apply(
    file: FileArgument,
    if_revision: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Only if the policy in force is still this revision.")
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Put a document in force. It is refused, and nothing changes, when it has errors or its own tests fail."""
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
                raise RefusedError(_placed(error.problem, file)) from error
    if json:
        print_json(applied)
    elif changed:
        note(f"Policy revision {applied.revision} is in force.")
    else:
        note(f"That is already the policy in force, revision {applied.revision}: nothing changed.")


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


def _placed(problem: Problem, file: Path) -> Problem:
    """The same problem with the file's name before each line number, as compilers print it."""
    named = tuple(
        item | {"field": ":".join(str(p) for p in (_name(file), item.get("line"), item.get("column")) if p is not None)}
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
