"""Frames that come twice, late, or from the past: refused or harmless."""

from pathlib import Path

from controller.server import Running
from controller.wire.stream import Applied, Report

from ..hosts import new_node
from ..support import Client
from ..test_stream import agent, patch, seen


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
