"""What is asked for at the same time is read as one, and every asker has his own answer."""

import asyncio
from collections.abc import Mapping, Sequence

from controller.together import Together


class Shelf:
    """Squares of the numbers below 1000, and how often and for what they were asked."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.open = asyncio.Event()
        self.fault: Exception | None = None

    async def read(self, keys: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(sorted(keys))
        await self.open.wait()
        if self.fault is not None:
            raise self.fault
        return {key: key * key for key in keys if key < 1000}


async def test_what_is_asked_during_a_reading_is_the_next_one_reading() -> None:
    shelf = Shelf()
    together = Together(shelf.read)
    first = asyncio.create_task(together.get(1))
    while not shelf.asked:
        await asyncio.sleep(0)
    others = [asyncio.create_task(together.get(number)) for number in (2, 3, 3, 1)]
    await asyncio.sleep(0)
    shelf.open.set()
    assert await asyncio.gather(first, *others) == [1, 4, 9, 9, 1]
    assert shelf.asked == [[1], [1, 2, 3]], "also 1 again: the first reading began before it was asked for"


async def test_what_there_is_not_is_none() -> None:
    shelf = Shelf()
    shelf.open.set()
    together = Together(shelf.read)
    assert await asyncio.gather(together.get(1000), together.get(2)) == [None, 4]


async def test_many_are_read_in_batches() -> None:
    shelf = Shelf()
    shelf.open.set()
    together = Together(shelf.read)
    assert await asyncio.gather(*(together.get(number) for number in range(900))) == [n * n for n in range(900)]
    assert len(shelf.asked) == 5
    assert max(map(len, shelf.asked)) == 200


async def test_who_goes_away_disturbs_nobody() -> None:
    shelf = Shelf()
    together = Together(shelf.read)
    gone, stays = asyncio.create_task(together.get(2)), asyncio.create_task(together.get(3))
    while not shelf.asked:
        await asyncio.sleep(0)
    gone.cancel()
    shelf.open.set()
    assert await stays == 9
    assert gone.cancelled()


async def test_a_reading_that_fails_fails_for_all_who_asked_and_the_next_is_another() -> None:
    shelf = Shelf()
    shelf.open.set()
    shelf.fault = OSError("away")
    together = Together(shelf.read)
    failed = await asyncio.gather(together.get(1), together.get(2), return_exceptions=True)
    assert [str(error) for error in failed] == ["away", "away"]
    shelf.fault = None
    assert await together.get(2) == 4
