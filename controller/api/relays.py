"""/relays."""

from typing import Annotated

from fastapi import APIRouter, Path

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_name, page
from controller.problems import Kind
from controller.relays import relay, relays
from controller.wire.relay_use import MeshRelay, RelayDetail
from controller.wire.rest import Page

__all__ = ["router"]

router = APIRouter(tags=["nodes"])
_Name = Annotated[str, Path(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="its name or id", examples=["relay-eu"])]


@router.get(
    "/relays",
    summary="Hosts that relay by the policy in force, by name",
    description="Who uses them is known of hosts that are connected to this controller.",
    responses=problems(*ACCESS, *PAGING),
)
async def list_relays(ctx: Ctx, _: Reader, limit: Limit = 100, cursor: Cursor = None) -> Page[MeshRelay]:
    """GET /relays."""
    after = by_name(cursor)
    found = [one for one in relays(ctx.hub, ctx.paths) if after is None or one.name > after]
    return page(found, limit, lambda one: [one.name])


@router.get(
    "/relays/{name}",
    summary="Show a relay: who uses it, and what it passed on",
    description="Its kernel is asked, for two seconds at most.",
    responses=problems(*ACCESS, Kind.NOT_FOUND),
)
async def get_relay(ctx: Ctx, _: Reader, name: _Name) -> RelayDetail:
    """GET /relays/{name}."""
    return await relay(ctx.hub, ctx.paths, ctx.questions, name)
