"""A clock that was put back is noticed once, however it was set before; one that is put forward is not."""

import asyncio
import itertools
from contextlib import suppress

import pytest

from agentd.errors import AgentError
from agentd.put_back import ClockWatch, watch

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


async def test_a_new_key_is_tried_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.chain([False, True], itertools.repeat(False))
    monkeypatch.setattr(ClockWatch, "was_put_back", lambda *_: next(looks))
    monkeypatch.setattr("agentd.put_back._EVERY", 0.0)
    tried: list[bool] = []
    is_away, looked_again = iter([True, True, False]), asyncio.Event()

    async def rotate() -> None:
        tried.append(next(is_away))
        if tried[-1]:
            raise AgentError("the controller is away")
        asyncio.get_running_loop().call_later(0.05, looked_again.set)

    watching = asyncio.create_task(watch(rotate))
    async with asyncio.timeout(20):
        await looked_again.wait()
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    assert tried == [True, True, False]
