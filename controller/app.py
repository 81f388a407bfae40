"""The ASGI application: routers on one context, wrapped in what every request passes."""

from collections.abc import Iterable
from typing import Any

from fastapi import Depends, FastAPI
from starlette.types import ASGIApp

from controller.api import (
    audit,
    calls,
    denials,
    enrolment,
    errors,
    grants,
    metrics,
    nodes,
    openapi,
    paths,
    policy,
    relays,
    services,
    status,
    stream,
    tokens,
)
from controller.api.limits import BodyLimit, ClientRate
from controller.api.strict import only_known_parameters
from controller.context import Context, context
from controller.identity.proxy import ProxiedClients
from controller.logs import RequestLog
from controller.metrics import RequestMeter
from controller.settings import VERSION
from controller.tracing import RequestSpans

__all__ = ["build", "context"]

PREFIX = "/api/v1"


class _Api(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return openapi.describe(self)


def build(ctx: Context, proxies: Iterable[str] = ()) -> ASGIApp:
    """The application that serves `ctx`; `proxies` may speak for their clients."""
    api = _Api(
        title="wardmesh controller",
        summary="Coordination server of a WireGuard mesh for AI agents and the tools they call",
        description="Errors are RFC 9457 problem+json with a stable `type`; edits need If-Match; lists are pages.",
        version=VERSION,
        openapi_url=f"{PREFIX}/openapi.json",
        # The interactive pages would load scripts from elsewhere into a page that is given admin tokens.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Its own spans and logs would have paths and messages of exceptions in them, and environment variables can turn
        # them on; ours (`controller.tracing`) have what we choose.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        # The handlers' own names: what generated clients call their methods.
        generate_unique_id_function=lambda route: route.name,
    )
    api.state.context = ctx
    errors.install(api)
    strict = [Depends(only_known_parameters)]
    api.include_router(status.root, dependencies=strict)
    api.include_router(metrics.root, dependencies=strict)
    for part in (status, nodes, enrolment, policy, grants, services, audit, calls, denials, paths, relays, tokens):
        api.include_router(part.router, prefix=PREFIX, dependencies=strict)
    sized = BodyLimit(RequestMeter(api, ctx.metrics), ctx.limits.body, ctx.limits.policy)
    traced = RequestSpans(ClientRate(sized, ctx.limits.requests), ctx.tracing)
    limited = RequestLog(stream.Streams(traced, api))
    return ProxiedClients(limited, proxies=proxies, authority=ctx.authority, mesh_id=ctx.mesh.id, now=ctx.now)
