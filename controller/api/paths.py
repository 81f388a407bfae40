"""/paths."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.wire.netmap import NodeId
from controller.wire.paths import PathList

__all__ = ["router"]

router = APIRouter(tags=["nodes"])


@router.get("/paths", summary="How connected hosts reach their peers", responses=problems(*ACCESS))
async def list_paths(
    *,
    ctx: Ctx,
    _: Reader,
    node: Annotated[str | None, Query(max_length=100, description="only from this host")] = None,
    peer: Annotated[str | None, Query(max_length=100, description="only to this one")] = None,
    limit: Annotated[int, Query(ge=1, le=20_000, description="how many at most")] = 5000,
) -> PathList:
    """GET /paths."""

    def is_wanted(host: NodeId) -> bool:
        return node in {None, host} and ctx.hub.record(host) is not None and ctx.hub.here(host).online

    return PathList(items=tuple(islice(ctx.paths.paths(is_wanted, peer), limit)))
