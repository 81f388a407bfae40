"""A clock that was put back is noticed once, however it was set before; one that is put forward is not."""

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agentd.errors import AgentError
from agentd.put_back import ClockWatch, watch
from agentd.state import CLOCK, NODE, StateDir

DAY = 86400.0


def seen(*walls: float) -> list[bool]:
    """What is seen of a wall clock that a look each minute finds so far from the right time."""
    watch = ClockWatch(1e9, 0.0)
    return [watch.was_put_back(1e9 + minute * 60 + wall, minute * 60) for minute, wall in enumerate(walls, 1)]


@pytest.mark.parametrize(
    ("walls", "noticed"),
    [
        ([0, 0, 0], [False, False, False]),
        ([DAY, DAY], [False, False]),
        ([DAY, 0, 0], [False, True, False]),
        ([-DAY, -DAY], [True, False]),
        ([DAY, 0, -DAY, 0], [False, True, True, False]),
        ([-59, 0, -59], [False, False, False]),
        ([-40, -80, -120], [False, True, False]),
    ],
)
def test_each_time_it_was_put_back_is_noticed_once(walls: list[float], noticed: list[bool]) -> None:
    assert seen(*walls) == noticed


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StateDir:
    monkeypatch.setattr("agentd.put_back._EVERY", 0.0)
    state = StateDir(tmp_path)
    state.write(NODE, b"which mesh this host is in")
    return state


@asynccontextmanager
async def watching(rotate: Callable[[], Awaitable[object]], state: StateDir) -> AsyncIterator[None]:
    task = asyncio.create_task(watch(rotate, state))
    try:
        async with asyncio.timeout(20):
            yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def remembered(state: StateDir, ago: float) -> None:
    """The state directory as an agentd left it whose clock was `ago` seconds behind this one when it ended."""
    state.note_time()
    os.utime(state.path / CLOCK, (time.time() - ago, time.time() - ago))


async def test_a_new_key_is_tried_until_there_is_one(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.chain([False, True], itertools.repeat(False))
    monkeypatch.setattr(ClockWatch, "was_put_back", lambda *_: next(looks))
    tried: list[bool] = []
    is_away, looked_again = iter([True, True, False]), asyncio.Event()

    async def rotate() -> None:
        tried.append(next(is_away))
        if tried[-1]:
            raise AgentError("the controller is away")
        asyncio.get_running_loop().call_later(0.05, looked_again.set)

    async with watching(rotate, state):
        await looked_again.wait()
    assert tried == [True, True, False]


async def test_a_clock_that_was_put_back_while_agentd_did_not_run_is_noticed_when_it_does(state: StateDir) -> None:
    remembered(state, -DAY)
    rotated = asyncio.Event()

    async def rotate() -> None:
        rotated.set()

    async with watching(rotate, state):
        await rotated.wait()
        while (state.last_time() or 0.0) > time.time():
            await asyncio.sleep(0)


async def test_that_it_was_put_back_is_not_forgotten_before_there_is_a_new_key(state: StateDir) -> None:
    remembered(state, -DAY)
    tried, often = itertools.count(1), asyncio.Event()

    async def rotate() -> None:
        if next(tried) == 20:
            often.set()
        raise AgentError("the controller is away")

    async with watching(rotate, state):
        await often.wait()
    assert (state.last_time() or 0.0) > time.time() + DAY / 2


@pytest.mark.parametrize("ago", [None, DAY, 0.0, -30.0])
async def test_a_clock_that_went_on_while_agentd_did_not_run_costs_no_key(state: StateDir, ago: float | None) -> None:
    if ago is not None:
        remembered(state, ago)
    looks, noted = itertools.count(1), asyncio.Event()
    rotated: list[bool] = []

    class Counting(StateDir):
        def note_time(self) -> None:
            super().note_time()
            if next(looks) == 20:
                noted.set()

    async def rotate() -> None:
        rotated.append(True)

    async with watching(rotate, Counting(state.path)):
        await noted.wait()
    assert rotated == []
    assert abs((state.last_time() or 0.0) - time.time()) < 20


async def test_where_the_time_cannot_be_remembered_a_clock_that_is_put_back_is_noticed_all_the_same(
    state: StateDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = itertools.chain([False] * 20, [True], itertools.repeat(False))
    monkeypatch.setattr(ClockWatch, "was_put_back", lambda *_: next(looks))
    rotated = asyncio.Event()

    async def rotate() -> None:
        rotated.set()

    (state.path / CLOCK).mkdir()
    async with watching(rotate, state):
        await rotated.wait()
    complaints = [record for record in caplog.records if str(state.path / CLOCK) in record.getMessage()]
    assert len(complaints) == 1


async def test_a_host_that_left_its_mesh_is_left_no_file_by_the_watch(state: StateDir) -> None:
    state.note_time()
    state.clear(directory=False)
    state.note_time()
    assert list(state.path.iterdir()) == []
