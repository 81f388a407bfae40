"""Frames that come twice, late, or from the past: refused or harmless."""

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from agentd.session import Phase
from controller.mesh.connection import Connection
from controller.server import Running
from controller.wire.stream import Applied, Bye, ControllerFrame, DeltaFrame, Report

from ..agents import allow_all, connected, joined, until
from ..hosts import new_node, wireguard_key
from ..streams import agent, patch, seen
from ..support import Client
from .invariants import meaning

Send = Callable[[ControllerFrame], Awaitable[None]]
Mangling = Callable[[Send, ControllerFrame, list[ControllerFrame]], Awaitable[None]]


async def test_applied_that_is_repeated_late_or_never_sent_is_not_believed(
    admin: Client, controller: Running, tmp_path: Path
) -> None:
    host = await new_node(admin, admin, "host")
    async with agent(controller, host, tmp_path) as stream:
        await stream.hello()
        assert stream.netmap is not None
        first = stream.netmap.revision
        await patch(admin, host, tags=["tag:agents"])
        second = (await stream.take_until(lambda netmap: netmap.revision > first)).revision
        for revision in (second, second, first, second + 1000):
            await stream.say(Applied(revision=revision))
        await stream.say(Applied(revision=second, error="the last that is said"))
        node = await seen(admin, host, lambda node: node["error"] == "the last that is said")
        assert node["in_force"] in {first, second}
        assert node["in_force"] <= second


async def test_a_report_that_is_replayed_changes_nothing(admin: Client, controller: Running, tmp_path: Path) -> None:
    host = await new_node(admin, admin, "host")
    async with agent(controller, host, tmp_path) as stream:
        await stream.hello()
        await seen(admin, host, lambda node: node["endpoints"])
        before = (await admin.get("/status")).json()["revision"]
        for _ in range(3):
            await stream.say(Report(report=stream.report()))
        assert stream.netmap is not None
        await stream.say(Applied(revision=stream.netmap.revision, error="after them"))
        await seen(admin, host, lambda node: node["error"] == "after them")
    assert (await admin.get("/status")).json()["revision"] == before


async def new_peer(admin: Client, name: str) -> str:
    made = await admin.post("/static-peers", json={"name": name, "public_key": wireguard_key()})
    assert made.is_success, made.text
    node_id: str = made.json()["id"]
    return node_id


async def twice(send: Send, frame: ControllerFrame, earlier: list[ControllerFrame]) -> None:
    await send(frame)
    await send(frame)


async def with_one_from_the_past(send: Send, frame: ControllerFrame, earlier: list[ControllerFrame]) -> None:
    await send(frame)
    if earlier:
        await send(earlier[0])


async def in_the_wrong_order(send: Send, frame: ControllerFrame, earlier: list[ControllerFrame]) -> None:
    """Each second one before the first."""
    if len(earlier) % 2:
        await send(frame)
        await send(earlier[-1])


async def without_every_second(send: Send, frame: ControllerFrame, earlier: list[ControllerFrame]) -> None:
    if len(earlier) % 2:
        await send(frame)


@pytest.mark.parametrize("wrongly", [twice, with_one_from_the_past, in_the_wrong_order, without_every_second])
async def test_changes_that_come_wrongly_never_make_a_map_that_there_was_not_and_the_agent_converges(
    admin: Client, controller: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrongly: Mangling
) -> None:
    real = Connection.run
    earlier: list[ControllerFrame] = []
    is_honest = False

    async def run(connection: Connection, send: Send) -> Bye:
        async def mangled(frame: ControllerFrame) -> None:
            if is_honest or not isinstance(frame, DeltaFrame):
                await send(frame)
                return
            await wrongly(send, frame, earlier)
            earlier.append(frame)

        return await real(connection, mangled)

    monkeypatch.setattr(Connection, "run", run)
    await allow_all(admin)
    state = await joined(admin, tmp_path, "host")
    node = state.node()
    assert node is not None

    def present() -> dict[str, object]:
        found = controller.context.hub.netmap(node.node_id)
        assert found is not None
        return meaning(found)

    def told_of_last(before: int) -> bool:
        return len(earlier) > before or meaning(its.kernel.applied[-1]) == there_were[-1]

    async with connected(state) as its:
        await until(lambda: its.kernel.applied)
        there_were = [present()]
        first = await new_peer(admin, "first")
        there_were.append(present())
        await until(lambda: earlier)
        for number in range(1, 5):
            sent = len(earlier)
            if number == 2:
                assert (await admin.delete(f"/nodes/{first}", headers={"if-match": "*"})).is_success
            else:
                await new_peer(admin, f"peer-{number}")
            there_were.append(present())
            # One delta for each: two that wait are merged into one, which cannot come in the wrong order. An agent that
            # left because of the one before has this change in the snapshot that it comes back to, and in no delta.
            await until(partial(told_of_last, sent))
            await until(lambda: its.standing is Phase.STREAMING)
        is_honest = True
        await new_peer(admin, "last")
        there_were.append(present())
        await until(lambda: meaning(its.kernel.applied[-1]) == there_were[-1])
    assert earlier
    assert all(meaning(netmap) in there_were for netmap in its.kernel.applied)
