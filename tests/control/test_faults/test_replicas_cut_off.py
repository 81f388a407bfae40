"""Two controllers on one PostgreSQL, of which one cannot reach it for a while: the other goes on, and all converge."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.settings import Settings

from ..agents import Agent, connected, joined, until
from ..databases import Cluster
from ..test_replicas import copy_ca
from .invariants import check
from .load import Promises
from .process import Controller, started
from .test_database import database
from .wire import Wire

POLICY = 'grants: [{{from: "*", to: "*", ip: ["tcp:{port}"]}}]\n'
IMPATIENT = {"controller.store.engine._ANSWER_WITHIN": 1.0}


@dataclass
class Pair:
    """`near` reaches the database at all times, `far` by way of the wire; each has an agent."""

    near: Controller
    far: Controller
    wire: Wire
    agents: list[Agent]


@pytest.fixture
async def pair(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        wire, url = await stack.enter_async_context(database(cluster))
        direct = f"{url.partition('?')[0]}?host={cluster.home}"
        controllers: list[Controller] = []
        for name, place in (("near", direct), ("far", url)):
            if controllers:
                copy_ca(controllers[0].settings.state_dir, tmp_path / name)
            settings = Settings(state_dir=tmp_path / name, database_url=place)
            controllers.append(await stack.enter_async_context(started(settings, tmp_path / f"{name}.log", IMPATIENT)))
            controllers[-1].token = controllers[0].token
        agents: list[Agent] = []
        for controller in controllers:
            async with controller.client() as admin:
                state = await joined(admin, tmp_path, f"host-{len(agents)}")
            agents.append(await stack.enter_async_context(connected(state)))
        await until(lambda: all(len(agent.state.controllers()) == 2 for agent in agents))
        yield Pair(near=controllers[0], far=controllers[1], wire=wire, agents=agents)


async def test_a_controller_that_is_cut_off_writes_nothing_and_takes_in_what_the_others_did_when_it_is_back(
    pair: Pair,
) -> None:
    promises = Promises()
    async with pair.near.client() as near, pair.far.client() as far:
        pair.wire.hold()
        text = POLICY.format(port=1)
        assert (await near.put("/policy", json={"text": text}, headers={"if-match": "*"})).is_success
        promises.acknowledged("policy", "", text)
        made = await asyncio.gather(
            far.post("/enrolment-keys", json={"note": "far"}), near.post("/enrolment-keys", json={"note": "near"})
        )
        assert [answer.status_code for answer in made] == [503, 201], [answer.text for answer in made]
        promises.acknowledged("key", "near", 1)
        promises.tried("key", "far", 1)  # its answer is that it is not known
        await until(lambda: pair.agents[0].peers == {"host-1"}, 60)
        assert pair.agents[1].peers == set(), "nobody can have told it"
        pair.wire.release()
        await until(lambda: pair.agents[1].peers == {"host-0"}, 60)
        async with asyncio.timeout(60):
            while (await far.post("/enrolment-keys", json={"note": "after"})).status_code != 201:
                await asyncio.sleep(0.1)
    for controller in (pair.near, pair.far):
        await check(controller, promises, pair.agents)
