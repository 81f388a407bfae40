"""From the spool to agentd, and through it to the controller: in order, at least once, forgotten when acknowledged.

    read --> ask agentd --> acknowledged: forget, read on
                |
                +--> agentd or the controller is away: pause, ask the same again

Never in the way of a call: it reads what is already on the disk. Knows nothing of who acknowledges.
"""

import asyncio
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from pydantic import ValidationError

from agentd.gateway_messages import RecordsKept, RecordsRequest
from agentd.local_api import Failure
from controller.wire.call_records import LARGEST_RECORD, LARGEST_RECORDS, MOST_RECORDS, CallRecord

from .agent import AgentLine
from .spool import Entry, SpoolError, SpoolReader, SpoolWriter, read_id

__all__ = ["Shipper", "read_record", "ship_leftovers"]

log = logging.getLogger("agentd.gateway.shipping")

_PATIENCE: Final = 45.0  # seconds; agentd itself gives the controller thirty
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_LAST_CHANCE: Final = 2.0  # seconds for what is left when the gateway stops
_UNREADABLE: Final = "gateway:audit:unreadable"  # a record of another version, or damaged in a way that its CRC missed


@dataclass(frozen=True, slots=True)
class _Batch:
    """Records with consecutive numbers from `first` on."""

    first: int
    records: tuple[CallRecord, ...]

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1


class Shipper:
    """Ships one spool. `writer` appends to it in this process."""

    def __init__(self, directory: Path, writer: SpoolWriter, agent_socket: Path) -> None:
        """Raises SpoolError when the spool cannot be read."""
        self._writer = writer
        self._road = _Road(SpoolReader(directory), AgentLine(agent_socket), lambda: writer.id, lambda: writer.seq)
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._done = asyncio.Event()  # nothing is left to ship, or it cannot be shipped now

    def wake(self) -> None:
        """There is more on the disk."""
        self._done.clear()
        self._more.set()

    def start(self) -> None:
        """Ship from now on, in a task of the running loop."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(_report)

    async def close(self) -> None:
        """Ship what is left if that is a matter of a moment; the rest waits for the next start."""
        if self._task is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_CHANCE):
                await self._done.wait()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._road.line.hang_up()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            self._more.clear()
            try:
                batch = await self._road.next(self._writer.synced)
                if batch is None:
                    if not self._more.is_set():  # nothing came while it was looked for
                        self._done.set()
                    await self._more.wait()
                    continue
                through = await self._road.ship(batch)
                if through > self._writer.seq:
                    # Its numbers are ahead of ours: the directory was put back to an earlier state, from a backup.
                    log.warning("the controller knows later records of this spool than it has: it goes on as another")
                    await asyncio.to_thread(self._writer.renew_id)
                    continue
                await self._road.forget(batch)
                pause = _FIRST_PAUSE
            except (_AwayError, OSError, SpoolError) as error:
                if not isinstance(error, _AwayError):
                    log.warning("records of calls cannot be taken from the spool: %s", error)
                self._done.set()
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)


async def ship_leftovers(spools: Path, workers: int, agent_socket: Path) -> None:
    """Ship the spools of workers that are no more (there were more of them once), and remove them."""
    for directory in await asyncio.to_thread(_spools, spools):
        if int(directory.name) < workers:
            continue
        try:
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            log.warning("the audit spool %s cannot be shipped: %s", directory, error.strerror)
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            await _ship_all(directory, agent_socket)
            await asyncio.to_thread(shutil.rmtree, directory)
            log.info("shipped what a former worker had recorded, from %s", directory)
        except BlockingIOError:
            log.warning("the audit spool %s is in use by another gateway", directory)
        except (OSError, SpoolError) as error:
            log.warning("the audit spool %s cannot be shipped: %s", directory, error)
        finally:
            os.close(lock)


def _spools(directory: Path) -> list[Path]:
    return sorted(found for found in directory.iterdir() if found.name.isdecimal())


async def _ship_all(directory: Path, agent_socket: Path) -> None:
    identifier = await asyncio.to_thread(read_id, directory)
    road = _Road(SpoolReader(directory), AgentLine(agent_socket), lambda: identifier)
    try:
        while (batch := await road.next(None)) is not None:
            try:
                await road.ship(batch)
            except _AwayError:
                await asyncio.sleep(_LONGEST_PAUSE)
            else:
                await road.forget(batch)
    finally:
        road.line.hang_up()


class _AwayError(Exception):
    """Nobody acknowledged: the same again, later."""


class _Road:
    """One spool's reader and its connection to agentd. Says once that nobody is there, and once that somebody is."""

    def __init__(
        self, reader: SpoolReader, line: AgentLine, identifier: Callable[[], str], newest: Callable[[], int] = int
    ) -> None:
        """`newest`: the number of the last record of a spool that is still written."""
        self._reader, self.line, self._identifier, self._newest = reader, line, identifier, newest
        self._entries: list[Entry] = []  # read, not yet acknowledged
        self._away = False

    async def next(self, through: int | None) -> _Batch | None:
        """The first records that were not acknowledged, up to number `through`; None when there are none."""
        if len(self._entries) < MOST_RECORDS:
            self._entries += await asyncio.to_thread(self._reader.read, MOST_RECORDS, through)
        return _batch(self._entries)

    async def ship(self, batch: _Batch) -> int:
        """Returns the number up to which the controller keeps the spool's records. Raises _AwayError."""
        behind = max(self._newest() - batch.last, 0)
        request = RecordsRequest(spool=self._identifier(), first=batch.first, records=batch.records, behind=behind)
        try:
            async with asyncio.timeout(_PATIENCE):
                answer = await self.line.ask(request)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError) as error:
            raise self._is_away(error) from error
        if isinstance(answer, RecordsKept) and answer.through >= batch.last:
            if self._away:
                self._away = False
                log.info("records of calls reach the controller again")
            return answer.through
        raise self._is_away(answer.error if isinstance(answer, Failure) else answer)

    async def forget(self, batch: _Batch) -> None:
        """The controller has them."""
        await asyncio.to_thread(self._reader.acknowledge, batch.last)
        self._entries = [entry for entry in self._entries if entry.seq > batch.last]

    def _is_away(self, why: object) -> _AwayError:
        self.line.hang_up()
        if not self._away:
            self._away = True
            log.warning("records of calls wait in the spool: %s", why)
        return _AwayError()


def _batch(entries: list[Entry]) -> _Batch | None:
    """As many of the first entries as fit into a frame, without a hole in their numbers."""
    records: list[CallRecord] = []
    size = 0
    for entry in entries[:MOST_RECORDS]:
        if entry.seq != entries[0].seq + len(records):
            break
        record, length = _fitted(read_record(entry.payload))
        if records and size + length > LARGEST_RECORDS:
            break
        size += length
        records.append(record)
    return _Batch(entries[0].seq, tuple(records)) if records else None


def read_record(payload: bytes) -> CallRecord:
    """What the spool has, as the controller takes it; parts that cannot be read are left out, and that is said."""
    try:
        return CallRecord.model_validate_json(payload)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)
        broken = {str(each["loc"][0]) for each in first if each["loc"]}
        why = f"{'.'.join(map(str, first[0]['loc']))}: {first[0]['msg']}"[:200]
    try:
        found: dict[str, Any] = orjson.loads(payload)
        kept = {key: value for key, value in found.items() if key not in broken}
        return CallRecord.model_validate_json(orjson.dumps(kept | {"detail": f"left out what is not readable: {why}"}))
    except (ValidationError, orjson.JSONDecodeError, AttributeError):
        return CallRecord.model_validate({"event": _UNREADABLE, "time": time.time(), "detail": why})


def _fitted(record: CallRecord) -> tuple[CallRecord, int]:
    """The record and the bytes of its JSON; one that is too large without what callers may make large."""
    size = len(record.model_dump_json(exclude_none=True).encode())
    if size <= LARGEST_RECORD or record.call is None:
        return record, size
    slim: dict[str, Any] = {"client_unverified": None, "trace": None}
    if record.call.arguments is not None:
        slim |= {"arguments": None, "arguments_bytes": len(orjson.dumps(record.call.arguments))}
    record = record.model_copy(update={"call": record.call.model_copy(update=slim)})
    return record, len(record.model_dump_json(exclude_none=True).encode())


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("records of calls are not shipped any more: restart the gateway", exc_info=error)
