"""/audit."""

from typing import Annotated, Final

from fastapi import APIRouter, Query

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_number, page
from controller.audit import Action
from controller.wire.rest import AuditEntry, Page

__all__ = ["router"]

router = APIRouter(tags=["audit"])
_WHO: Final = r"^[a-z]+(:[A-Za-z0-9_-]{1,100})?$"


@router.get("/audit", summary="What was changed, newest first", responses=problems(*ACCESS, *PAGING))
async def list_audit(
    *,
    ctx: Ctx,
    _: Reader,
    action: Action | None = None,
    subject: Annotated[str | None, Query(pattern=_WHO, examples=["node:6f1c9a5e0b7d2f48"])] = None,
    actor: Annotated[str | None, Query(pattern=_WHO, examples=["token:wma_4be1f00d27"])] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[AuditEntry]:
    """GET /audit."""
    async with ctx.store.read() as tables:
        entries = await tables.ledger.audit_page(
            before=by_number(cursor), limit=limit + 1, action=action, subject=subject, actor=actor
        )
    return page(entries, limit, lambda entry: [entry.seq])
