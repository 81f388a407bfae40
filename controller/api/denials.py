"""/denials."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.wire.denials import DenialList

__all__ = ["router"]

router = APIRouter(tags=["audit"])


@router.get("/denials", summary="What hosts denied in the last hour, newest first", responses=problems(*ACCESS))
async def list_denials(
    *,
    ctx: Ctx,
    _: Reader,
    node: Annotated[str | None, Query(max_length=100, description="only what this host denied")] = None,
    limit: Annotated[int, Query(ge=1, le=5000, description="how many at most")] = 500,
) -> DenialList:
    """GET /denials."""
    return DenialList(items=tuple(islice(ctx.denials.newest(node), limit)))
