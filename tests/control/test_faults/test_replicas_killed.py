"""Three controllers on one PostgreSQL, of which one is killed while it changes the policy: every host converges."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import pytest

from controller.settings import Settings

from ..agents import Agent, connected, joined, until
from ..databases import Cluster
from ..test_replicas import copy_ca
from .invariants import check
from .load import Promises
from .process import Controller, started
from .test_database import database

ROUNDS = 2
POLICY = 'grants: [{{from: "*", to: "*", ip: ["tcp:{port}"]}}]\n'


@dataclass
class Trio:
    """Controllers, and agents: the n-th joined at the n-th."""

    controllers: list[Controller]
    agents: list[Agent]


def knows_all(agent: Agent) -> bool:
    return len(agent.state.controllers()) == 3


def has_left(agent: Agent, port: int) -> bool:
    return str(port) not in agent.control.standing.url


@pytest.fixture
async def trio(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Trio]:
    async with AsyncExitStack() as stack:
        _, url = await stack.enter_async_context(database(cluster))
        controllers: list[Controller] = []
        for number in range(3):
            state = tmp_path / f"controller-{number}"
            if controllers:
                copy_ca(controllers[0].settings.state_dir, state)
            settings = Settings(state_dir=state, database_url=url)
            controllers.append(await stack.enter_async_context(started(settings, tmp_path / f"log-{number}")))
            controllers[-1].token = controllers[0].token
        agents = []
        for number, controller in enumerate(controllers):
            async with controller.client() as admin:
                state_dir = await joined(admin, tmp_path, f"host-{number}")
            agents.append(await stack.enter_async_context(connected(state_dir)))
        for agent in agents:  # none has peers, policy is default deny
            await until(partial(knows_all, agent))
        yield Trio(controllers, agents)


async def test_hosts_of_a_controller_that_is_killed_in_a_policy_change_converge_at_the_others(
    trio: Trio, seed: int
) -> None:
    chance, promises = random.Random(seed), Promises()
    async with trio.controllers[0].client() as admin:
        text = POLICY.format(port=999)
        assert (await admin.put("/policy", json={"text": text}, headers={"if-match": "*"})).is_success
        promises.acknowledged("policy", "", text)
    for number in range(ROUNDS):
        victim = trio.controllers[number]
        text = POLICY.format(port=1000 + number)
        promises.tried("policy", "", text)
        async with victim.client() as admin:
            assert (await admin.get("/policy")).is_success  # connected: what is killed is the change
            change = asyncio.create_task(admin.put("/policy", json={"text": text}, headers={"if-match": "*"}))
            await asyncio.sleep(chance.random() * 0.1)  # any moment: the fault, not a wait
            await victim.kill()
            try:
                answer = await change
            except httpx.TransportError:
                pass  # in force or not, but for all the same
            else:
                assert answer.is_success, answer.text
                promises.acknowledged("policy", "", text)
        survivor = trio.controllers[(number + 1) % 3]
        await check(survivor, promises, trio.agents)
        for agent in trio.agents:
            await until(partial(has_left, agent, victim.port))
        await victim.start()
    await check(trio.controllers[0], promises, trio.agents)
