"""Options that several commands share, and how their values are read."""

import re
from collections.abc import Callable
from datetime import timedelta
from json import loads
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from controller.client.errors import InputError

__all__ = [
    "FileArgument",
    "JsonFlag",
    "NodeArgument",
    "YesFlag",
    "build",
    "json_object",
    "seconds",
]

M = TypeVar("M", bound=BaseModel)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON, also for errors.")]
YesFlag = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="Its name or id.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="YAML or JSON; - is standard input.")]

_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION: Final = re.compile(r"([0-9]{1,9})([smhdw]?)")


def seconds(text: str) -> int:
    """`90s`, `15m`, `12h`, `7d`, `2w`, or a bare number of seconds. Raises InputError."""
    match = _DURATION.fullmatch(text.strip())
    if match is None or not int(match[1]):
        raise InputError(f"{text!r} is not a duration: write it like 90s, 15m, 12h, 7d or 2w")
    return int(timedelta(seconds=int(match[1]) * _SECONDS[match[2]]).total_seconds())


def json_object(text: str, option: str, like: str) -> dict[str, Any]:
    """What an option says as a JSON object. Raises InputError."""
    try:
        value = loads(text, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{option} {text!r} is not JSON that everybody reads alike: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{option} {text!r} is not a JSON object: write it like '{like}'")
    return value


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key comes twice: a reader takes the first or the last, and a gateway refuses it."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found


def build(make: Callable[[], M]) -> M:
    """A request from what a person typed; what the wire types refuse becomes an InputError."""
    try:
        return make()
    except ValidationError as error:
        raise InputError.from_validation(error) from error
