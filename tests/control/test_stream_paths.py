"""What hosts say of their paths is listed by GET /paths while they are connected."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controller.server import Running
from controller.wire.paths import MOST_PATHS, PathReport
from controller.wire.stream import Paths

from .hosts import new_node
from .streams import agent, node_id
from .support import Client

SINCE = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


def frame(*peers: str) -> str:
    usual: dict[str, Any] = {"kind": "direct", "endpoint": "192.0.2.7:51820", "rtt": 0.02, "mtu": 1420, "since": SINCE}
    reports = (PathReport(peer=peer, **usual) for peer in peers)
    return Paths(paths=tuple(reports)).model_dump_json()


async def listed(admin: Client, **params: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await admin.get("/paths", params=params)).json()["items"]
    return items


async def test_the_paths_of_a_host_are_those_it_said_last_for_as_long_as_it_is_connected(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    host = await new_node(admin, anyone, "host")
    async with asyncio.timeout(30):
        async with agent(controller, host, tmp_path) as its:
            await its.hello()
            for peers in (("a", "b", "c"), ("a", "b")):
                await its.say(frame(*peers))
            while {item["peer"] for item in await listed(admin)} != {"a", "b"}:
                await asyncio.sleep(0.02)
            (item,) = await listed(admin, node=node_id(host), peer="b")
            assert (item["node"], item["kind"], item["endpoint"]) == (node_id(host), "direct", "192.0.2.7:51820")
            assert (item["rtt"], item["mtu"], item["since"]) == (0.02, 1420, "2026-01-01T12:30:00Z")
            assert await listed(admin, node="other") == []
            assert len(await listed(admin, limit="1")) == 1
        while await listed(admin):
            await asyncio.sleep(0.02)


async def test_paths_are_for_who_has_a_token(anyone: Client) -> None:
    assert (await anyone.get("/paths")).status_code == 401


def test_a_host_cannot_say_more_paths_than_are_kept_of_one() -> None:
    with pytest.raises(ValueError, match="at most 500"):
        frame(*(f"n{number}" for number in range(MOST_PATHS + 1)))
