"""Who may: bearer tokens and node certificates as FastAPI dependencies."""

import time
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from controller.context import Context, context
from controller.identity import peer_certificate
from controller.problems import Kind, Refused
from controller.rates import client_key
from controller.tokens import Principal
from controller.wire.netmap import NodeId

__all__ = ["ACCESS", "Admin", "Ctx", "Member", "Reader", "Self"]

Ctx = Annotated[Context, Depends(context)]
ACCESS = (Kind.UNAUTHENTICATED, Kind.FORBIDDEN, Kind.TOO_MANY_FAILURES)  # what every route with a token can answer

_bearer = HTTPBearer(
    scheme_name="adminToken",
    bearerFormat="wma_…",
    description="an admin token, role `admin`, `member` or `read`",
    auto_error=False,
)


async def _reader(
    request: Request, ctx: Ctx, sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> Principal:
    if sent is None:
        raise Refused(Kind.UNAUTHENTICATED, "send `Authorization: Bearer wma_…`")
    client = request.client.host if request.client is not None else ""
    wait = ctx.limits.failures.wait(client_key(client), time.monotonic())
    if wait:
        detail = f"too many requests from {client} had a wrong token: try again in {wait} s, with one that holds"
        raise Refused(Kind.TOO_MANY_FAILURES, detail, retry_after=wait)
    try:
        principal = await ctx.tokens.authenticate(sent.credentials)
    except Refused:
        ctx.limits.failures.take(client_key(client), time.monotonic())
        raise
    request.state.actor = principal.actor
    return principal


Reader = Annotated[Principal, Depends(_reader)]


async def _admin(principal: Reader) -> Principal:
    if principal.role == "member":
        raise Refused(Kind.FORBIDDEN, "a member only gives tags that are theirs: use a token of role 'admin'")
    if principal.role != "admin":
        raise Refused(Kind.FORBIDDEN, f"a token of role {principal.role!r} only reads: use one of role 'admin'")
    return principal


Admin = Annotated[Principal, Depends(_admin)]


async def _member(principal: Reader) -> Principal:
    """Who may do some of what admins do; the domain asks for how much."""
    return principal if principal.role == "member" else await _admin(principal)


Member = Annotated[Principal, Depends(_member)]


async def _self(request: Request) -> NodeId:
    node_id = peer_certificate.node_id(request.scope)
    if node_id is None:
        raise Refused(Kind.CERTIFICATE_REQUIRED, "this is for nodes: present the certificate that enrolment returned")
    request.state.actor = f"node:{node_id}"
    return node_id


Self = Annotated[NodeId, Depends(_self)]
