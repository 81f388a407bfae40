"""What a database that cannot be used is called outside of the store."""

from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from controller.store.engine import StoreError, translated


async def test_a_database_with_no_free_connection_is_busy_and_says_so(tmp_path: Path) -> None:
    url = make_url(f"sqlite+aiosqlite:///{tmp_path / 'a.db'}")
    engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    try:
        async with engine.connect():
            with pytest.raises(StoreError, match="busy"), translated(url):
                await engine.connect().start()
    finally:
        await engine.dispose()
