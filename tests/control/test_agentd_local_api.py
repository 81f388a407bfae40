"""The daemon's socket: who may open it, what happens to nonsense, and that a second daemon is refused."""

import asyncio
import grp
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from agentd.errors import AgentError
from agentd.instance import sole_owner
from agentd.local_api import (
    LARGEST_REQUEST,
    Answer,
    Diff,
    DiffRequest,
    LeaveRequest,
    Left,
    PeersRequest,
    Request,
    StatusRequest,
    WhoisRequest,
)
from agentd.local_client import NotRunningError, ask
from agentd.local_server import listening, serve

answered: list[Answer] = []


async def handle(request: Request) -> Answer:
    match request:
        case DiffRequest():
            return Diff(operations=("x" * 1_000_000,))
        case LeaveRequest():
            return Left(told=True, done=())
        case PeersRequest():
            raise AgentError("one clear sentence")
        case WhoisRequest():
            raise ZeroDivisionError
        case _:
            return Left(told=False, done=())


@asynccontextmanager
async def daemon(path: Path) -> AsyncIterator[None]:
    answered.clear()
    with listening(path, None) as server:
        task = asyncio.create_task(serve(server, handle, answered.append))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def lines(path: Path, *requests: bytes) -> list[dict[str, object]]:
    reader, writer = await asyncio.open_unix_connection(path, limit=4 * LARGEST_REQUEST)
    writer.write(b"".join(requests))
    writer.write_eof()
    raw = await reader.read()
    writer.close()
    return [json.loads(line) for line in raw.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "agentd.sock"


async def test_a_large_answer_arrives_whole(path: Path) -> None:
    async with daemon(path):
        diff = await asyncio.to_thread(ask, path, DiffRequest(), Diff)
    assert len(diff.operations[0]) == 1_000_000


async def test_an_error_is_the_daemons_sentence(path: Path) -> None:
    async with daemon(path):
        with pytest.raises(AgentError, match=r"^one clear sentence$"):
            await asyncio.to_thread(ask, path, PeersRequest(), Diff)


async def test_a_defect_ends_neither_daemon_nor_connection(path: Path) -> None:
    whois = WhoisRequest(address="100.80.0.1").model_dump_json().encode() + b"\n"
    async with daemon(path):
        failed, worked = await lines(path, whois, b'{"request":"leave"}\n')
    assert failed["error"] == "agentd failed to answer; its log says why"
    assert worked["answer"] == "left"


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\n",
        b"{}\n",
        b"\xff\xfe\n",
        b'{"request":"shutdown"}\n',
        b'{"request":"status","x":1}\n',
        b"GET / HTTP/1.1\r\n",
    ],
)
async def test_nonsense_is_answered_and_the_next_request_works(path: Path, nonsense: bytes) -> None:
    async with daemon(path):
        refused, worked = await lines(path, nonsense, b'{"request":"leave"}\n')
    assert (refused["answer"], worked["answer"]) == ("failure", "left")


async def test_a_line_without_end_is_cut_off(path: Path) -> None:
    async with daemon(path):
        (refused,) = await lines(path, b"x" * (LARGEST_REQUEST + 1))
    assert refused["error"] == f"a request is one line of at most {LARGEST_REQUEST} bytes"


async def test_who_hangs_up_disturbs_nobody(path: Path) -> None:
    async with daemon(path):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(path))
            rude.send(DiffRequest().model_dump_json().encode() + b"\n")
        assert (await asyncio.to_thread(ask, path, LeaveRequest(), Left)).told


async def test_the_daemon_hears_that_its_answer_was_written(path: Path) -> None:
    async with daemon(path):
        await asyncio.to_thread(ask, path, LeaveRequest(), Left)
        assert answered == [Left(told=True, done=())]


@pytest.mark.usefixtures("root")
async def test_only_root_and_the_daemons_user_may_change_anything(path: Path) -> None:
    async with daemon(path):
        path.chmod(0o666)
        script = (
            "import os, socket; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
            f's.connect({str(path)!r}); s.sendall(b\'{{"request":"leave"}}\\n\'); print(s.recv(4096).decode())'
        )
        for directory in (path.parent, *path.parents[:4]):
            if directory != Path("/tmp"):
                directory.chmod(0o755)
        process = await asyncio.create_subprocess_exec("python3", "-c", script, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
    assert json.loads(output)["error"] == "leave is for root: run it with sudo"


async def test_the_socket_is_for_owner_and_group(path: Path) -> None:
    async with daemon(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


@pytest.mark.usefixtures("root")
def test_the_group_is_as_configured(path: Path) -> None:
    group = grp.getgrgid(1).gr_name
    with listening(path, group):
        assert path.stat().st_gid == 1


def test_a_group_that_is_not_there_is_named(path: Path) -> None:
    with (
        pytest.raises(AgentError, match="there is no group 'no-such-group': make it with"),
        listening(path, "no-such-group"),
    ):
        pass


def test_a_socket_that_a_killed_daemon_left_is_replaced(path: Path) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(path, None):
        pass


def test_a_socket_that_answers_is_another_daemon(path: Path) -> None:
    with (
        listening(path, None),
        pytest.raises(AgentError, match=r"another agentd answers at .*--socket"),
        listening(path, None),
    ):
        pass


def test_asking_nobody_says_how_to_start_it(path: Path) -> None:
    with pytest.raises(NotRunningError, match=r"agentd is not running .*start it with `agentd run`"):
        ask(path, StatusRequest(), Left)


@pytest.mark.parametrize(("link", "table"), [("wm-test0", "other"), ("wm-test1", "wm_test")])
def test_a_link_or_table_has_one_daemon(link: str, table: str) -> None:
    with (
        sole_owner(link="wm-test0", table="wm_test"),
        pytest.raises(AgentError, match=r"another agentd on this host owns the (link wm-test0|table wm_test): stop it"),
        sole_owner(link=link, table=table),
    ):
        pass


def test_another_link_and_table_may_have_another_daemon() -> None:
    with sole_owner(link="wm-test0", table="wm_test"), sole_owner(link="wm-test1", table="wm_test1"):
        pass
