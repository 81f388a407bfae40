"""What every new node must pass, enrolled host or static peer: a free name, a key of its own, an address."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from controller.problems import Kind, Refused
from controller.store.store import Mutation, Reading
from controller.store.values import StoredNode
from controller.wire.base import Address, NodeName, PublicKey
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["MAX_ENDPOINTS", "Admission", "check_name_free", "check_public_key_free", "summary"]


# How many of a node's endpoints its peers hear of: they try them in order, and every peer's map carries them.
MAX_ENDPOINTS: Final = 32


async def check_name_free(tables: Reading, name: NodeName, besides: NodeId | None = None) -> None:
    """Raises Refused (NAME_TAKEN) with a name that is free."""
    holder = await tables.nodes.by_name(name)
    if holder is not None and holder.id != besides:
        free = await tables.nodes.free_name(name)
        raise Refused(
            Kind.NAME_TAKEN, f"a node named {name!r} exists: choose another name, {free!r} is free", {"free": free}
        )


async def check_public_key_free(tables: Reading, public_key: PublicKey, besides: NodeId | None = None) -> None:
    """Raises Refused (PUBLIC_KEY_IN_USE)."""
    holder = await tables.nodes.by_public_key(public_key)
    if holder is not None and holder.id != besides:
        raise Refused(
            Kind.PUBLIC_KEY_IN_USE,
            f"the public key {public_key} belongs to the node {holder.name!r}: "
            "make a new key pair (two hosts must never share one), or delete that node first",
        )


class Admission:
    """Gives nodes and services their addresses. `quarantine` is how long a released one rests before others get it."""

    def __init__(self, quarantine: timedelta) -> None:
        self._quarantine = quarantine

    async def allocate(self, tx: Mutation, node_id: NodeId, requested: Iterable[Address]) -> int:
        """Take the requested address, or the next free one, for the node; return its host number.

        Raises Refused (ADDRESS_TAKEN, ADDRESS_QUARANTINED, ADDRESS_UNUSABLE, POOL_EMPTY).
        """
        wanted = tuple(requested)
        number = tx.plan.requested(wanted)
        if number is None:
            number = await self._next(tx)
        else:
            await self._check_free(tx, number, " and ".join(wanted))
        await tx.addresses.take(number, node_id)
        return number

    async def allocate_for_service(self, tx: Mutation, service: ServiceName) -> int:
        """Take the number that the service had before, if nobody got it since, or the next free one; return it.

        Raises Refused (POOL_EMPTY).
        """
        number = await tx.addresses.last_of(service)
        if number is None:
            number = await self._next(tx)
        await tx.addresses.take_for_service(number, service)
        return number

    async def _check_free(self, tx: Mutation, number: int, wanted: str) -> None:
        held = await tx.addresses.held(number)
        if held is None:
            return
        if held.released is None:
            owner = f"the service {held.service!r}" if held.service is not None else await self._owner(tx, held.node_id)
            raise Refused(Kind.ADDRESS_TAKEN, f"{wanted} belongs to {owner}: request another address, or none")
        if held.released > tx.now - self._quarantine:
            raise Refused(
                Kind.ADDRESS_QUARANTINED,
                f"{wanted} was released at {_time(held.released)} and rests until "
                f"{_time(held.released + self._quarantine)}: request another address, or wait",
            )

    async def _owner(self, tx: Mutation, node_id: NodeId | None) -> str:
        holder = await tx.nodes.get(node_id) if node_id is not None else None
        return f"the node {holder.name!r}" if holder else f"the node {node_id}"

    async def _next(self, tx: Mutation) -> int:
        number = await tx.addresses.next_new(tx.plan.last_number)
        if number is None:
            number = await tx.addresses.next_rested(tx.now - self._quarantine)
        if number is not None:
            return number
        oldest = await tx.addresses.oldest_release()
        until = f"; the next is free at {_time(oldest + self._quarantine)}" if oldest else ""
        raise Refused(
            Kind.POOL_EMPTY,
            f"all {tx.plan.total} addresses of {tx.plan.prefix4} are in use or were released a moment ago{until}: "
            "delete nodes that are gone, or build a mesh with a larger prefix",
        )


def summary(node: StoredNode) -> dict[str, Any]:
    """The node as the audit records it."""
    return {
        "name": node.name,
        "kind": node.kind,
        "state": node.state,
        "tags": sorted(node.tags),
        "addresses": list(node.addresses),
        "public_key": node.public_key,
        "endpoints": list(node.endpoints),
        "ephemeral": node.ephemeral,
    }


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
