"""What commands print: tables for people, JSON for scripts, problems on standard error.

Text that came from elsewhere (notes, errors of hosts, audit values) may contain anything: `plain` makes control
characters visible, so that nobody's note can repaint an admin's terminal.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .errors import ClientError

__all__ = [
    "ago",
    "detail",
    "lasting",
    "milliseconds",
    "note",
    "plain",
    "print_json",
    "print_line",
    "print_problem",
    "table",
    "when",
]

Cell = str | Text


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, Any], *, line: bool = False) -> None:
    """A wire model as the API writes it; a list as a JSON array. `line`: on one line, for streams."""
    plain_value: Any
    if isinstance(value, BaseModel):
        plain_value = value.model_dump(mode="json")
    elif isinstance(value, dict):
        plain_value = value
    else:
        plain_value = [item.model_dump(mode="json") for item in value]
    text = json.dumps(plain_value, indent=None if line else 2, ensure_ascii=False)
    # JSON escapes C0 only; what else a terminal may obey (C1, directions of text) stands in strings alone.
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text), flush=line)


def print_line(text: str) -> None:
    """The result itself, as it is: what a pipe should receive."""
    print(text, flush=True)


def note(text: str) -> None:
    """Something for the person, which is not the result: standard error."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text(text))


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], *, empty: str) -> None:
    """A table without borders; `empty` says what to do when there are no rows."""
    filled = list(rows)
    if not filled:
        note(empty)
        return
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in filled:
        grid.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    _print(grid)


def detail(pairs: Iterable[tuple[str, Cell]]) -> None:
    """One object, a line a field."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for label, value in pairs:
        grid.add_row(Text(label, style="bold"), Text(value) if isinstance(value, str) else value)
    _print(grid)


def print_problem(error: ClientError, *, as_json: bool) -> None:
    """The problem on standard error: JSON as it is on the wire, or a sentence and its parts."""
    problem = error.problem
    if as_json:
        print(json.dumps(problem.model_dump(mode="json"), indent=2, ensure_ascii=False), file=sys.stderr)
        return
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(
        Text.assemble((plain(problem.title), "bold red"), ": " if problem.detail else "", plain(problem.detail))
    )
    for item in problem.errors:
        place = item.get("field") or item.get("pointer") or _position(item)
        message = plain(str(item.get("message") or item.get("detail") or json.dumps(item)))
        console.print(Text(f"  {plain(str(place))}: {message}" if place else f"  {message}"))


def _position(item: dict[str, Any]) -> str:
    return ":".join(str(item[key]) for key in ("line", "column") if item.get(key) is not None)


def plain(text: str) -> str:
    """`text` with control characters made visible."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def when(time: datetime | None) -> str:
    """An instant in UTC, to the second."""
    return "-" if time is None else time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


_UNITS: Final = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def ago(time: datetime | None, now: datetime) -> str:
    """How far an instant is from `now`, in one unit: `3 min ago`, `in 2 h`."""
    if time is None:
        return "-"
    seconds = int((now - time).total_seconds())
    if seconds == 0:
        return "now"
    return f"{lasting(seconds)} ago" if seconds > 0 else f"in {lasting(seconds)}"


def lasting(seconds: float) -> str:
    """A time in one unit: `3 min`, `less than 1 s`."""
    whole = int(abs(seconds))
    size, unit = next(((size, unit) for size, unit in _UNITS if whole >= size), (1, "s"))
    return f"{whole // size} {unit}" if whole else "less than 1 s"


def milliseconds(seconds: float | None) -> str:
    """A round trip time; `-` for none."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def _print(grid: Table) -> None:
    # A pipe has no width: a line per row, whole, so that grep and cut work.
    terminal = sys.stdout.isatty()
    console = Console(highlight=False) if terminal else Console(highlight=False, width=10_000, soft_wrap=True)
    with console.capture() as captured:
        console.print(grid)
    for line in captured.get().splitlines():
        print(line.rstrip())
