"""What is asked for one by one at the same time, read as one: a thousand hosts that come at once are a few queries."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Final, Generic, TypeVar

__all__ = ["Together"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MOST: Final = 200  # keys in one reading


class Together(Generic[K, V]):
    """`get` answers from a reading that began after it was asked. One reading at a time."""

    def __init__(self, read: Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]) -> None:
        self._read = read
        self._asked: list[tuple[K, asyncio.Future[V | None]]] = []
        self._reading: asyncio.Task[None] | None = None

    async def get(self, key: K) -> V | None:
        """The value; None when there is none. Raises what `read` raises."""
        answer: asyncio.Future[V | None] = asyncio.get_running_loop().create_future()
        self._asked.append((key, answer))
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._asked:
            batch, self._asked = self._asked[:_MOST], self._asked[_MOST:]
            [found] = await asyncio.gather(self._read(list({key for key, _ in batch})), return_exceptions=True)
            for key, answer in batch:
                if answer.done():  # who asked has gone
                    continue
                if isinstance(found, BaseException):
                    answer.set_exception(found)
                else:
                    answer.set_result(found.get(key))
