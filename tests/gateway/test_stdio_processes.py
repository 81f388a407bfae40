"""Processes that serve on standard input and output: how many, from start to end, and what is left when they die."""

import asyncio
import sys
from pathlib import Path

import pytest

from agentd.gateway.types import UpstreamError

from .stdio_callers import ANN, BOB, SCRIPT, Clock, alive, begin, eventually, facts, pool, result_of, tool


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_many_callers_at_once_start_one_process() -> None:
    async with pool() as stdio:
        sessions = await asyncio.gather(*(begin(stdio, ANN if n % 2 else BOB) for n in range(20)))
        found = await asyncio.gather(*(facts(stdio, ANN if n % 2 else BOB, s) for n, s in enumerate(sessions)))
        assert len({one["pid"] for one in found}) == 1
        assert [m["method"] for m in found[0]["heard"][:2]] == ["initialize", "notifications/initialized"]
        assert found[0]["heard"][0]["params"]["capabilities"] == {}


async def test_each_caller_may_have_a_process_of_its_own() -> None:
    async with pool(per="caller") as stdio:
        ann, bob = await begin(stdio, ANN, {"roots": {}}), await begin(stdio, BOB)
        one, other = await facts(stdio, ANN, ann), await facts(stdio, BOB, bob)
        assert one["pid"] != other["pid"]
        assert one["heard"][0]["params"]["capabilities"] == {"roots": {}}


async def test_the_gateways_environment_stays_with_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_GATEWAY", "x")
    async with pool(environment={"SETTING": "1"}) as stdio:
        environment = (await facts(stdio, ANN, await begin(stdio, ANN)))["environment"]
    assert environment["SETTING"] == "1"
    assert "SECRET_OF_THE_GATEWAY" not in environment


async def test_a_process_that_dies_is_told_and_started_again_later() -> None:
    clock = Clock()
    async with pool(clock) as stdio:
        session = await begin(stdio, ANN)
        first = (await facts(stdio, ANN, session))["pid"]
        with pytest.raises(UpstreamError, match="ended before it answered") as died:
            await stdio.open(tool(ANN, session, "die"))
        assert died.value.reached
        with pytest.raises(
            UpstreamError, match=r"exited with code 3: fatal: told to die; it is started again in 0\.5 s"
        ) as away:
            await begin(stdio, ANN)
        assert not away.value.reached
        assert not alive(first)
        clock.now += 0.6
        gone = await stdio.open(tool(ANN, session, "facts"))
        assert gone.status == 404  # its sessions died with it
        assert (await facts(stdio, ANN, await begin(stdio, ANN)))["pid"] != first


async def test_the_delay_grows_while_it_dies_and_is_forgotten_when_it_lives() -> None:
    clock, waits = Clock(), []
    async with pool(clock) as stdio:
        for _ in range(4):
            session = await begin(stdio, ANN)
            with pytest.raises(UpstreamError):
                await stdio.open(tool(ANN, session, "die"))
            with pytest.raises(UpstreamError) as away:
                await begin(stdio, ANN)
            waits.append(float(str(away.value).split(" in ")[1].split()[0]))
            clock.now += waits[-1] + 0.1
        assert waits == [0.5, 1.0, 2.0, 4.0]
        session = await begin(stdio, ANN)
        clock.now += 61
        with pytest.raises(UpstreamError):
            await stdio.open(tool(ANN, session, "die"))
        with pytest.raises(UpstreamError, match=r"in 0\.5 s"):
            await begin(stdio, ANN)


async def test_a_command_that_is_not_there_is_one_sentence() -> None:
    async with pool(command=("/nonexistent/server",)) as stdio:
        with pytest.raises(UpstreamError, match="'/nonexistent/server' cannot be started: No such file") as error:
            await begin(stdio, ANN)
        assert not error.value.reached


async def test_a_command_that_exits_at_once_is_explained() -> None:
    async with pool(command=("sh", "-c", "echo no licence >&2; exit 7")) as stdio:
        with pytest.raises(UpstreamError, match="exited with code 7: no licence"):
            await begin(stdio, ANN)


async def test_closing_ends_the_process_and_what_it_started() -> None:
    async with pool() as stdio:
        session = await begin(stdio, ANN)
        server = (await facts(stdio, ANN, session))["pid"]
        grandchild = await result_of(stdio, tool(ANN, session, "child"))
        assert alive(server)
        assert alive(grandchild)
    await eventually(lambda: not alive(server) and not alive(grandchild))


async def test_a_server_that_ignores_its_end_is_killed() -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN)\nexec(open(%r).read())\nwhile True: time.sleep(9)"
    )
    async with pool(command=(sys.executable, "-c", stubborn % SCRIPT[1])) as stdio:
        server = (await facts(stdio, ANN, await begin(stdio, ANN)))["pid"]
    await eventually(lambda: not alive(server))


async def test_a_stopped_service_starts_nothing() -> None:
    async with pool() as stdio:
        await begin(stdio, ANN)
        await stdio.close()
        with pytest.raises(UpstreamError, match="stopping"):
            await begin(stdio, ANN)
    assert not [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]


async def test_no_descriptor_stays_open() -> None:
    before = 0
    for number in range(4):
        async with pool() as stdio:
            await begin(stdio, ANN)
        if number == 0:  # the first makes what asyncio keeps for all
            before = descriptors()
    await eventually(lambda: descriptors() <= before)
