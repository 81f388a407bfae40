"""What tests of the controller share: a clock to move, a client that trusts one controller, a store on a database."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from controller.server import Running
from controller.store.engine import Engines
from controller.store.migrate import migrate
from controller.store.store import Store


class MovableClock:
    """The real time, plus what a test has added."""

    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.offset

    def advance(self, **delta: float) -> None:
        self.offset += timedelta(**delta)


class Client(httpx.AsyncClient):
    """An admin's client of one running controller."""

    def __init__(self, controller: Running, *, token: str | None = None, **options: Any) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        super().__init__(
            base_url=f"https://127.0.0.1:{controller.port}/api/v1",
            verify=trust(controller),
            headers=headers,
            timeout=20,
            **options,
        )


def trust(controller: Running) -> ssl.SSLContext:
    """A client's TLS context that trusts the controller's CA and nothing else."""
    return ssl.create_default_context(cadata=controller.context.authority.pem)


async def migrated(url: str) -> None:
    """Make the newest schema in an empty database."""
    engines = Engines(url)
    try:
        await migrate(engines)
    finally:
        await engines.dispose()


@asynccontextmanager
async def opened(url: str, clock: Callable[[], datetime]) -> AsyncIterator[Store]:
    """A migrated store on a database that may be shared with others."""
    engines = Engines(url)
    await migrate(engines)
    store = Store(engines, clock)
    try:
        yield store
    finally:
        await store.close()
