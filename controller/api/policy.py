"""/policy."""

from typing import Annotated

from fastapi import APIRouter, Body, Response

from controller.api.access import ACCESS, Admin, Ctx, Reader
from controller.api.editing import EDITING, Expected, etag
from controller.api.errors import problems
from controller.problems import Kind
from controller.wire.rest import PolicyDocument, PolicyReport, PolicyWrite

__all__ = ["router"]

router = APIRouter(tags=["policy"])

_EXAMPLES = {
    "agents may call tools": {"value": {"text": 'grants:\n  - {from: tag:agents, to: tag:tools, ip: ["tcp:8000"]}\n'}}
}
_Write = Annotated[PolicyWrite, Body(openapi_examples=_EXAMPLES)]


@router.get("/policy", summary="The policy in force", responses=problems(*ACCESS))
async def get_policy(ctx: Ctx, _: Reader, response: Response) -> PolicyDocument:
    """GET /policy."""
    document = await ctx.policy.current()
    response.headers["ETag"] = etag(document.revision)
    return document


@router.put(
    "/policy",
    summary="Replace the policy",
    description="Refused, with findings, unless the document checks and its own tests pass.",
    responses=problems(*ACCESS, *EDITING, Kind.POLICY_REFUSED, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def put_policy(ctx: Ctx, admin: Admin, wanted: _Write, expected: Expected, response: Response) -> PolicyDocument:
    """PUT /policy."""
    document = await ctx.policy.apply(admin.actor, wanted.text, expected)
    response.headers["ETag"] = etag(document.revision)
    return document


@router.post(
    "/policy/check",
    summary="Check a policy document",
    description="Changes nothing; also for tokens that only read.",
    responses=problems(*ACCESS, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def check_policy(ctx: Ctx, _: Reader, wanted: _Write) -> PolicyReport:
    """POST /policy/check."""
    return await ctx.policy.check(wanted.text)
