"""REST tells who uses which relay, what relays passed on, and from where hosts are seen, as far as hosts tell it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from controller.server import Running
from controller.wire.asking import Answer
from controller.wire.netcheck import Candidate, MappedPort, NetcheckReport, RelayDistance
from controller.wire.relay_use import PairCount, Relayed
from controller.wire.stream import Paths

from .hosts import Host, new_node
from .streams import agent, node_id
from .support import Client
from .test_policy_asking import Reply, answering
from .test_policy_use import put

POLICY = "relays: {eu: {on: [r1]}, us: {on: [r2]}}\ngrants: []\n"


async def items(admin: Client, path: str, **params: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await admin.get(path, params=params)).json()["items"]
    return found


@pytest.fixture
async def hosts(admin: Client, anyone: Client) -> dict[str, Host]:
    """Two relays and a host, none of them connected."""
    found = {name: await new_node(admin, anyone, name) for name in ("r1", "r2", "host")}
    await put(admin, POLICY)
    return found


def report(home: Host, spare: Host) -> NetcheckReport:
    return NetcheckReport(
        nat="endpoint-dependent",
        udp="works",
        candidates=(Candidate(kind="nat", endpoint="203.0.113.7:4000"),),
        mapping=MappedPort(state="none", problem="the router 192.0.2.1 gives none"),
        relays=(
            RelayDistance(node=node_id(home), rtt=0.01, chosen=True),
            RelayDistance(node=node_id(spare), rtt=0.09, chosen=True),
        ),
    )


async def test_relays_are_those_of_the_policy_and_used_by_whom_hosts_say(
    controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
) -> None:
    frame = Paths(paths=(), netcheck=report(hosts["r2"], hosts["r1"])).model_dump_json()
    async with asyncio.timeout(30), agent(controller, hosts["host"], tmp_path) as its:
        await its.hello()
        await its.say(frame)
        while not any(one["homes"] for one in await items(admin, "/relays")):
            await asyncio.sleep(0.02)
        told = [
            {key: one[key] for key in ("name", "region", "online", "homes", "spares")}
            for one in await items(admin, "/relays")
        ]
        assert told == [
            {"name": "r1", "region": "eu", "online": False, "homes": 0, "spares": 1},
            {"name": "r2", "region": "us", "online": False, "homes": 1, "spares": 0},
        ]
        detail = (await admin.get("/relays/r2")).json()
        assert detail["users"] == [{"name": "host", "spare": False, "rtt": 0.01}]
        assert (detail["answered"], detail["pairs"], detail["limited"]) == (False, [], None)


async def test_a_host_that_is_no_relay_is_not_shown_as_one(admin: Client, hosts: dict[str, Host]) -> None:
    for name in ("host", "nobody"):
        answer = await admin.get(f"/relays/{name}")
        assert (answer.status_code, name in answer.json()["detail"]) == (404, True)
    assert (await admin.get(f"/relays/{node_id(hosts['r1'])}")).json()["name"] == "r1"


def passing_on(*pairs: PairCount, **more: Any) -> Reply:
    relayed = Relayed(pairs=pairs, count=len(pairs), rate=100, **more)
    return lambda ask: [Answer(id=ask.id, relayed=relayed if ask.relayed else None, denied={"relay": 3, "forward": 5})]


async def test_a_relay_is_asked_what_it_passed_on_and_its_pairs_are_named(
    controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
) -> None:
    pair = PairCount(source=node_id(hosts["host"]), destination="gone", packets=7, bytes=700)
    async with asyncio.timeout(30), answering(controller, hosts["r1"], tmp_path, passing_on(pair)):
        found = (await admin.get("/relays/r1")).json()
    assert found["pairs"] == [{"source": "host", "destination": "gone", "packets": 7, "bytes": 700}]
    assert (found["answered"], found["rate"], found["limited"], found["refused"]) == (True, 100, 3, 5)
    assert found["problem"] is None


async def test_why_a_relay_passes_on_nothing_is_told(
    controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
) -> None:
    reply = passing_on(problem="it forwards no IPv6")
    async with asyncio.timeout(30), answering(controller, hosts["r1"], tmp_path, reply):
        assert (await admin.get("/relays/r1")).json()["problem"] == "it forwards no IPv6"


async def test_netchecks_are_what_hosts_said_or_why_nothing_is_known(
    controller: Running, admin: Client, hosts: dict[str, Host], tmp_path: Path
) -> None:
    said = report(hosts["r1"], hosts["r2"])
    async with asyncio.timeout(30), agent(controller, hosts["host"], tmp_path) as its:
        await its.hello()
        while (await items(admin, "/netchecks", node=node_id(hosts["host"])))[0]["state"] != "silent":
            await asyncio.sleep(0.02)
        await its.say(Paths(paths=(), netcheck=said).model_dump_json())
        while (await items(admin, "/netchecks", node=node_id(hosts["host"])))[0]["state"] != "reported":
            await asyncio.sleep(0.02)
        found = await items(admin, "/netchecks")
        assert [(one["name"], one["state"]) for one in found] == [
            ("host", "reported"),
            ("r1", "offline"),
            ("r2", "offline"),
        ]
        assert NetcheckReport.model_validate(found[0]["netcheck"]) == said
    while (await items(admin, "/netchecks"))[0]["state"] != "offline":
        await asyncio.sleep(0.02)


async def test_netchecks_and_relays_come_in_pages(admin: Client, hosts: dict[str, Host]) -> None:
    assert len(hosts) == 3
    for path, names in (("/netchecks", ["host", "r1", "r2"]), ("/relays", ["r1", "r2"])):
        found, params = [], {"limit": "1"}
        while params:
            got = (await admin.get(path, params=params)).json()
            found += [one["name"] for one in got["items"]]
            params = {"limit": "1", "cursor": got["next"]} if got["next"] else {}
        assert found == names


async def test_relays_and_netchecks_are_for_who_has_a_token(anyone: Client) -> None:
    for path in ("/relays", "/relays/r1", "/netchecks"):
        assert (await anyone.get(path)).status_code == 401
