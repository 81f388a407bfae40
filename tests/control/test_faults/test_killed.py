"""kill -9 of a controller in the middle of every kind of write."""

import asyncio
import random
from contextlib import AsyncExitStack
from pathlib import Path

from controller.settings import Settings

from ..agents import connected, joined
from .invariants import check
from .load import Promises, writing
from .process import started

ROUNDS = 5


async def test_a_controller_killed_at_any_moment_of_any_write_keeps_what_it_acknowledged(
    database_url: str, tmp_path: Path, seed: int
) -> None:
    chance, promises = random.Random(seed), Promises()
    settings = Settings(state_dir=tmp_path / "state", database_url=database_url)
    async with started(settings, tmp_path / "log") as controller, AsyncExitStack() as stack:
        async with controller.client() as admin:
            agents = [
                await stack.enter_async_context(connected(await joined(admin, tmp_path, f"host-{n}"))) for n in range(2)
            ]
        async with writing(controller, promises, chance, tmp_path):
            for _ in range(ROUNDS):
                before = promises.kept
                async with asyncio.timeout(30):
                    while promises.kept < before + 10:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(chance.random() * 0.1)  # any moment: the fault, not a wait
                await controller.kill()
                await controller.start()
        await check(controller, promises, agents)
