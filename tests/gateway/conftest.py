"""Gateway tests run on uvloop, as the gateway does, and leave no task, descriptor or warning behind."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

import psutil
import pytest
import uvloop

from agentd.gateway.http.exchange import Begun, Exchange
from agentd.gateway.proxy import ServiceApp
from tests.gateway.agent import Agent
from tests.gateway.authority import Authority
from tests.gateway.following import Gateway
from tests.gateway.harness import Lab
from tests.gateway.processes import Process
from tests.gateway.sdk_server import serving
from tests.gateway.upstream import Upstream

LONGEST: Final = 110.0  # seconds: less than `timeout` of pyproject.toml


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    """End a test that waits for ever: uvloop takes what pytest-timeout raises for a callback's, and goes on."""
    loop = asyncio.get_running_loop()
    timer = loop.call_later(
        LONGEST, lambda: [task.cancel("the test took too long") for task in asyncio.all_tasks(loop)]
    )
    yield
    timer.cancel()


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    """Gateways, upstreams and clients of one test; afterwards every task and descriptor must be gone."""
    before = descriptors()
    made = Lab(tmp_path)
    try:
        yield made
    finally:
        await made.close()
    await settle(before)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[Exchange]:
    """What took the shortcut."""
    found: list[Exchange] = []
    begin = ServiceApp.begin

    def counted(app: ServiceApp, exchange: Exchange) -> Begun | None:
        begun = begin(app, exchange)
        if begun is not None:
            found.append(exchange)
        return begun

    monkeypatch.setattr(ServiceApp, "begin", counted)
    return found


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """agentd's side of the gateway's socket."""
    made = Agent(tmp_path / "agentd.sock")
    yield made
    await made.stop()


@pytest.fixture
async def gateway(tmp_path: Path, agent: Agent) -> AsyncIterator[Gateway]:
    """A gateway that follows `agent`, not started yet."""
    made = Gateway(tmp_path, agent)
    yield made
    await made.stop()


@pytest.fixture
async def upstream(lab: Lab) -> Upstream:
    return await lab.upstream()


@pytest.fixture
async def policy_gateway(tmp_path: Path, upstream: Upstream) -> AsyncIterator[Process]:
    """A gateway with a policy file of one service, whose upstream is `upstream`; not started yet."""
    made = Process(tmp_path, f"http://127.0.0.1:{upstream.port}/mcp")
    yield made
    if made.process is not None and made.process.returncode is None:
        await made.stop()


@pytest.fixture
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a real MCP server of both eras, one for all tests of a file."""
    with serving() as url:
        yield url


def descriptors() -> set[int]:
    """TCP sockets that this process holds. The loop's own are others."""
    return {connection.fd for connection in psutil.Process().net_connections("tcp")}


async def settle(before: set[int]) -> None:
    """Wait, with a bound, until nothing of the test is left. What is then left is a leak."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 5
    while True:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        leaked = descriptors() - before
        if (not tasks and not leaked) or loop.time() > deadline:
            break
        await asyncio.sleep(0.01)
    assert not tasks, f"tasks are left: {tasks}"
    assert not leaked, f"descriptors are left: {leaked}"
