"""Pages: `limit` and an opaque `cursor` that says where the last page ended, whatever was added since."""

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Query
from pydantic import BaseModel

from controller.problems import Kind, Refused
from controller.wire.rest import Page

__all__ = ["PAGING", "Cursor", "Limit", "by_age", "by_name", "by_number", "by_time", "page"]

T = TypeVar("T", bound=BaseModel)
PAGING = (Kind.INVALID_CURSOR,)
Limit = Annotated[int, Query(ge=1, le=500, description="how many at most")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next` of the page before")]


def page(items: Sequence[T], limit: int, position: Callable[[T], list[str | int]]) -> Page[T]:
    """A page of `items`, of which there is one more than `limit` when another page follows."""
    shown = tuple(items[:limit])
    more = len(items) > limit
    return Page[T](items=shown, next=_encode(position(shown[-1])) if more else None)


def by_name(cursor: str | None) -> str | None:
    """Where a list by name goes on."""
    if cursor is None:
        return None
    match _decode(cursor):
        case [str(name)]:
            return name
    raise _invalid(cursor)


def by_number(cursor: str | None) -> int | None:
    """Where a list by number goes on."""
    if cursor is None:
        return None
    match _decode(cursor):
        case [int(number)] if 0 <= number < 2**63:
            return number
    raise _invalid(cursor)


def by_age(cursor: str | None) -> tuple[datetime, str] | None:
    """Where a list by age and id goes on."""
    if cursor is None:
        return None
    match _decode(cursor):
        case [str(created), str(identifier)]:
            return _moment(created, cursor), identifier
    raise _invalid(cursor)


def by_time(cursor: str | None) -> tuple[datetime, int] | None:
    """Where a list by time and number goes on."""
    if cursor is None:
        return None
    match _decode(cursor):
        case [str(time), int(number)] if 0 <= number < 2**63:
            return _moment(time, cursor), number
    raise _invalid(cursor)


def _moment(text: str, cursor: str) -> datetime:
    """In UTC: what cannot be said there is no moment that a row has."""
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise _invalid(cursor) from error
    raise _invalid(cursor)


def _encode(position: list[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(position, separators=(",", ":")).encode()).decode().rstrip("=")


def _decode(cursor: str) -> Any:
    try:
        return json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise _invalid(cursor) from error


def _invalid(cursor: str) -> Refused:
    return Refused(Kind.INVALID_CURSOR, f"{cursor!r} is not a cursor of this list: send `next` of the page before")
