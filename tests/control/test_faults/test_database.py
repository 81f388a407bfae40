"""PostgreSQL that dies, is away, or cannot be reached: nothing is lost, and the controller goes on by itself."""

import asyncio
import itertools
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from controller.server import running
from controller.settings import Listen, Settings

from ..agents import Agent, allow_all, connected, joined
from ..databases import Cluster
from ..support import Client
from .invariants import check, check_database
from .load import Promises, writing
from .process import Controller, started
from .wire import Wire, wired

_NUMBERS = itertools.count()


@dataclass
class Bench:
    """A controller, its PostgreSQL, and the wire between them."""

    cluster: Cluster
    wire: Wire
    controller: Controller
    agents: list[Agent]


@asynccontextmanager
async def database(cluster: Cluster) -> AsyncIterator[tuple[Wire, str]]:
    """An empty database at the end of a wire, and its URL."""
    name = f"faults{next(_NUMBERS)}"
    admin = await asyncpg.connect(host=str(cluster.home), user="wardmesh", database="postgres")
    await admin.execute(f"CREATE DATABASE {name}")
    await admin.close()
    # A socket's path may have 107 bytes, and pytest's own directory may have more.
    with tempfile.TemporaryDirectory(prefix="wardmesh-wire-") as directory:
        async with wired(cluster.home, Path(directory)) as wire:
            yield wire, f"postgresql://wardmesh@/{name}?host={directory}"


@asynccontextmanager
async def benched(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Bench]:
    """Everything in its place, with two agents."""
    async with AsyncExitStack() as stack:
        wire, url = await stack.enter_async_context(database(cluster))
        settings = Settings(state_dir=tmp_path / "state", database_url=url)
        controller = await stack.enter_async_context(started(settings, tmp_path / "log"))
        async with controller.client() as client:
            states = [await joined(client, tmp_path, f"host-{n}") for n in range(2)]
        agents = [await stack.enter_async_context(connected(state)) for state in states]
        yield Bench(cluster, wire, controller, agents)


@pytest.fixture
async def bench(cluster: Cluster, tmp_path: Path) -> AsyncIterator[Bench]:
    async with benched(cluster, tmp_path) as everything:
        yield everything


async def until_kept(promises: Promises, more: int) -> None:
    """Wait until so many more writes were acknowledged."""
    wanted = promises.kept + more
    async with asyncio.timeout(60):
        while promises.kept < wanted:
            await asyncio.sleep(0.01)


async def test_a_postgresql_that_is_killed_and_comes_back_loses_nothing(
    bench: Bench, tmp_path: Path, seed: int
) -> None:
    chance, promises = random.Random(seed), Promises()
    async with writing(bench.controller, promises, chance, tmp_path):
        for _ in range(3):
            await until_kept(promises, 8)
            await asyncio.to_thread(bench.cluster.kill)
            await asyncio.to_thread(bench.cluster.start)
        await until_kept(promises, 8)
    await check(bench.controller, promises, bench.agents)


async def test_a_commit_whose_answer_is_lost_reaches_the_hosts_all_the_same(bench: Bench) -> None:
    async with bench.controller.client() as admin:
        promises = Promises()
        await check(bench.controller, promises, bench.agents)
        bench.wire.lose_next_commit()
        text = 'grants: [{from: "*", to: "*", ip: ["tcp:*"]}]\n'
        promises.tried("policy", "", text)
        answer = await admin.put("/policy", json={"text": text}, headers={"if-match": "*"})
        assert bench.wire.lost.is_set(), answer.text
        assert answer.status_code == 503, answer.text
        assert (await admin.get("/policy")).json()["text"] == text  # it was committed
        await check(bench.controller, promises, bench.agents)
        # Also when nothing else is written: the hosts hear of it then.
        made = await admin.post("/enrolment-keys", json={})
        assert made.status_code == 201
        await check(bench.controller, promises, bench.agents)


async def test_a_partition_answers_503_within_bounds_and_heals_by_itself(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, to shorten how long the database is waited for."""
    monkeypatch.setattr("controller.store.engine._ANSWER_WITHIN", 1.0)
    async with (
        database(cluster) as (wire, url),
        running(Settings(state_dir=tmp_path / "state", listen=Listen("127.0.0.1", 0), database_url=url)) as controller,
        Client(controller, token=controller.first_token) as admin,
    ):
        state = await joined(admin, tmp_path, "host")
        async with connected(state) as agent:
            wire.hold()
            writes = [admin.post("/enrolment-keys", json={}) for _ in range(3)]
            reads = [admin.get(path) for path in ("/nodes", "/status", "/health")]
            answers = await asyncio.gather(*writes, *reads)
            assert {answer.status_code for answer in answers} == {503}, [answer.text for answer in answers]
            wire.release()
            async with asyncio.timeout(30):
                while (made := await admin.post("/enrolment-keys", json={"note": "after"})).status_code != 201:
                    assert made.status_code == 503, made.text
            await allow_all(admin)
            await check_database(Settings(state_dir=tmp_path / "state", database_url=url), [agent])


async def test_a_controller_whose_postgresql_is_away_says_so_and_starts_when_it_is_back(
    bench: Bench,
) -> None:
    promises = Promises()
    await bench.controller.kill()
    await asyncio.to_thread(bench.cluster.kill)
    refused = await bench.controller.try_start()
    assert refused is not None
    assert refused.startswith("StoreError: the database postgresql")
    await asyncio.to_thread(bench.cluster.start)
    await bench.controller.start()
    await check(bench.controller, promises, bench.agents)
