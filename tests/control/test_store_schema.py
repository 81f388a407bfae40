"""The database's schema: what migrations make, keep and refuse, on SQLite and on PostgreSQL."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from controller.records import Change
from controller.store.engine import Engines, StoreError
from controller.store.migrate import migrations_path
from controller.store.models import Base
from controller.store.upgrade import upgrade

from .support import MovableClock, opened


async def test_a_database_of_the_first_schema_keeps_its_changes(empty_database_url: str, clock: MovableClock) -> None:
    engines = Engines(empty_database_url)
    async with engines.write.begin() as connection:
        await connection.run_sync(upgrade, migrations_path(), "0001")
        await connection.execute(
            text("INSERT INTO changes (revision, time, nodes, policy) VALUES (1, :time, '[]', false)"),
            {"time": clock().replace(tzinfo=None) if engines.sqlite else clock()},
        )
    await engines.dispose()
    async with opened(empty_database_url, clock) as store:
        assert await store.news_after(0) == Change(1)


async def test_the_schema_that_migrations_make_is_the_models(empty_database_url: str) -> None:
    async with opened(empty_database_url, MovableClock()):
        engines = Engines(empty_database_url)
        async with engines.read.connect() as connection:
            differences = await connection.run_sync(
                lambda sync: compare_metadata(
                    MigrationContext.configure(sync, opts={"compare_type": True}), Base.metadata
                )
            )
        await engines.dispose()
    assert differences == []


async def test_a_database_of_a_newer_version_is_refused(empty_database_url: str) -> None:
    async with opened(empty_database_url, MovableClock()):
        pass
    engines = Engines(empty_database_url)
    async with engines.write.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await engines.dispose()
    with pytest.raises(StoreError, match="newer wardmesh-controller"):
        async with opened(empty_database_url, MovableClock()):
            pass


async def test_a_database_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(StoreError) as caught:
        async with opened("postgresql://wardmesh:hunter2@127.0.0.1:1/none", MovableClock()):
            pass
    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)
