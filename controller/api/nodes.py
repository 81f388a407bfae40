"""/nodes and /static-peers."""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Path, Response

from controller.api.access import ACCESS, Admin, Ctx, Member, Reader, Self
from controller.api.editing import EDITING, ONCE, Expected, ExpectedIfAny, MaybeOnce, etag, only_once
from controller.api.errors import problems
from controller.api.paging import PAGING, Cursor, Limit, by_name, page
from controller.problems import Kind
from controller.store.values import NodeFilter
from controller.wire.base import NodeName, Tag
from controller.wire.netmap import NodeId
from controller.wire.rest import Node, NodePatch, NodeState, Page, PeerConfig, StaticPeerCreate

__all__ = ["router"]

router = APIRouter(tags=["nodes"])
Id = Annotated[NodeId, Path(description="the node's id", examples=["6f1c9a5e0b7d2f48"])]

_TAKEN = (
    Kind.NAME_TAKEN,
    Kind.PUBLIC_KEY_IN_USE,
    Kind.ADDRESS_TAKEN,
    Kind.ADDRESS_QUARANTINED,
    Kind.ADDRESS_UNUSABLE,
    Kind.POOL_EMPTY,
)
_PATCH_EXAMPLES = {
    "rename": {"value": {"name": "db1"}},
    "tag": {"value": {"tags": ["tag:database"]}},
    "approve": {"summary": "approve, or enable", "value": {"state": "active"}},
    "disable": {"value": {"state": "disabled"}},
}
_PEER_EXAMPLES = {
    "phone": {
        "value": {
            "name": "phone",
            "public_key": "iI2fbqCYIUYQkyRzBkAdbpbxJFFHbEGPdKJvqHyhmmQ=",
            "tags": ["tag:people"],
        }
    }
}


@router.delete(
    "/nodes/self",
    status_code=204,
    summary="Leave the mesh",
    description="The node removes itself; authorised by its client certificate.",
    responses=problems(Kind.CERTIFICATE_REQUIRED, Kind.NOT_FOUND),
)
async def leave(ctx: Ctx, node_id: Self) -> None:
    """DELETE /nodes/self."""
    await ctx.nodes.leave(node_id)


@router.get("/nodes", summary="List nodes, by name", responses=problems(*ACCESS, *PAGING))
async def list_nodes(
    *,
    ctx: Ctx,
    _: Reader,
    name: NodeName | None = None,
    tag: Tag | None = None,
    state: NodeState | None = None,
    kind: Literal["agent", "static"] | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Page[Node]:
    """GET /nodes."""
    which = NodeFilter(name=name, tag=tag, state=state, kind=kind)
    nodes = await ctx.nodes.page(which, after=by_name(cursor), limit=limit + 1)
    return page(nodes, limit, lambda node: [node.name])


@router.get("/nodes/{node_id}", summary="Show a node", responses=problems(*ACCESS, Kind.NOT_FOUND))
async def get_node(ctx: Ctx, _: Reader, node_id: Id, response: Response) -> Node:
    """GET /nodes/{id}."""
    node = await ctx.nodes.get(node_id)
    response.headers["ETag"] = etag(node.revision)
    return node


@router.patch(
    "/nodes/{node_id}",
    summary="Rename, tag, approve, enable or disable a node",
    description="A member changes only tags that the policy says are the member's.",
    responses=problems(
        *ACCESS,
        *EDITING,
        Kind.NOT_FOUND,
        Kind.BAD_REQUEST,
        Kind.NAME_TAKEN,
        Kind.NOT_EDITABLE,
        Kind.TOO_LARGE,
    ),
)
async def update_node(
    *,
    ctx: Ctx,
    member: Member,
    node_id: Id,
    patch: Annotated[NodePatch, Body(openapi_examples=_PATCH_EXAMPLES)],
    expected: Expected,
    response: Response,
) -> Node:
    """PATCH /nodes/{id}."""
    ownership = await ctx.owners.of(member)
    ownership.check_patch(patch)
    node = await ctx.nodes.update(member.actor, node_id, patch, expected, check_tags=ownership.check)
    response.headers["ETag"] = etag(node.revision)
    return node


@router.delete(
    "/nodes/{node_id}",
    status_code=204,
    summary="Delete a node",
    description="Closes its stream. Its certificate is worth nothing, its address rests before another node gets it.",
    responses=problems(*ACCESS, Kind.NOT_FOUND, Kind.PRECONDITION_FAILED),
)
async def delete_node(ctx: Ctx, admin: Admin, node_id: Id, expected: ExpectedIfAny) -> None:
    """DELETE /nodes/{id}."""
    await ctx.nodes.delete(admin.actor, node_id, expected)


@router.post(
    "/static-peers",
    status_code=201,
    summary="Add a static peer by its public key",
    description="A member's carries tags that the policy says are the member's.",
    responses=problems(*ACCESS, *ONCE, *_TAKEN, Kind.BAD_REQUEST, Kind.TOO_LARGE),
)
async def create_peer(
    ctx: Ctx,
    member: Member,
    wanted: Annotated[StaticPeerCreate, Body(openapi_examples=_PEER_EXAMPLES)],
    once: MaybeOnce,
    response: Response,
) -> Node:
    """POST /static-peers."""
    (await ctx.owners.of(member)).check_new(wanted.tags)
    node = await only_once(Node, response, ctx.peers.create(member.actor, wanted, once))
    response.headers["ETag"] = etag(node.revision)
    response.headers["Location"] = f"/api/v1/nodes/{node.id}"
    return node


@router.get(
    "/static-peers/{node_id}/config",
    summary="The static peer's wg-quick file",
    description="Without the private key, which the controller does not have; its place is marked.",
    responses=problems(*ACCESS, Kind.NOT_FOUND, Kind.NOT_STATIC, Kind.NODE_DISABLED),
)
async def peer_config(ctx: Ctx, _: Reader, node_id: Id) -> PeerConfig:
    """GET /static-peers/{id}/config."""
    return await ctx.peers.config(node_id)
