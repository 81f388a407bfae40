"""Denied packets that a host reports on its stream are listed over REST."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from controller.server import Running
from controller.wire.denials import Denial
from controller.wire.stream import Denials

from .hosts import new_node
from .streams import agent, node_id
from .support import Client

MINUTE = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


def frame(packets: int) -> str:
    flow = {"direction": "in", "source": "100.64.0.9", "destination": "100.64.0.1", "protocol": "tcp", "port": 22}
    return Denials(minute=MINUTE, denials=(Denial(minute=MINUTE, packets=packets, **flow),)).model_dump_json()


async def test_what_a_host_denied_is_listed(controller: Running, admin: Client, anyone: Client, tmp_path: Path) -> None:
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, tmp_path) as its:
        await its.hello()
        for packets in (1, 7):
            await its.say(frame(packets))
        async with asyncio.timeout(10):
            while (items := (await admin.get("/denials")).json()["items"]) == [] or items[0]["packets"] != 7:
                await asyncio.sleep(0.02)
    (item,) = items
    assert (item["node"], item["port"], item["minute"]) == (node_id(host), 22, "2026-01-01T12:30:00Z")
    assert (await admin.get("/denials", params={"node": "other"})).json()["items"] == []
    assert (await admin.get("/denials", params={"node": node_id(host)})).json()["items"] == items


async def test_denials_are_for_who_has_a_token(anyone: Client) -> None:
    assert (await anyone.get("/denials")).status_code == 401
