"""A real controller for tests: TLS on loopback, its own state directory, SQLite or PostgreSQL."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from controller.audit import Action
from controller.server import Running, running
from controller.settings import Listen, Settings
from controller.store.store import Store

from .databases import Databases, postgresql_cluster
from .hosts import Host, new_node
from .stores import MESH
from .streams import POLICY
from .support import Client, MovableClock, migrated, opened


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Databases]:
    """Makes databases on one cluster."""
    with postgresql_cluster() as cluster:
        yield Databases(cluster)


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[str]:
    """The URL of a database without any table, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'test.db'}"
        return
    async with request.getfixturevalue("postgresql")() as url:
        yield url


@pytest.fixture(scope="session")
def sqlite_with_schema(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the newest schema and nothing in it, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "test.db"
    asyncio.run(migrated(f"sqlite:///{path}"))
    path.chmod(0o600)  # as a controller makes it
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
async def database_url(request: pytest.FixtureRequest, tmp_path: Path, sqlite_with_schema: Path) -> AsyncIterator[str]:
    """The URL of a database with the newest schema and nothing in it, of each kind in turn."""
    if request.param == "sqlite":
        yield f"sqlite:///{shutil.copy(sqlite_with_schema, tmp_path)}"
        return
    async with request.getfixturevalue("postgresql").with_schema() as url:
        yield url


@pytest.fixture
async def store(database_url: str, clock: MovableClock) -> AsyncIterator[Store]:
    """A store with a mesh and nothing in it."""
    async with opened(database_url, clock) as store:
        async with store.mutation("system", Action.MESH_CREATE, "mesh:m1") as tx:
            await tx.create_mesh(MESH, "00" * 32)
        await store.load_mesh()
        yield store


@pytest.fixture
async def settings(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Settings]:
    """A controller of its own. WARDMESH_TEST_DATABASE=postgresql runs every test that uses it on PostgreSQL."""
    plain = Settings(state_dir=tmp_path / "state", listen=Listen("127.0.0.1", 0))
    if os.environ.get("WARDMESH_TEST_DATABASE", "sqlite") == "sqlite":
        yield plain
        return
    async with request.getfixturevalue("postgresql")() as url:
        yield replace(plain, database_url=url)


@pytest.fixture
async def controller(settings: Settings, clock: MovableClock, sqlite_with_schema: Path) -> AsyncIterator[Running]:
    """At its first start. What that does to a database without tables, other tests see."""
    if settings.database_url is None:
        settings.state_dir.mkdir(mode=0o700)
        shutil.copy(sqlite_with_schema, settings.state_dir / "controller.db")
    async with running(settings, clock) as started:
        yield started


@pytest.fixture
async def admin(controller: Running) -> AsyncIterator[Client]:
    async with Client(controller, token=controller.first_token) as client:
        yield client


@pytest.fixture
async def anyone(controller: Running) -> AsyncIterator[Client]:
    async with Client(controller) as client:
        yield client


@pytest.fixture
async def put_policy(admin: Client) -> Callable[[str], Any]:
    async def put(text: str) -> None:
        current = await admin.get("/policy")
        answer = await admin.put("/policy", json={"text": text}, headers={"if-match": current.headers["etag"]})
        assert answer.is_success, answer.text

    return put


@pytest.fixture
async def caller(admin: Client, anyone: Client, put_policy: Callable[[str], Any]) -> Host:
    await put_policy(POLICY)
    return await new_node(admin, anyone, "caller", tags=["tag:agents"])


@pytest.fixture
async def tool(admin: Client, anyone: Client) -> Host:
    return await new_node(admin, anyone, "tool", tags=["tag:tools"])
