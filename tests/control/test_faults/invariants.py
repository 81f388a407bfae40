"""What must hold after any fault, in one function."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import httpx

from controller.backup import verify_audit
from controller.bootstrap import open_existing
from controller.clock import utc_now
from controller.mesh.state import MeshState
from controller.settings import Settings
from controller.store.store import Store
from controller.wire.netmap import Netmap

from ..agents import Agent
from .load import Promises
from .process import Controller

CONVERGE_WITHIN = 30.0  # seconds


async def check(controller: Controller, promises: Promises, agents: Sequence[Agent] = ()) -> None:
    """No address twice; nothing acknowledged is lost; the audit chain is whole; every host has its snapshot."""
    async with controller.client() as admin:
        nodes, services = await every(admin, "/nodes"), await every(admin, "/services")
        keys, grants = await every(admin, "/enrolment-keys"), await every(admin, "/grants")
        policy = (await admin.get("/policy")).json()["text"]
        moves = [
            entry
            for action in ("admin:service:move", "system:service:move")
            for entry in await every(admin, f"/audit?action={action}")
        ]
    taken = Counter(address for owner in (*nodes, *services) for address in owner["addresses"])
    assert set(taken.values()) <= {1}, [address for address, times in taken.items() if times > 1]
    found: dict[tuple[str, str], object] = {
        ("node", node["name"]): (node["public_key"], tuple(sorted(node["tags"]))) for node in nodes
    }
    found |= Counter(("key", key["note"]) for key in keys) | Counter(("grant", grant["reason"]) for grant in grants)
    found["policy", ""] = policy
    promises.check(found, {node["name"]: (node["id"], tuple(node["addresses"])) for node in nodes})
    holders = {entry["seq"]: entry["new"]["holder"] for entry in moves}
    for revision, holder in promises.moves.items():
        assert revision in holders, f"an acknowledged move to {holder} has no entry {revision} in the audit"
        # A holder that left since, or may not serve any more, is no holder in the answer.
        assert holder in {None, holders[revision]}
    await check_database(controller.settings, agents)


async def check_database(settings: Settings, agents: Sequence[Agent] = ()) -> None:
    """The audit chain, and that each agent has what the database says, whatever its controller believes."""
    store = await open_existing(settings, utc_now)
    try:
        await verify_audit(store)
        await converged(store, agents)
    finally:
        await store.close()


async def converged(store: Store, agents: Sequence[Agent]) -> None:
    """Wait until every agent has its snapshot, made of the database alone, in force."""
    behind: dict[str, tuple[object, object]] = {}
    try:
        async with asyncio.timeout(CONVERGE_WITHIN):
            while True:
                loaded = await store.load_mesh()
                assert loaded is not None
                state = MeshState(await store.fleet(loaded[0]), datetime.now(UTC).timestamp())
                behind = {}
                for agent in agents:
                    wanted = state.netmap(_node_id(agent))
                    held = agent.kernel.applied[-1] if agent.kernel.applied else None
                    if wanted is None or held is None or meaning(held) != meaning(wanted):
                        behind[_node_id(agent)] = held, wanted
                if not behind:
                    return
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not converged within {CONVERGE_WITHIN:.0f} s: {behind}") from None


def meaning(netmap: Netmap) -> dict[str, Any]:
    """All of a map but when, and by which version of a controller, it was made."""
    return Netmap.model_validate_json(netmap.model_dump_json()).model_dump(
        exclude={"revision": True, "mesh": {"timeline", "ca"}}  # what the process adds, not the database
    )


async def every(admin: httpx.AsyncClient, path: str) -> list[dict[str, Any]]:
    """All items of a list, page by page."""
    items: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = await admin.get(path, params={**dict(httpx.URL(path).params), "limit": "500", **cursor})
        assert answer.is_success, answer.text
        page = answer.json()
        items += page["items"]
        if not page.get("next"):
            return items
        cursor = {"cursor": page["next"]}


def _node_id(agent: Agent) -> str:
    node = agent.state.node()
    assert node is not None
    return node.node_id
