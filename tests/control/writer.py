"""A process that adds nodes: `python -m tests.control.writer URL NAME COUNT`, for tests of writers in processes."""

import asyncio
import sys

from .stores import add_node
from .support import MovableClock, opened


async def main(url: str, name: str, count: int) -> None:
    async with opened(url, MovableClock()) as store:
        await store.load_mesh()
        for number in range(count):
            await add_node(store, f"p{name}-{number}")


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
