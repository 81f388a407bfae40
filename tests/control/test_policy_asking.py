"""What REST tells of hosts' kernels: hosts are asked on their streams, and those that are silent are left out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controller.server import Running
from controller.wire.asking import Answer, Ask, Judged

from .hosts import Host
from .streams import Agent, agent
from .support import Client
from .test_policy_use import POLICY, explain, put, two_nodes

Reply = Callable[[Ask], list[Answer]]


@asynccontextmanager
async def answering(controller: Running, host: Host, directory: Path, reply: Reply) -> AsyncIterator[list[Ask]]:
    """The host's agent, which answers what it is asked so; yields the questions."""
    asked: list[Ask] = []

    async def serve(its: Agent) -> None:
        while True:
            frame = await its.take()
            if isinstance(frame, Ask):
                asked.append(frame)
                for answer in reply(frame):
                    await its.say(answer.model_dump_json())

    async with agent(controller, host, directory) as its:
        await its.hello()
        task = asyncio.create_task(serve(its))
        try:
            yield asked
        finally:
            task.cancel()


def saying(passes: bool | None, **more: Any) -> Reply:
    return lambda ask: [
        Answer(id=ask.id, revision=3, judged=tuple(Judged(passes=passes, **more) for _ in ask.flows)),
    ]


@pytest.fixture
async def hosts(admin: Client, anyone: Client) -> tuple[Host, Host]:
    found = await two_nodes(admin, anyone)
    await put(admin, POLICY)
    return found


async def test_an_explanation_has_what_both_kernels_have_in_force(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    alice, bob = hosts
    async with (
        answering(controller, alice, tmp_path, saying(True, grant="policy:1")) as of_alice,
        answering(controller, bob, tmp_path, saying(False, why="refused by table ip filter, chain INPUT")) as of_bob,
    ):
        found = (await explain(admin, "alice", "bob", "tcp:443")).json()
    assert found["source"]["kernel"] == {"passes": True, "revision": 3, "grant": "policy:1", "why": ""}
    assert (found["destination"]["kernel"]["passes"], found["allowed"]) == (False, True)
    assert "table ip filter, chain INPUT" in found["destination"]["kernel"]["why"]
    assert {(flow.direction, flow.port) for ask in of_alice for flow in ask.flows} == {("out", 443)}
    assert {(flow.direction, flow.port) for ask in of_bob for flow in ask.flows} == {("in", 443)}


@pytest.mark.parametrize(
    "reply",
    [
        lambda _: [],
        lambda ask: [Answer(id=ask.id + 1000, judged=(Judged(passes=True),))],
    ],
    ids=["silent", "answering another question"],
)
async def test_a_host_without_an_answer_in_time_is_no_error(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path, reply: Reply
) -> None:
    async with answering(controller, hosts[0], tmp_path, reply):
        async with asyncio.timeout(10):
            found = (await explain(admin, "alice", "bob", "tcp:443")).json()
    assert (found["allowed"], found["source"]["online"], found["source"]["kernel"]) == (True, True, None)
    assert found["destination"]["kernel"] is None


async def test_a_host_cannot_answer_for_another(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    alice, bob = hosts

    def lie(ask: Ask) -> list[Answer]:
        return [Answer(id=ask.id + step, judged=(Judged(passes=True),) * len(ask.flows)) for step in (-1, 1)]

    async with answering(controller, alice, tmp_path, lie), answering(controller, bob, tmp_path, lie):
        found = (await explain(admin, "alice", "bob", "tcp:443")).json()
    assert (found["source"]["kernel"], found["destination"]["kernel"]) == (None, None)


async def test_what_a_kernel_could_not_tell_is_said(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    def failing(ask: Ask) -> list[Answer]:
        return [Answer(id=ask.id, error="nft could not list the ruleset")]

    async with answering(controller, hosts[0], tmp_path, failing):
        kernel = (await explain(admin, "alice", "bob", "icmp")).json()["source"]["kernel"]
    assert (kernel["passes"], kernel["why"]) == (None, "nft could not list the ruleset")


async def test_counters_of_all_hosts_are_added_up(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    def counting(accepted: dict[str, int], denied: dict[str, int]) -> Reply:
        return lambda ask: [Answer(id=ask.id, accepted=accepted, denied=denied)]

    alice, bob = hosts
    async with (
        answering(controller, alice, tmp_path, counting({"web": 5, "db": 1}, {"in": 2})),
        answering(controller, bob, tmp_path, counting({"web": 7}, {})),
    ):
        found = (await admin.get("/policy/counters")).json()
        only = (await admin.get("/policy/counters", params={"node": "bob"})).json()
    assert found["grants"] == [
        {"grant": "web", "accepted": 12, "hosts": {"bob": 7, "alice": 5}},
        {"grant": "db", "accepted": 1, "hosts": {"alice": 1}},
    ]
    assert (found["denied"], found["asked"], found["silent"]) == ([{"node": "alice", "denied": {"in": 2}}], 2, [])
    assert (only["grants"][0]["accepted"], only["asked"]) == (7, 1)


async def test_counters_name_the_hosts_that_are_silent(
    controller: Running, admin: Client, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    async with answering(controller, hosts[0], tmp_path, lambda _: []):
        found = (await admin.get("/policy/counters")).json()
    assert (found["grants"], found["asked"], found["silent"]) == ([], 1, ["alice"])


async def test_counters_of_a_host_that_does_not_exist_are_refused(admin: Client, anyone: Client) -> None:
    assert (await admin.get("/policy/counters", params={"node": "nobody"})).status_code == 404
    assert (await anyone.get("/policy/counters")).status_code == 401
