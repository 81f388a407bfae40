"""The largest packet that a path carries: found by what passes, kept while nothing answers, not asked too often."""

import asyncio
import random

import pytest

from agentd.path_mtu import PathMtu
from agentd.paths.mtu import interval, rungs, search, wireguard_size

THERE = "192.0.2.7:51820"


class Path:
    """Carries inner packets of at most `largest` bytes, and loses every question with probability `loss`."""

    def __init__(self, largest: int, loss: float = 0.0) -> None:
        self.largest, self.loss, self.asked = largest, loss, list[int]()
        self._random = random.Random(3)

    async def passes(self, size: int) -> bool:
        self.asked.append(size)
        return size <= self.largest and self._random.random() >= self.loss

    async def ask(self, node: str, endpoint: str, *, patience: float, size: int) -> float | None:
        assert (node, endpoint) == ("n2", THERE)
        assert patience > 0
        return 0.01 if await self.passes(size - wireguard_size(0)) else None


async def test_a_path_that_carries_all_costs_one_question() -> None:
    path = Path(1420)
    assert await search(path.passes, 1420, 1420) == 1420
    assert path.asked == [1420]


@pytest.mark.parametrize("largest", range(576, 1430, 7))
async def test_what_is_found_passes_and_the_next_larger_would_not(largest: int) -> None:
    found = await search(Path(largest).passes, 1420, 1420)
    assert found is not None
    assert found <= largest
    assert not [size for size in rungs(1420) if found < size <= largest]


async def test_lost_questions_are_not_taken_for_a_narrow_path() -> None:
    narrow = 0
    for _ in range(100):
        narrow += await search(Path(1420, loss=0.1).passes, 1420, 1420) != 1420
    assert narrow == 0


async def test_a_path_that_answers_nothing_is_away_and_not_narrow() -> None:
    assert await search(Path(0).passes, 1420, 1420) is None


async def test_a_path_that_became_narrower_is_found_out_by_the_size_that_passed_before() -> None:
    path = Path(1240)
    assert await search(path.passes, 1420, 1420) == 1240
    path.largest = 1220
    assert await search(path.passes, 1240, 1420) == 1220


def test_all_peers_together_are_asked_once_a_second_at_most() -> None:
    assert interval(1) == 60
    assert interval(500) / 500 >= 1


async def test_a_peers_size_is_told_when_it_is_less_than_the_links_and_kept_while_nobody_answers() -> None:
    path, told = Path(1240), asyncio.Event()
    sizes = PathMtu(path.ask, 1420, told.set)
    running = asyncio.create_task(sizes.run())
    assert sizes.of("n2") is None
    sizes.look("n2", THERE, 0.01)
    async with asyncio.timeout(20):
        await told.wait()
    assert sizes.of("n2") == 1240
    path.largest = 0
    before = len(path.asked)
    sizes.look("n2", THERE, 0.01)
    async with asyncio.timeout(20):
        while len(path.asked) < before + 3 * (1 + len(rungs(1420))):
            await asyncio.sleep(0)
    assert sizes.of("n2") == 1240
    sizes.keep([])
    assert sizes.of("n2") is None
    running.cancel()


async def test_a_path_that_carries_all_changes_nothing() -> None:
    path, told = Path(1420), asyncio.Event()
    sizes = PathMtu(path.ask, 1420, told.set)
    running = asyncio.create_task(sizes.run())
    sizes.look("n2", THERE, 0.01)
    async with asyncio.timeout(20):
        while sizes.of("n2") is None:
            await asyncio.sleep(0)
    assert not told.is_set()
    running.cancel()
