"""/calls."""

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from pydantic import AfterValidator, AwareDatetime

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_time, page
from controller.store.calls import CallFilter
from controller.wire.call_records import CallEntry, Verdict
from controller.wire.rest import Page

__all__ = ["router"]

router = APIRouter(tags=["audit"])
_NODE: Final = r"^[A-Za-z0-9_-]{1,64}$"
_NAME: Final = r"^[^\x00]*$"


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{moment.isoformat()} is outside of the calendar: use a year from 2 to 9998") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


@router.get("/calls", summary="What gateways recorded of calls, newest first", responses=problems(*ACCESS, *PAGING))
async def list_calls(
    *,
    ctx: Ctx,
    _: Reader,
    caller: Annotated[str | None, Query(pattern=_NODE, description="the id of the node that called")] = None,
    node: Annotated[str | None, Query(pattern=_NODE, description="the id of the host that recorded")] = None,
    service: Annotated[str | None, Query(max_length=63, pattern=_NAME)] = None,
    tool: Annotated[
        str | None, Query(max_length=2048, pattern=_NAME, description="tool, prompt, resource or path, in full")
    ] = None,
    decision: Annotated[list[Verdict] | None, Query(description="repeatable")] = None,
    since: Annotated[Moment | None, Query(description="by the host's clock, inclusive")] = None,
    until: Annotated[Moment | None, Query(description="by the host's clock, exclusive")] = None,
    after: Annotated[
        int | None,
        Query(ge=0, lt=2**63, description="instead: what came after this number, in that order, to follow it"),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[CallEntry]:
    """GET /calls."""
    wanted = CallFilter(caller, node, service, tool, tuple(decision or ()), since, until)
    async with ctx.store.read() as tables:
        if after is not None:
            return Page[CallEntry](items=tuple(await tables.calls.after(wanted, after, limit)))
        entries = await tables.calls.page(wanted, before=by_time(cursor), limit=limit + 1)
    return page(entries, limit, lambda entry: [entry.record.time.isoformat(), entry.number])
