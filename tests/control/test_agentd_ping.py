"""`agentd ping` as a command, with a daemon that knows one peer: what it prints, and when it is interrupted."""

import asyncio
import json
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentd.local_api import Answer, Request
from agentd.local_server import listening, serve
from agentd.path_messages import PingRequest, Pong

from .test_agentd_command import AGENTD

PONG = Pong(id="n1", name="db-1", endpoint="192.0.2.7:51820", path="relay", relay="eu", rtt=0.0123)
LINE = "db-1 answers by way of relay eu from 192.0.2.7:51820 in 12.3 ms"


async def handle(request: Request) -> Answer:
    assert isinstance(request, PingRequest)
    return PONG if request.peer == "db-1" else PONG.model_copy(update={"rtt": None, "name": request.peer})


@pytest.fixture
async def socket(tmp_path: Path) -> AsyncIterator[Path]:
    path = tmp_path / "agentd.sock"
    with listening(path, None) as server:
        task = asyncio.create_task(serve(server, handle, lambda _: None))
        yield path
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ping(socket: Path, *arguments: str) -> Process:
    return await asyncio.create_subprocess_exec(
        AGENTD, "--socket", socket, "ping", *arguments, stdout=PIPE, stderr=PIPE
    )


async def test_each_answer_is_a_line_and_the_totals_are_the_last(socket: Path) -> None:
    running = await ping(socket, "db-1", "-c", "2", "-i", "0.1")
    printed, _ = await running.communicate()
    assert printed.decode().splitlines() == [LINE, LINE, "2 asked, 2 answered, 0% lost; min/mean/max 12.3/12.3/12.3 ms"]
    assert running.returncode == 0


async def test_an_interrupted_ping_tells_the_totals_so_far(socket: Path) -> None:
    running = await ping(socket, "db-1", "-c", "9", "-i", "60")
    assert running.stdout is not None
    assert (await running.stdout.readline()).decode().strip() == LINE
    running.send_signal(signal.SIGINT)
    printed, complaint = await running.communicate()
    assert printed.decode().startswith("1 asked, 1 answered, 0% lost")
    assert (complaint, running.returncode) == (b"", 130)


async def test_without_any_answer_the_exit_code_is_1_and_json_has_the_loss(socket: Path) -> None:
    running = await ping(socket, "gone", "-c", "1", "--json")
    printed, _ = await running.communicate()
    found = json.loads(printed)
    assert (found["name"], found["sent"], found["received"], found["loss"]) == ("gone", 1, 0, 1.0)
    assert running.returncode == 1
