"""What tests of the store share: a mesh, and nodes in it as the domain modules would write them."""

from datetime import timedelta

from controller.admission import Admission
from controller.audit import Action
from controller.store.store import Mutation, Store
from controller.store.values import StoredNode
from controller.wire.netmap import Mesh

MESH = Mesh(id="m1", name="mesh", prefix4="100.88.0.0/16", prefix6="fd12:3456:789a::/48")
QUARANTINE = timedelta(hours=1)


async def add_node(
    store: Store, name: str, *, addresses: tuple[str, ...] = (), tags: tuple[str, ...] = ()
) -> StoredNode:
    async with store.mutation("test", Action.NODE_ENROL, f"node:{name}") as tx:
        return await write_node(tx, name, addresses=addresses, tags=tags)


async def write_node(
    tx: Mutation, name: str, *, addresses: tuple[str, ...] = (), tags: tuple[str, ...] = ()
) -> StoredNode:
    number = await Admission(QUARANTINE).allocate(tx, f"id-{name}", addresses)
    return await tx.nodes.save(
        StoredNode(
            id=f"id-{name}",
            name=name,
            kind="agent",
            state="active",
            tags=frozenset(tags),
            number=number,
            addresses=tx.plan.addresses(number),
            public_key=name.ljust(43, "A") + "=",
            created=tx.now,
        )
    )


async def remove_node(store: Store, node: StoredNode) -> None:
    async with store.mutation("test", Action.NODE_DELETE, f"node:{node.id}") as tx:
        await tx.nodes.remove(node.id)
        await tx.addresses.release(node.number, tx.now)
