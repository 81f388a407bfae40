"""/services."""

from typing import Annotated

from fastapi import APIRouter, Body, Path, Response

from controller.api.access import ACCESS, Admin, Ctx, Reader, Self
from controller.api.editing import etag
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_name, page
from controller.problems import Kind
from controller.wire.mcp import ServiceName
from controller.wire.rest import Page
from controller.wire.services import CertificateRequest, MeshService, ServiceCertificate, ServiceMove

__all__ = ["router"]

router = APIRouter(tags=["services"])
_Name = Annotated[ServiceName, Path(description="the service's name, without svc:", examples=["github"])]
_MOVE = {
    "to a healthy host": {"value": {"node": "tools2"}},
    "to one that does not answer": {"value": {"node": "tools2", "force": True}},
}


@router.get(
    "/services",
    summary="Services of the policy in force that have addresses of their own, by name",
    responses=problems(*ACCESS, *PAGING),
)
async def list_services(ctx: Ctx, _: Reader, limit: Limit = 100, cursor: Cursor = None) -> Page[MeshService]:
    """GET /services."""
    after = by_name(cursor)
    services = [service for service in await ctx.services.all() if after is None or service.name > after]
    return page(services, limit, lambda service: [service.name])


@router.get("/services/{name}", summary="Show a service", responses=problems(*ACCESS, Kind.NOT_FOUND))
async def get_service(ctx: Ctx, _: Reader, name: _Name, response: Response) -> MeshService:
    """GET /services/{name}."""
    service = await ctx.services.get(name)
    response.headers["ETag"] = etag(service.revision)
    return service


@router.post(
    "/services/{name}/move",
    summary="Give a service's addresses to another of the nodes that may serve it",
    description="To the node that holds it already: changes nothing. With `force`, also to one that is not healthy.",
    responses=problems(*ACCESS, Kind.NOT_FOUND, Kind.CANNOT_SERVE, Kind.NOT_HEALTHY, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def move_service(
    ctx: Ctx,
    admin: Admin,
    name: _Name,
    wanted: Annotated[ServiceMove, Body(openapi_examples=_MOVE)],
    response: Response,
) -> MeshService:
    """POST /services/{name}/move."""
    service = await ctx.services.move(admin.actor, name, wanted.node, force=wanted.force)
    response.headers["ETag"] = etag(service.revision)
    return service


@router.post(
    "/services/{name}/certificate",
    summary="Issue a certificate of a service",
    description="For nodes that may serve it, with their own certificate. It is for all names and addresses of the"
    " service and nothing else, and lives as long as a node's; nothing is used up by asking again.",
    responses=problems(
        Kind.CERTIFICATE_REQUIRED,
        Kind.NODE_REMOVED,
        Kind.NODE_DISABLED,
        Kind.NOT_FOUND,
        Kind.CANNOT_SERVE,
        Kind.BAD_CSR,
        Kind.BAD_REQUEST,
        Kind.TOO_LARGE,
    ),
)
async def certify_service(
    ctx: Ctx, node_id: Self, name: _Name, wanted: Annotated[CertificateRequest, Body()]
) -> ServiceCertificate:
    """POST /services/{name}/certificate."""
    return ctx.certificates.issue(node_id, name, wanted)
