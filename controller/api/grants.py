"""/grants."""

from typing import Annotated, Final

from fastapi import APIRouter, Body, Path, Query, Response

from controller.api.access import ACCESS, Admin, Ctx, Reader
from controller.api.editing import EDITING, ONCE, Expected, ExpectedIfAny, MaybeOnce, etag, only_once
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_age, page
from controller.problems import Kind
from controller.wire.grants import GrantCreate, GrantPatch, GrantState, TemporaryGrant
from controller.wire.rest import Page

__all__ = ["router"]

router = APIRouter(tags=["grants"])
_Id = Annotated[str, Path(max_length=64, description="the grant's id", examples=["t4f0c2a91d7be5360"])]
_State = Annotated[GrantState | None, Query(description="only those that are in force, or those that have ended")]

_CREATE: Final = {
    "an hour for a database's owner": {
        "value": {
            "from": ["node:alice"],
            "to": ["tag:db"],
            "ip": ["tcp:5432"],
            "ttl": 3600,
            "reason": "INC-1234: look at slow queries",
        }
    },
    "half an hour of one tool": {
        "value": {
            "from": ["node:agent1"],
            "to": ["svc:github"],
            "mcp": {"tools": ["create_issue"], "args": {"create_issue": {"repo": {"equals": "web"}}}},
            "ttl": 1800,
            "reason": "INC-1234: file what was found",
        }
    },
}
_PATCH: Final = {"two hours from now": {"value": {"ttl": 7200}}}


@router.post(
    "/grants",
    status_code=201,
    summary="Grant access for a while",
    description="Beside the policy document, with entries as in one of its grants. It ends by itself, live flows, too.",
    responses=problems(*ACCESS, *ONCE, Kind.GRANT_REFUSED, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def create_grant(
    ctx: Ctx,
    admin: Admin,
    wanted: Annotated[GrantCreate, Body(openapi_examples=_CREATE)],
    once: MaybeOnce,
    response: Response,
) -> TemporaryGrant:
    """POST /grants."""
    grant = await only_once(TemporaryGrant, response, ctx.grants.create(admin.actor, wanted, once))
    response.headers["ETag"] = etag(grant.revision)
    return grant


@router.get(
    "/grants",
    summary="List temporary grants, newest first",
    responses=problems(*ACCESS, *PAGING),
)
async def list_grants(
    ctx: Ctx, _: Reader, state: _State = None, limit: Limit = 100, cursor: Cursor = None
) -> Page[TemporaryGrant]:
    """GET /grants."""
    grants = await ctx.grants.page(before=by_age(cursor), limit=limit + 1, state=state)
    return page(grants, limit, lambda grant: [grant.created.isoformat(), grant.id])


@router.get("/grants/{grant_id}", summary="One temporary grant", responses=problems(*ACCESS, Kind.NOT_FOUND))
async def get_grant(ctx: Ctx, _: Reader, grant_id: _Id, response: Response) -> TemporaryGrant:
    """GET /grants/{id}."""
    grant = await ctx.grants.get(grant_id)
    response.headers["ETag"] = etag(grant.revision)
    return grant


@router.patch(
    "/grants/{grant_id}",
    summary="Extend a temporary grant",
    description="It then ends `ttl` seconds from now. Never sooner than it would have.",
    responses=problems(
        *ACCESS, *EDITING, Kind.NOT_FOUND, Kind.GRANT_REFUSED, Kind.GRANT_ENDED, Kind.BAD_REQUEST, Kind.TOO_LARGE
    ),
)
async def extend_grant(
    *,
    ctx: Ctx,
    admin: Admin,
    grant_id: _Id,
    wanted: Annotated[GrantPatch, Body(openapi_examples=_PATCH)],
    expected: Expected,
    response: Response,
) -> TemporaryGrant:
    """PATCH /grants/{id}."""
    grant = await ctx.grants.extend(admin.actor, grant_id, wanted.ttl, expected)
    response.headers["ETag"] = etag(grant.revision)
    return grant


@router.delete(
    "/grants/{grant_id}",
    status_code=204,
    summary="Revoke a temporary grant",
    description="Flows that live by it end, too. Nothing happens to one that has ended already.",
    responses=problems(*ACCESS, Kind.NOT_FOUND, Kind.PRECONDITION_FAILED),
)
async def revoke_grant(ctx: Ctx, admin: Admin, grant_id: _Id, expected: ExpectedIfAny) -> None:
    """DELETE /grants/{id}."""
    await ctx.grants.revoke(admin.actor, grant_id, expected)
