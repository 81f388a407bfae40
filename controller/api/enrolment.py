"""/enrolment-keys, /enrol and /renew."""

import hashlib
import time
from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from controller.api.access import ACCESS, Admin, Ctx, Member, Reader
from controller.api.editing import ONCE, MaybeOnce, only_once
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_age, page
from controller.problems import Kind, Refused
from controller.wire.enrol import EnrolRequest, EnrolResponse, RenewRequest, RenewResponse
from controller.wire.rest import EnrolmentKey, EnrolmentKeyCreate, EnrolmentKeyCreated, Page

__all__ = ["router"]

router = APIRouter(tags=["enrolment"])
KeyId = Annotated[str, Path(max_length=64, description="the key's id", examples=["0d4b7c21aa98e3f5"])]

_KEY_EXAMPLES = {
    "one host": {"value": {"tags": ["tag:agents"]}},
    "a day of autoscaling": {
        "value": {"tags": ["tag:agents"], "uses": None, "ttl": 86400, "ephemeral": True, "note": "build farm"}
    },
}


@router.post(
    "/enrolment-keys",
    status_code=201,
    summary="Create an enrolment key",
    description="The join string is in this answer and nowhere else. A member's key gives tags that the policy says"
    " are the member's.",
    responses=problems(*ACCESS, *ONCE, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def create_key(
    ctx: Ctx,
    member: Member,
    wanted: Annotated[EnrolmentKeyCreate, Body(openapi_examples=_KEY_EXAMPLES)],
    once: MaybeOnce,
    response: Response,
) -> EnrolmentKeyCreated:
    """POST /enrolment-keys."""
    (await ctx.owners.of(member)).check_new(wanted.tags)
    created = await only_once(EnrolmentKeyCreated, response, ctx.keys.create(member.actor, wanted, once))
    response.headers["Location"] = f"/api/v1/enrolment-keys/{created.key.id}"
    return created


@router.get("/enrolment-keys", summary="List enrolment keys, newest first", responses=problems(*ACCESS, *PAGING))
async def list_keys(ctx: Ctx, _: Reader, limit: Limit = 100, cursor: Cursor = None) -> Page[EnrolmentKey]:
    """GET /enrolment-keys."""
    keys = await ctx.keys.page(before=by_age(cursor), limit=limit + 1)
    return page(keys, limit, lambda key: [key.created.isoformat(), key.id])


@router.get(
    "/enrolment-keys/{key_id}",
    summary="Show an enrolment key",
    responses=problems(*ACCESS, Kind.NOT_FOUND),
)
async def get_key(ctx: Ctx, _: Reader, key_id: KeyId) -> EnrolmentKey:
    """GET /enrolment-keys/{id}."""
    return await ctx.keys.get(key_id)


@router.delete(
    "/enrolment-keys/{key_id}",
    status_code=204,
    summary="Revoke an enrolment key",
    description="Nodes that joined with it stay. The key remains visible, as revoked.",
    responses=problems(*ACCESS, Kind.NOT_FOUND),
)
async def revoke_key(ctx: Ctx, admin: Admin, key_id: KeyId) -> None:
    """DELETE /enrolment-keys/{id}."""
    await ctx.keys.revoke(admin.actor, key_id)


@router.post(
    "/enrol",
    summary="Join the mesh",
    description=(
        "Authorised by the enrolment key. The same request with the same identity key returns the same node again "
        "and uses nothing up, so a lost answer can be asked for again."
    ),
    responses=problems(
        Kind.KEY_UNKNOWN,
        Kind.KEY_EXPIRED,
        Kind.KEY_USED_UP,
        Kind.KEY_REVOKED,
        Kind.BAD_CSR,
        Kind.IDENTITY_IN_USE,
        Kind.NODE_DISABLED,
        Kind.NAME_TAKEN,
        Kind.PUBLIC_KEY_IN_USE,
        Kind.ADDRESS_TAKEN,
        Kind.ADDRESS_QUARANTINED,
        Kind.ADDRESS_UNUSABLE,
        Kind.POOL_EMPTY,
        Kind.BAD_REQUEST,
        Kind.TOO_LARGE,
    ),
)
async def enrol(ctx: Ctx, wanted: EnrolRequest) -> EnrolResponse:
    """POST /enrol."""
    wait = ctx.limits.joins.take(hashlib.sha256(wanted.key.encode()).hexdigest(), time.monotonic())
    if wait:
        detail = f"too many hosts join with this enrolment key at once: try again in {wait} s"
        raise Refused(Kind.TOO_MANY_REQUESTS, detail, retry_after=wait)
    return await ctx.enrolment.enrol(wanted)


@router.post(
    "/renew",
    summary="Renew a node's certificate",
    description="Authorised by the node's identity key, which signed the request; also after the certificate expired.",
    responses=problems(
        Kind.BAD_CERTIFICATE,
        Kind.BAD_CSR,
        Kind.NODE_REMOVED,
        Kind.NODE_DISABLED,
        Kind.BAD_REQUEST,
        Kind.TOO_LARGE,
    ),
)
async def renew(ctx: Ctx, wanted: RenewRequest) -> RenewResponse:
    """POST /renew."""
    return await ctx.enrolment.renew(wanted)
