"""/paths and /netchecks."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_name, page
from controller.relays import netchecks
from controller.wire.netcheck import HostNetcheck
from controller.wire.netmap import NodeId
from controller.wire.paths import PathList
from controller.wire.rest import Page

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


@router.get(
    "/netchecks",
    summary="From where hosts are seen, and what is in between, by name",
    description="As hosts that are connected to this controller said last; of every other, why nothing is known.",
    responses=problems(*ACCESS, *PAGING),
)
async def list_netchecks(
    *,
    ctx: Ctx,
    _: Reader,
    node: Annotated[str | None, Query(max_length=100, description="only this host, by id")] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[HostNetcheck]:
    """GET /netchecks."""
    found = netchecks(ctx.hub, ctx.paths, limit + 1, after=by_name(cursor), node=node)
    return page(found, limit, lambda host: [host.name])
