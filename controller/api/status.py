"""/ca.pem, /health and /status."""

import asyncio
from typing import Any, Final

from fastapi import APIRouter, Response

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.mesh.presence import longest_lag
from controller.problems import Kind, Refused
from controller.settings import VERSION
from controller.store.engine import StoreError
from controller.wire.rest import Health, MeshStatus

__all__ = ["root", "router"]

root = APIRouter(tags=["status"])
router = APIRouter(tags=["status"])

_DATABASE_PATIENCE: Final = 5.0  # seconds; a probe that waits longer is no probe
_PEM_ONLY: dict[int | str, dict[str, Any]] = {
    200: {"description": "The certificate", "content": {"application/x-pem-file": {"schema": {"type": "string"}}}}
}


@root.get(
    "/ca.pem",
    summary="The certificate that join strings pin",
    description="Fetched before it can be trusted: compare its SHA-256 with the join string's.",
    response_class=Response,
    responses={**_PEM_ONLY, **problems(Kind.NOT_FOUND)},
)
async def ca_pem(ctx: Ctx) -> Response:
    """GET /ca.pem."""
    if ctx.trust.pem is None:
        raise Refused(
            Kind.NOT_FOUND,
            "this controller's certificate is signed by a CA that hosts already trust: there is none to pin",
        )
    return Response(ctx.trust.pem, media_type="application/x-pem-file")


@router.get(
    "/health",
    summary="Is the controller able to work?",
    responses={503: {"model": Health, "description": "The database does not answer"}, **problems()},
)
async def health(ctx: Ctx, response: Response) -> Health:
    """GET /health."""
    try:
        async with asyncio.timeout(_DATABASE_PATIENCE), ctx.store.read() as tables:
            await tables.ledger.revision()
    except (StoreError, TimeoutError):
        response.status_code = 503
        return Health(status="degraded", version=VERSION, detail="the database does not answer")
    return Health(status="ok", version=VERSION)


@router.get("/status", summary="The mesh at a glance", responses=problems(*ACCESS))
async def status(ctx: Ctx, _: Reader) -> MeshStatus:
    """GET /status."""
    async with ctx.store.read() as tables:
        nodes, pending = await tables.nodes.count()
        revision = await tables.ledger.revision()
        policy = await tables.policy.current()
        used = await tables.addresses.used()
        presences = [ctx.hub.presence(node_id) for node_id in await tables.nodes.ids("agent")]
    return MeshStatus(
        mesh=ctx.mesh,
        version=VERSION,
        revision=revision,
        nodes=nodes,
        online=sum(presence.online for presence in presences),
        pending=pending,
        behind=sum(presence.online and presence.behind for presence in presences),
        lag=longest_lag(presences, ctx.hub.clock()),
        policy_revision=policy.revision if policy else 0,
        addresses_used=used,
        addresses_total=ctx.store.plan.total,
    )
