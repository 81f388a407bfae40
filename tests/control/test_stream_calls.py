"""Records of calls that hosts tell on their streams: acknowledged when they are kept, listed over REST."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from controller.api.stream import MAX_FRAME
from controller.server import Running
from controller.store.engine import StoreError
from controller.wire.base import Message
from controller.wire.call_records import LARGEST_RECORDS, CallRecord
from controller.wire.stream import Calls, Recorded

from .calls import SPOOL, ended, record
from .hosts import new_node
from .streams import Agent, agent, node_id
from .support import Client


def calls(first: int, *records: CallRecord) -> str:
    return Calls(spool=SPOOL, first=first, records=records).model_dump_json()


async def recorded(its: Agent) -> int:
    frame: Message = await its.take()
    while not isinstance(frame, Recorded):
        frame = await its.take()
    assert frame.spool == SPOOL
    return frame.through


async def listed(admin: Client, **filters: Any) -> list[str]:
    answer = await admin.get("/calls", params=filters)
    assert answer.status_code == 200, answer.text
    return [item["record"]["id"] for item in answer.json()["items"]]


async def test_what_a_host_tells_is_acknowledged_and_listed(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, tmp_path) as its:
        await its.hello()
        await its.say(calls(1, record(1), ended(2)))
        assert await recorded(its) == 2
        await its.say(calls(2, ended(2), record(3)))
        assert await recorded(its) == 3
    (newest, *_) = (await admin.get("/calls")).json()["items"]
    assert newest["node"] == node_id(host)
    assert newest["record"]["decision"]["deny"] == 40300
    assert await listed(admin) == ["r3", "r2", "r1"]
    assert await listed(admin, decision="allowed") == ["r2"]
    assert await listed(admin, decision=["allowed", "denied"], limit=2) == ["r3", "r2"]
    assert await listed(admin, since="2026-01-01T12:00:02Z", until="2026-01-01T13:00:03+01:00") == ["r2"]
    assert await listed(admin, node="other") == []


async def test_a_host_speaks_for_itself_only(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    """The host of a record is its certificate's: a field that says another is no field."""
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, tmp_path) as its:
        await its.hello()
        forged = json.loads(calls(1, record(1)))
        forged["records"][0]["node"] = "another"
        await its.say(json.dumps(forged))
        assert (await its.bye()).reason == "protocol"
    assert await listed(admin) == []


async def test_a_host_is_believed_of_the_services_that_policy_lets_it_serve(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    text = 'services: {github: {on: [tag:tools], mcp: {upstream: "http://127.0.0.1:3000/mcp"}}}'
    answer = await admin.put("/policy", json={"text": text}, headers={"if-match": "*"})
    assert answer.is_success, answer.text
    for number, tags in enumerate((["tag:tools"], ["tag:agents"]), 1):
        host = await new_node(admin, anyone, f"host-{number}", tags=tags)
        async with agent(controller, host, tmp_path) as its:
            await its.hello()
            await its.say(calls(1, record(number)))
            assert await recorded(its) == 1
    assert await listed(admin, service="github") == ["r1"]
    items = (await admin.get("/calls")).json()["items"]
    assert [(item["record"]["id"], item["claimed"]) for item in items] == [("r2", True), ("r1", False)]


async def test_pages_and_following(controller: Running, admin: Client, anyone: Client, tmp_path: Path) -> None:
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, tmp_path) as its:
        await its.hello()
        await its.say(calls(1, *(record(number) for number in range(5))))
        await recorded(its)
        first = (await admin.get("/calls", params={"limit": 3})).json()
        second = (await admin.get("/calls", params={"limit": 3, "cursor": first["next"]})).json()
        assert [item["record"]["id"] for item in first["items"] + second["items"]] == ["r4", "r3", "r2", "r1", "r0"]
        assert second["next"] is None
        after = first["items"][0]["number"]
        assert await listed(admin, after=after) == []
        await its.say(calls(6, record(9), record(8)))
        await recorded(its)
        assert await listed(admin, after=after) == ["r9", "r8"]


@pytest.mark.parametrize(
    "query", [{"since": "0001-01-01T00:00:00+10:00"}, {"since": "2026-01-01T00:00:00"}, {"cursor": "WyJ4Iiw1XQ"}]
)
async def test_what_is_no_moment_is_refused(admin: Client, query: dict[str, str]) -> None:
    assert (await admin.get("/calls", params=query)).status_code in {400, 422}


async def test_records_that_cannot_be_stored_are_not_acknowledged_and_the_stream_stands(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = await new_node(admin, anyone, "host")
    refused = asyncio.Event()
    keep = controller.context.calls.heard

    async def broken(*_: object) -> int:
        refused.set()
        raise StoreError("the disk is full")

    async with agent(controller, host, tmp_path) as its:
        await its.hello()
        monkeypatch.setattr(type(controller.context.calls), "heard", broken)
        await its.say(calls(1, record(1)))
        async with asyncio.timeout(10):
            await refused.wait()
        monkeypatch.setattr(type(controller.context.calls), "heard", lambda _, *given: keep(*given))
        await its.say(calls(1, record(1)))
        assert await recorded(its) == 1
    assert await listed(admin) == ["r1"]


async def test_the_largest_batch_fits_into_a_frame(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    large = ended(1, call={"era": "modern", "method": "tools/call", "arguments": {"text": "x" * 40_000}})
    records = [large] * 3
    size = sum(len(each.model_dump_json(exclude_none=True)) for each in records)
    assert LARGEST_RECORDS - 10_000 < size < LARGEST_RECORDS
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, tmp_path) as its:
        await its.hello()
        frame = calls(1, *records)
        assert len(frame) < MAX_FRAME
        await its.say(frame)
        assert await recorded(its) == 3


async def test_records_are_for_who_has_a_token(anyone: Client) -> None:
    assert (await anyone.get("/calls")).status_code == 401
