"""/tokens."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from controller.api.access import ACCESS, Admin, Ctx
from controller.api.editing import ONCE, MaybeOnce, only_once
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_age, page
from controller.problems import Kind
from controller.wire.rest import AdminToken, AdminTokenCreate, AdminTokenCreated, Page

__all__ = ["router"]

router = APIRouter(tags=["tokens"])
TokenId = Annotated[str, Path(max_length=64, description="the token's id", examples=["b81f0a6cc2d94e37"])]

_EXAMPLES = {"dashboard": {"value": {"note": "dashboard", "role": "read", "ttl": 2592000}}}


@router.post(
    "/tokens",
    status_code=201,
    summary="Create an admin token",
    description="The token is in this answer and nowhere else.",
    responses=problems(*ACCESS, *ONCE, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def create_token(
    ctx: Ctx,
    admin: Admin,
    wanted: Annotated[AdminTokenCreate, Body(openapi_examples=_EXAMPLES)],
    once: MaybeOnce,
    response: Response,
) -> AdminTokenCreated:
    """POST /tokens."""
    return await only_once(AdminTokenCreated, response, ctx.tokens.create(admin.actor, wanted, once))


@router.get("/tokens", summary="List admin tokens, newest first", responses=problems(*ACCESS, *PAGING))
async def list_tokens(ctx: Ctx, _: Admin, limit: Limit = 100, cursor: Cursor = None) -> Page[AdminToken]:
    """GET /tokens."""
    tokens = await ctx.tokens.page(before=by_age(cursor), limit=limit + 1)
    return page(tokens, limit, lambda token: [token.created.isoformat(), token.id])


@router.delete(
    "/tokens/{token_id}",
    status_code=204,
    summary="Revoke an admin token",
    responses=problems(*ACCESS, Kind.NOT_FOUND),
)
async def revoke_token(ctx: Ctx, admin: Admin, token_id: TokenId) -> None:
    """DELETE /tokens/{id}."""
    await ctx.tokens.revoke(admin.actor, token_id)
