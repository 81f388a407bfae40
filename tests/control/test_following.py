"""`--follow` as people use it: the real command prints what comes, ends with Ctrl-C, and minds no closed pipe."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from controller.server import Running

from .hosts import new_key, new_node
from .streams import agent
from .support import Client
from .test_cli.bench import BIN
from .test_stream_denials import frame

PATIENCE = 30.0  # seconds; starting the command alone takes one or two
Happen = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class Following:
    """A running command, and the reading end of its output."""

    process: asyncio.subprocess.Process
    output: asyncio.StreamReader
    pipe: asyncio.ReadTransport

    async def line(self) -> str:
        async with asyncio.timeout(PATIENCE):
            return (await self.output.readline()).decode()


@asynccontextmanager
async def following(controller: Running, directory: Path, *arguments: str) -> AsyncIterator[Following]:
    """`wardmesh … --follow` with pipes for its output."""
    (directory / "ca.pem").write_text(controller.context.authority.pem)
    environment = {
        "HOME": str(directory),
        "WARDMESH_URL": f"https://127.0.0.1:{controller.port}",
        "WARDMESH_TOKEN": controller.first_token or "",
        "WARDMESH_CA": str(directory / "ca.pem"),
    }
    reading, writing = os.pipe()
    output = asyncio.StreamReader()
    pipe, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(reading, "rb")
    )
    process = await asyncio.create_subprocess_exec(
        BIN / "wardmesh",
        *arguments,
        "--follow",
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], **environment},
    )
    os.close(writing)
    try:
        yield Following(process, output, pipe)
    finally:
        pipe.close()
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def entries(controller: Running, admin: Client, anyone: Client, directory: Path) -> AsyncIterator[Happen]:
    async def happen() -> None:
        await new_key(admin)

    yield happen


@asynccontextmanager
async def denials(controller: Running, admin: Client, anyone: Client, directory: Path) -> AsyncIterator[Happen]:
    counts = itertools.count(1)
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, directory) as its:
        await its.hello()

        async def happen() -> None:
            await its.say(frame(next(counts)))

        yield happen


@dataclass(frozen=True)
class Followed:
    """A running command, what makes it print another line, and what that line has."""

    command: Following
    happen: Happen
    shown: str

    async def see(self) -> None:
        """Make it happen, and wait until the command has printed it."""
        await self.happen()
        while self.shown not in await self.command.line():
            pass


@pytest.fixture(
    params=[
        (("audit", "list"), entries, "admin:key:create"),
        (("audit", "denied"), denials, "100.64.0.9 -> 100.64.0.1  tcp:22"),
    ],
    ids=["list", "denied"],
)
async def followed(
    request: pytest.FixtureRequest, controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> AsyncIterator[Followed]:
    command, happening, shown = request.param
    async with (
        happening(controller, admin, anyone, tmp_path) as happen,
        following(controller, tmp_path, *command) as started,
    ):
        yield Followed(started, happen, shown)


async def test_follow_prints_what_comes_and_ends_with_ctrl_c_without_a_traceback(followed: Followed) -> None:
    process = followed.command.process
    await followed.see()
    await followed.see()
    process.send_signal(signal.SIGINT)
    async with asyncio.timeout(PATIENCE):
        _, said = await process.communicate()
    assert (process.returncode, said) == (130, b"")


async def test_follow_ends_in_silence_when_its_reader_has_gone(followed: Followed) -> None:
    process = followed.command.process
    await followed.see()
    followed.command.pipe.close()  # as `head -1` does
    async with asyncio.timeout(PATIENCE):
        while process.returncode is None:  # it learns that with the next line that it prints
            await followed.happen()
            await asyncio.sleep(0.1)
    assert process.stderr is not None
    assert (process.returncode, await process.stderr.read()) == (1, b"")
