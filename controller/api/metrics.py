"""/metrics, /healthz and /readyz: what monitoring asks. At the root, where it looks for them."""

import asyncio
from collections import Counter
from typing import Final

from fastapi import APIRouter, Response

from controller.api.access import ACCESS, Ctx, Reader
from controller.api.errors import problems
from controller.mesh.presence import longest_lag
from controller.metrics import CONTENT_TYPE, MeshFacts
from controller.store.engine import StoreError

__all__ = ["root"]

root = APIRouter(tags=["status"])

_DATABASE_PATIENCE: Final = 5.0  # seconds; a probe that waits longer is no probe


@root.get(
    "/metrics",
    summary="Counts for Prometheus",
    description="Needs a token of any role: what a mesh looks like is not for everybody.",
    response_class=Response,
    responses={200: {"content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}, **problems(*ACCESS)},
)
async def metrics(ctx: Ctx, _: Reader) -> Response:
    """GET /metrics."""
    async with ctx.store.read() as tables:
        states = await tables.nodes.states()
        revision = await tables.ledger.revision()
        policy = await tables.policy.current()
        used = await tables.addresses.used()
    presences = [presence for node_id in states if (presence := ctx.hub.presence(node_id)).online]
    facts = MeshFacts(
        revision=revision,
        policy_revision=policy.revision if policy else 0,
        nodes=dict(Counter(states.values())),
        online=len(presences),
        behind=sum(presence.behind for presence in presences),
        lag=longest_lag(presences, ctx.hub.clock()) or 0.0,
        addresses_used=used,
        addresses_total=ctx.store.plan.total,
    )
    return Response(ctx.metrics.exposition(facts), media_type=CONTENT_TYPE)


@root.get("/healthz", summary="Does the process answer?", status_code=204, responses=problems())
async def healthz() -> None:
    """GET /healthz. Touches nothing: a database that is away is no reason to restart the controller."""


@root.get(
    "/readyz",
    summary="Can requests be served?",
    status_code=204,
    responses={503: {"description": "The database does not answer"}, **problems()},
)
async def readyz(ctx: Ctx) -> Response:
    """GET /readyz."""
    try:
        async with asyncio.timeout(_DATABASE_PATIENCE), ctx.store.read() as tables:
            await tables.ledger.revision()
    except (StoreError, TimeoutError):
        return Response(status_code=503)
    return Response(status_code=204)
