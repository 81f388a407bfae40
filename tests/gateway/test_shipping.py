"""Records on their way from the spool to agentd: in order, at least once, forgotten when they are acknowledged."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest

from agentd.errors import AgentError
from agentd.gateway import shipping
from agentd.gateway.audit import AuditLog
from agentd.gateway.shipping import Shipper, read_record, ship_leftovers
from agentd.gateway.spool import SpoolReader, SpoolWriter
from agentd.gateway.types import AuditEvent
from agentd.gateway_messages import RecordsKept, RecordsRequest
from agentd.local_api import Answer, Request
from agentd.local_server import listening, serve
from controller.wire.call_records import LARGEST_RECORD, CallRecord
from controller.wire.mcp import AuditRules

from .test_audit import make_call, record


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "_FIRST_PAUSE", 0.02)
    monkeypatch.setattr(shipping, "_LONGEST_PAUSE", 0.05)


class Agentd:
    """The other end of the socket: remembers what it was told, and refuses while `away`."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "agentd.sock"
        self.requests: list[RecordsRequest] = []
        self.away = False
        self.asked = 0
        self.through: dict[str, int] = {}

    async def handle(self, request: Request) -> Answer:
        assert isinstance(request, RecordsRequest)
        self.asked += 1
        if self.away:
            raise AgentError("the controller is away")
        self.requests.append(request)
        known = self.through.get(request.spool, 0)
        self.through[request.spool] = max(known, request.first + len(request.records) - 1)
        return RecordsKept(through=self.through[request.spool])

    def ids(self) -> list[str | None]:
        return [each.id for request in self.requests for each in request.records]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        with listening(self.socket, None) as server:
            task = asyncio.create_task(serve(server, self.handle, lambda _: None))
            try:
                yield
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def agentd(tmp_path: Path) -> Agentd:
    return Agentd(tmp_path)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "0"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def payload(number: int, **fields: Any) -> bytes:
    return orjson.dumps({"event": "gateway:call:allowed", "time": 1000.5 + number, "id": f"r{number}", **fields})


@asynccontextmanager
async def shipping_from(spool: Path, agentd: Agentd, **sizes: Any) -> AsyncIterator[tuple[SpoolWriter, Shipper]]:
    writer = SpoolWriter(spool, **sizes)
    shipper = Shipper(spool, writer, agentd.socket)
    shipper.start()
    try:
        yield writer, shipper
    finally:
        writer.close()
        await shipper.close()


def append(writer: SpoolWriter, shipper: Shipper, *payloads: bytes) -> None:
    for each in payloads:
        assert writer.append(each)
    writer.sync()
    shipper.wake()


async def test_records_are_shipped_in_order_and_forgotten(spool: Path, agentd: Agentd) -> None:
    async with agentd.running(), shipping_from(spool, agentd) as (writer, shipper):
        append(writer, shipper, *(payload(number) for number in range(600)))
        await until(lambda: SpoolReader(spool).acknowledged == 600)
    assert agentd.ids() == [f"r{number}" for number in range(600)]
    assert [request.first for request in agentd.requests] == [1, 251, 501]
    assert [request.behind for request in agentd.requests] == [350, 100, 0]
    assert {request.spool for request in agentd.requests} == {(spool / "id").read_text()}


async def test_what_the_audit_log_writes_is_what_is_shipped(spool: Path, agentd: Agentd) -> None:
    writer = SpoolWriter(spool)
    shipper = Shipper(spool, writer, agentd.socket)
    audit = AuditLog(writer, lambda _: AuditRules(arguments=True), sync_seconds=0.01, synced=shipper.wake)
    async with agentd.running():
        shipper.start()
        audit.start()
        call = make_call({"path": "/a", "none": None}, method="to\0ols")
        assert audit.record(record(call=call, session="s3cret"))
        assert audit.record(record(AuditEvent.CALL_ENDED))
        await until(lambda: len(agentd.ids()) == 2)
        await audit.close()
        await shipper.close()
    (allowed, ended) = (each for request in agentd.requests for each in request.records)
    assert allowed.call is not None
    assert (allowed.call.arguments, allowed.call.method) == ({"path": "/a", "none": None}, "to\ufffdols")
    assert (allowed.verdict, ended.verdict) == ("allowed", "allowed")
    assert ended.service == "github"


async def test_what_is_not_on_the_disk_yet_is_not_told(spool: Path, agentd: Agentd) -> None:
    async with agentd.running(), shipping_from(spool, agentd) as (writer, shipper):
        append(writer, shipper, payload(1))
        await until(lambda: SpoolReader(spool).acknowledged == 1)
        for number in (2, 3):
            assert writer.append(payload(number))
        shipper.wake()
        await until(shipper._done.is_set)
        assert agentd.ids() == ["r1"]
        writer.sync()
        shipper.wake()
        await until(lambda: agentd.ids() == ["r1", "r2", "r3"])
    assert [request.first for request in agentd.requests] == [1, 2]


async def test_while_the_controller_is_away_the_same_is_asked_again(spool: Path, agentd: Agentd) -> None:
    agentd.away = True
    async with agentd.running(), shipping_from(spool, agentd) as (writer, shipper):
        append(writer, shipper, payload(1), payload(2))
        await until(lambda: agentd.asked >= 3)
        assert SpoolReader(spool).acknowledged == 0
        agentd.away = False
        await until(lambda: SpoolReader(spool).acknowledged == 2)
    assert agentd.ids() == ["r1", "r2"]


async def test_an_agentd_that_restarts_is_found_again(spool: Path, agentd: Agentd) -> None:
    async with shipping_from(spool, agentd) as (writer, shipper):
        append(writer, shipper, payload(1))
        async with agentd.running():
            await until(lambda: agentd.ids() == ["r1"])
        append(writer, shipper, payload(2))
        async with agentd.running():
            await until(lambda: SpoolReader(spool).acknowledged == 2)
    assert agentd.ids() == ["r1", "r2"]


async def test_a_restarted_gateway_goes_on_after_what_was_acknowledged(spool: Path, agentd: Agentd) -> None:
    async with agentd.running():
        async with shipping_from(spool, agentd) as (writer, shipper):
            append(writer, shipper, payload(1), payload(2))
            await until(lambda: SpoolReader(spool).acknowledged == 2)
            agentd.away = True
            append(writer, shipper, payload(3))
            await until(lambda: agentd.asked >= 3)
        agentd.away = False
        async with shipping_from(spool, agentd) as (writer, shipper):
            append(writer, shipper, payload(4))
            await until(lambda: SpoolReader(spool).acknowledged == 4)
    assert agentd.ids() == ["r1", "r2", "r3", "r4"]
    assert len({request.spool for request in agentd.requests}) == 1


async def test_what_was_recorded_last_is_shipped_when_the_gateway_stops(spool: Path, agentd: Agentd) -> None:
    async with agentd.running():
        writer = SpoolWriter(spool)
        shipper = Shipper(spool, writer, agentd.socket)
        audit = AuditLog(writer, lambda _: AuditRules(), sync_seconds=1000, synced=shipper.wake)
        shipper.start()
        audit.start()
        audit.record(record())
        await audit.close()
        await shipper.close()
    assert agentd.ids() == ["r1"]


async def test_what_was_recorded_while_the_spool_was_read_is_shipped_when_the_gateway_stops(
    spool: Path, agentd: Agentd
) -> None:
    loop, may_read = asyncio.get_running_loop(), threading.Event()
    loop.set_default_executor(ThreadPoolExecutor(max_workers=1))
    async with agentd.running():
        with SpoolWriter(spool) as writer:
            shipper = Shipper(spool, writer, agentd.socket)
            held = loop.run_in_executor(None, may_read.wait)
            shipper.start()
            await asyncio.sleep(0)  # it looks for records now, up to none: nothing was recorded
            assert writer.append(payload(1))
            writer.sync()
            shipper.wake()
            stopping = asyncio.create_task(shipper.close())
            await asyncio.sleep(0)
            may_read.set()
            await asyncio.gather(held, stopping)
    assert len(agentd.ids()) == 1


async def test_a_full_spool_has_room_again_when_records_were_acknowledged(spool: Path, agentd: Agentd) -> None:
    sizes: dict[str, Any] = {"most_bytes": 40_000, "segment_bytes": 4_000, "reserve": 4_000}
    async with shipping_from(spool, agentd, **sizes) as (writer, shipper):
        text, count = "x" * 200, 0
        while writer.append(payload(count, detail=text)):
            count += 1
        writer.sync()
        async with agentd.running():
            shipper.wake()
            await until(lambda: writer.append(payload(count, detail=text)))
            writer.sync()
            shipper.wake()
            await until(lambda: len(agentd.ids()) == count + 1)


async def test_a_hole_in_the_numbers_begins_another_batch(spool: Path, agentd: Agentd) -> None:
    sizes: dict[str, Any] = {"most_bytes": 40_000, "segment_bytes": 1_000, "reserve": 1_000}
    with SpoolWriter(spool, **sizes) as writer:
        for number in range(40):
            assert writer.append(payload(number))
    segments = sorted(spool.glob("*.wal"))
    assert len(segments) > 2
    damaged = bytearray(segments[1].read_bytes())
    damaged[20] ^= 1
    segments[1].write_bytes(damaged)
    async with agentd.running(), shipping_from(spool, agentd, **sizes) as (writer, shipper):
        append(writer, shipper)
        await until(lambda: SpoolReader(spool).acknowledged == 40)
    first, second = int(segments[1].stem), int(segments[2].stem)
    assert [request.first for request in agentd.requests] == [1, second]
    assert len(agentd.ids()) == 40 - (second - first)


async def test_a_spool_that_was_put_back_to_an_earlier_state_goes_on_as_another(spool: Path, agentd: Agentd) -> None:
    """Else the controller would take its new records for ones that it has."""
    with SpoolWriter(spool) as writer:
        before = writer.id
    agentd.through[before] = 100
    async with agentd.running(), shipping_from(spool, agentd) as (writer, shipper):
        append(writer, shipper, payload(1))
        await until(lambda: SpoolReader(spool).acknowledged == 1)
        assert agentd.through == {before: 100, writer.id: 1}
    assert (spool / "id").read_text() != before


async def test_spools_of_former_workers_are_shipped_and_removed(tmp_path: Path, agentd: Agentd) -> None:
    spools = tmp_path / "spool"
    for number in (0, 1, 2):
        with SpoolWriter(spools / str(number)) as writer:
            assert writer.append(payload(number))
    async with agentd.running():
        with SpoolWriter(spools / "2"):
            await ship_leftovers(spools, 1, agentd.socket)
        assert agentd.ids() == ["r1"]
        assert sorted(path.name for path in spools.iterdir()) == ["0", "2"]


def test_a_record_that_this_version_cannot_read_is_told_without_that_part() -> None:
    told = read_record(payload(1, service="github", session="not a digest", future={"a": 1}))
    assert (told.id, told.service, told.session) == ("r1", "github", None)
    assert told.detail is not None
    assert "session" in told.detail
    for broken in (b"no json", b"[1]", json.dumps({"event": 1, "time": 2}).encode()):
        assert read_record(broken).event == "gateway:audit:unreadable"


def test_a_record_that_is_too_large_is_told_without_what_the_caller_made_large() -> None:
    many = {
        "call": {
            "era": "modern",
            "method": "\x01" * 1025,
            "name": "\x01" * 1025,
            "arguments": {"text": "x" * 16_000},
            "trace": {"traceparent": "\x01" * 1025, "baggage": "\x01" * 1025, "tracestate": "\x01" * 1025},
            "client_unverified": {"name": "\x01" * 1025, "version": "\x01" * 1025},
        },
        "decision": {"deny": 1, "message": "\x01" * 1025, "grant_needed": "\x01" * 1025},
        "detail": "\x01" * 1025,
    }
    told, size = shipping._fitted(read_record(payload(1, **many)))
    assert size <= LARGEST_RECORD
    assert size == len(told.model_dump_json(exclude_none=True))
    assert told.call is not None
    assert (told.call.arguments, told.call.arguments_bytes) == (None, 16_011)
    assert told.call.name == "\x01" * 1025
    small = CallRecord.model_validate_json(payload(1))
    assert shipping._fitted(small)[0] is small
