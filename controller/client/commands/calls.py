"""audit calls: what gateways recorded of calls to MCP servers. Added to the group `audit`.

Every text in a record was chosen by a caller or a server: nothing is printed before `plain` has seen it.
"""

import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Annotated, Final

import typer

from controller.client.errors import InputError, NotFoundError
from controller.client.output import plain, print_json, print_line, table
from controller.client.rest import RestClient
from controller.client.session import connect
from controller.wire.call_records import CallEntry, CallRecord

from .help import examples
from .options import JsonFlag, seconds

__all__ = ["calls"]

_POLL: Final = 1.0  # seconds between two looks for new records
_NEAR: Final = 500
_ALLOWED: Final = "gateway:call:allowed"
_ENDED: Final = "gateway:call:ended"
_COLUMNS: Final = ("TIME", "CALLER", "SERVICE", "CALL", "DECISION", "GRANT", "MS", "NOTE")
_LONGEST: Final = 120  # characters of a text in a line
EXAMPLES: Final = examples(
    "wardmesh audit calls --denied",
    "wardmesh audit calls --service github --tool create_issue --since 1h",
    "wardmesh audit calls --caller agent-1 --follow",
    "wardmesh audit calls --since 2026-01-01T00:00Z --until 2026-01-02T00:00Z --json",
)

Filters = dict[str, str | list[str] | None]


def calls(
    *,
    caller: Annotated[str | None, typer.Option(metavar="NODE", help="Only calls of this node: its name or id.")] = None,
    node: Annotated[str | None, typer.Option(metavar="NODE", help="Only what this host recorded.")] = None,
    service: Annotated[str | None, typer.Option(help="Only calls to this service.")] = None,
    tool: Annotated[str | None, typer.Option(help="Only this tool, prompt, resource or path, in full.")] = None,
    denied: Annotated[bool, typer.Option("--denied", help="Only what was denied or refused.")] = False,
    since: Annotated[
        str | None, typer.Option(metavar="WHEN", help="From then on: 15m, 2h, 7d ago, or 2026-01-31T12:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Before then.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many lines, newest first.")] = 50,
    every: Annotated[
        bool, typer.Option("--all", help="Every record as it was written: a call's decision and its end are two.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then print new calls as they come.")] = False,
    json: JsonFlag = False,
) -> None:
    """List calls to MCP servers, newest first; with --follow, oldest first and one line (or JSON object) each.

    A line is a call: with its milliseconds when it has ended, `running` while it has not. --json has every record.
    """
    with connect() as controller:
        filters: Filters = {
            "caller": _node_id(controller, caller),
            "node": _node_id(controller, node),
            "service": service,
            "tool": tool,
            "decision": ["denied", "refused"] if denied else None,
            "since": _moment(since),
            "until": _moment(until),
        }
        every = every or json
        last = _last(controller) if follow else None
        known = (entry for entry in controller.calls(filters) if last is None or entry.number <= last)
        found = list(islice(_lines(known, every=every), limit))
        if last is None:
            _show(found, json=json)
            return
        _print(reversed(found), json=json)
        _follow(controller, filters, last, every=every, json=json)


def _last(controller: RestClient) -> int:
    """The number of the record that came last, which need not be the newest by its host's clock, but is near it."""
    number = max((entry.number for entry in islice(controller.calls({}), _NEAR)), default=0)
    while later := controller.calls_after(number, {}):
        number = later[-1].number
    return number


def _follow(controller: RestClient, filters: Filters, number: int, *, every: bool, json: bool) -> None:
    while True:
        entries = controller.calls_after(number, filters)
        if entries:
            number = entries[-1].number
            # Here a call is told when it has ended.
            _print((entry for entry in entries if every or entry.record.event != _ALLOWED), json=json)
        else:
            time.sleep(_POLL)


def _lines(entries: Iterable[CallEntry], *, every: bool) -> Iterator[CallEntry]:
    """One entry a call, unless `every`: its end, or while there is none its decision. Newest first, as they come."""
    ended: set[str | None] = set()
    for entry in entries:
        record = entry.record
        if record.event == _ENDED:
            ended.add(record.id)
        if every or record.event != _ALLOWED or record.id not in ended:
            yield entry


def _show(entries: list[CallEntry], *, json: bool) -> None:
    if json:
        print_json(entries)
        return
    table(_COLUMNS, map(_row, entries), empty="No calls: see `wardmesh audit calls --help`.")


def _print(entries: Iterable[CallEntry], *, json: bool) -> None:
    for entry in entries:
        if json:
            print_json(entry, line=True)
        else:
            print_line("  ".join(_row(entry)))


def _row(entry: CallEntry) -> tuple[str, ...]:
    record = entry.record
    moment = record.time.astimezone(UTC)
    return (
        moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z",
        record.caller.name if record.caller is not None else "-",
        f"{record.service} (claimed)" if entry.claimed else record.service or "-",
        _call(record),
        record.verdict or "-",
        _text(record.decision.allow) if record.decision is not None and record.decision.allow else "-",
        _milliseconds(record),
        _note(record),
    )


def _call(record: CallRecord) -> str:
    """The method and what it is applied to; for what is no call, what happened."""
    if record.call is None:
        return record.event.removeprefix("gateway:")
    name = f" {_text(record.call.name)}" if record.call.name is not None else ""
    return _text(record.call.method) + name


def _milliseconds(record: CallRecord) -> str:
    if record.outcome is not None:
        return f"{record.outcome.seconds * 1000:.1f}"
    return "running" if record.event == _ALLOWED else "-"


def _note(record: CallRecord) -> str:
    """What a person would ask next: why not, or what went wrong."""
    said: list[str] = []
    if record.call is not None and record.event not in {_ALLOWED, _ENDED, "gateway:call:denied"}:
        said.append(record.event.removeprefix("gateway:"))
    if record.decision is not None and record.decision.message is not None:
        said.append(_text(record.decision.message))
    if record.outcome is not None:
        if record.outcome.error is not None:
            said.append(f"error {record.outcome.error}")
        if record.outcome.problem is not None:
            said.append(_text(record.outcome.problem))
    if record.detail is not None:
        said.append(_text(record.detail))
    said += [
        f"{count} {what}"
        for count, what in (
            (record.dropped, "records were not kept"),
            (record.refused, "calls were refused because they could not be recorded"),
            (record.torn_bytes, "bytes were lost in a crash"),
        )
        if count
    ]
    return "; ".join(said) or "-"


def _text(value: str) -> str:
    shown = plain(value)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _node_id(controller: RestClient, reference: str | None) -> str | None:
    """A node's id; of one that is gone, the id itself, because what it did is still on record."""
    if reference is None:
        return None
    try:
        return controller.find_node(reference).value.id
    except NotFoundError:
        if next(iter(controller.calls({"caller": reference})), None) or next(
            iter(controller.calls({"node": reference})), None
        ):
            return reference
        raise


def _moment(text: str | None) -> str | None:
    """A duration before now, or an instant; without a zone it is in UTC. Raises InputError."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        try:
            moment = datetime.now(UTC) - timedelta(seconds=seconds(text))
        except (InputError, OverflowError) as error:
            raise InputError(
                f"{text!r} is no moment: write how long ago (15m, 2h, 7d) or when (2026-01-31T12:00Z)"
            ) from error
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).isoformat()
