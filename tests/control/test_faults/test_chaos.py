"""Faults of every kind, one after the other by chance, under a load of every kind of write."""

import asyncio
import os
import random
from contextlib import AsyncExitStack
from pathlib import Path

from agentd.state import StateDir

from ..agents import Agent, connected, joined
from ..databases import Cluster
from .invariants import check
from .load import Promises, writing
from .test_database import Bench, benched, until_kept

SECONDS = float(os.environ.get("WARDMESH_CHAOS_SECONDS", "10"))


class Hosts:
    """Agents that are killed and started again: a new one goes on from what is on the disk."""

    def __init__(self, states: list[StateDir]) -> None:
        self._states = states
        self._stacks = [AsyncExitStack() for _ in states]
        self.agents: list[Agent] = []

    async def start(self) -> None:
        self.agents = [
            await stack.enter_async_context(connected(state))
            for stack, state in zip(self._stacks, self._states, strict=True)
        ]

    async def restart(self, number: int) -> None:
        await self._stacks[number].aclose()
        self.agents[number] = await self._stacks[number].enter_async_context(connected(self._states[number]))

    async def stop(self) -> None:
        for stack in self._stacks:
            await stack.aclose()


async def strike(bench: Bench, hosts: Hosts, chance: random.Random) -> str:
    """One fault, and its end; answers with its name."""
    kind = chance.choice(["controller", "controller", "database", "cut", "hold", "commit", "agent"])
    if kind == "controller":
        await bench.controller.kill()
        # A commit whose answer is to be lost may be one of its start: a service manager starts it again then.
        if await bench.controller.try_start() is not None:
            await bench.controller.start()
    elif kind == "database":
        await asyncio.to_thread(bench.cluster.kill)
        await asyncio.to_thread(bench.cluster.start)
    elif kind == "cut":
        bench.wire.cut()
    elif kind == "hold":
        bench.wire.hold()
        await asyncio.sleep(chance.random() / 2)  # how long the fault lasts
        bench.wire.release()
    elif kind == "commit":
        bench.wire.lose_next_commit()
    else:
        await hosts.restart(chance.randrange(len(hosts.agents)))
    return kind


async def test_faults_of_any_kind_in_any_order_lose_nothing(cluster: Cluster, tmp_path: Path, seed: int) -> None:
    """$WARDMESH_CHAOS_SECONDS long (10), and until there was some progress after the last fault."""
    chance, promises = random.Random(seed), Promises()
    struck: list[str] = []
    async with benched(cluster, tmp_path) as bench, AsyncExitStack() as stack:
        async with bench.controller.client() as admin:
            hosts = Hosts([await joined(admin, tmp_path, f"chaos-{n}") for n in range(2)])
        stack.push_async_callback(hosts.stop)
        await hosts.start()
        async with writing(bench.controller, promises, chance, tmp_path):
            end = asyncio.get_running_loop().time() + SECONDS
            while asyncio.get_running_loop().time() < end:
                await until_kept(promises, chance.randrange(1, 6))
                struck.append(await strike(bench, hosts, chance))
            await until_kept(promises, 5)
        print(f"{promises.kept} writes acknowledged through {struck}")
        await check(bench.controller, promises, [*bench.agents, *hosts.agents])
