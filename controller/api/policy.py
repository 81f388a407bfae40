"""/policy."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Body, Query, Response

from controller.api.access import ACCESS, Admin, Ctx, Reader
from controller.api.editing import EDITING, Expected, etag
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, by_number, page
from controller.counters import counters
from controller.explain import explain
from controller.explain_calls import explain_call
from controller.policy import policy_schema
from controller.problems import Kind
from controller.wire.rest import (
    Explanation,
    Page,
    PolicyCounters,
    PolicyDifference,
    PolicyDocument,
    PolicyReport,
    PolicyWrite,
)
from controller.wire.services import CallExplanation, CallQuestion

__all__ = ["router"]

router = APIRouter(tags=["policy"])

_EXAMPLES = {
    "agents may call tools": {"value": {"text": 'grants:\n  - {from: tag:agents, to: tag:tools, ip: ["tcp:8000"]}\n'}}
}
_CALLS = {
    "a tool with arguments": {
        "value": {"source": "agent1", "service": "svc:github", "tool": "create_issue", "arguments": {"repo": "a/b"}}
    }
}
_Write = Annotated[PolicyWrite, Body(openapi_examples=_EXAMPLES)]
_LARGE_ITEMS: Final = 20  # a document has up to 1 MiB, so pages are shorter than elsewhere
_Host = Annotated[str, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="a node's name or id", examples=["db1"])]
_Destination = Annotated[
    str,
    Query(
        pattern=r"^(svc:)?[A-Za-z0-9_-]{1,64}$",
        description="a node's name or id, or svc:NAME for the addresses of a service",
        examples=["svc:github"],
    ),
]
_Flow = Annotated[
    str,
    Query(
        pattern=r"^((tcp|udp):[1-9][0-9]{0,4}|icmp)$", description="tcp:PORT, udp:PORT or icmp", examples=["tcp:443"]
    ),
]


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
    responses=problems(*ACCESS, *EDITING, Kind.POLICY_REFUSED, Kind.POOL_EMPTY, Kind.BAD_REQUEST, Kind.TOO_LARGE),
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


@router.post(
    "/policy/diff",
    summary="What a policy document would change",
    description="Which pairs of active nodes gain or lose what, against the policy in force. Changes nothing.",
    responses=problems(*ACCESS, Kind.POLICY_REFUSED, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def diff_policy(ctx: Ctx, _: Reader, wanted: _Write) -> PolicyDifference:
    """POST /policy/diff."""
    return await ctx.policy.diff(wanted.text)


@router.get(
    "/policy/schema",
    summary="The JSON Schema of policy documents",
    description="For editors: completion, descriptions and the first faults while one types.",
    responses=problems(*ACCESS),
)
async def get_schema(_: Reader) -> dict[str, Any]:
    """GET /policy/schema."""
    return policy_schema()


@router.get(
    "/policy/history",
    summary="Policies that are or were in force, newest first",
    responses=problems(*ACCESS, *PAGING),
)
async def list_policies(
    ctx: Ctx,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=_LARGE_ITEMS, description="how many at most")] = _LARGE_ITEMS,
    cursor: Cursor = None,
) -> Page[PolicyDocument]:
    """GET /policy/history."""
    documents = await ctx.policy.history(before=by_number(cursor), limit=limit + 1)
    return page(documents, limit, lambda document: [document.revision])


@router.get(
    "/policy/explain",
    summary="May this node open this flow to that one?",
    description="By which grants of the policy in force, and what each of the two hosts has of it.",
    responses=problems(*ACCESS, Kind.NOT_FOUND),
)
async def explain_policy(
    ctx: Ctx, _: Reader, source: Annotated[_Host, Query(alias="from")], to: _Destination, port: _Flow
) -> Explanation:
    """GET /policy/explain."""
    return await explain(ctx.hub, ctx.questions, source=source, destination=to, flow=port, now=ctx.now())


@router.post(
    "/policy/explain-call",
    summary="May this node call this tool with these arguments?",
    description="By which grants of the policy in force, or what would be needed. Changes nothing; also for tokens that"
    " only read.",
    responses=problems(*ACCESS, Kind.NOT_FOUND, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def explain_policy_call(
    ctx: Ctx, _: Reader, question: Annotated[CallQuestion, Body(openapi_examples=_CALLS)]
) -> CallExplanation:
    """POST /policy/explain-call."""
    return explain_call(ctx.hub, question, ctx.now())


@router.get(
    "/policy/counters",
    summary="Packets accepted by grant and denied by host",
    description="Asked of the kernels of the hosts that are online, within two seconds; each counts since it last wrote"
    " its table whole.",
    responses=problems(*ACCESS, Kind.NOT_FOUND),
)
async def count_policy(
    ctx: Ctx,
    _: Reader,
    node: Annotated[
        str | None, Query(pattern=r"^[A-Za-z0-9_-]{1,64}$", description="only this host, by name or id")
    ] = None,
) -> PolicyCounters:
    """GET /policy/counters."""
    return await counters(ctx.hub, ctx.questions, node)
