"""A mesh in which something always comes or goes takes no more memory for it: not a number, not a string."""

import asyncio
import gc
import itertools
import sys
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from controller.mesh import Hub
from controller.mesh.connection import Connection
from controller.mesh.elsewhere import Replica, Word
from controller.mesh.log import RevisionLog
from controller.mesh.presence import Presence
from controller.records import Change, NodeRecord, PolicyRecord
from controller.wire.stream import Applied, ControllerFrame, Hello, HostReport

from .mesh_agents import until
from .mesh_fleet import NOW, fleet, node, place, temporary

POLICY = """\
services: {{files: {{on: [tag:tools], mcp: {{upstream: "http://127.0.0.1:3000/mcp"}}}}}}
grants:
  - {{from: tag:agents, to: tag:tools, ip: ["tcp:{}"]}}
  - {{from: tag:agents, to: svc:files, mcp: {{tools: ["*"]}}}}
"""
PARTS = 4
ROUNDS = 100


class Mesh:
    """A hub whose clock goes on, and the next revision."""

    def __init__(self) -> None:
        self.time = NOW
        self.hub = Hub(lambda: self.time)
        self.hub.on_touched(lambda: None)
        self.hub.load(fleet([node(1, "agents"), node(3, "tools")], POLICY.format(443), revision=5))
        self.revisions = itertools.count(6)

    def publish(self, **what: Any) -> int:
        """Publish a change of these; the revision that it made."""
        revision = next(self.revisions)
        self.hub.publish(Change(revision, **({"nodes": {}} | what)))
        return revision

    async def round(self, number: int) -> None:
        """A host comes, is behind, leaves, comes back, goes to another controller, is removed; policy changes."""
        guest = replace(node(7, "tools"), id=f"guest-{number}", name=f"guest-{number}")
        self.time += 36
        self.publish(policy=PolicyRecord(5, POLICY.format(443 + number % 2)))
        self.publish(nodes={guest.id: guest})
        self.publish(services={"files": place("files", 1, guest.id)})
        for is_late in (True, False):
            with self.hub.connected(guest.id, hello(guest)) as connection:
                frames = asyncio.create_task(connection.run(nothing))
                told = self.publish(nodes={guest.id: replace(guest, endpoints=(f"192.0.2.1:{1000 + number}",))})
                await until(partial(has, connection, told))
                if not is_late:
                    self.hub.applied(connection, Applied(revision=told))
                    self.hub.applied(connection, Applied(revision=told, error=f"the kernel refused round {number}"))
                frames.cancel()
                await asyncio.gather(frames, return_exceptions=True)
            self.publish(nodes={"n1": replace(node(1, "agents"), name=f"renamed-{number}")})
        self.publish(grants={f"t{number}": temporary(number, "tag:agents", "tag:tools", expires=self.time + 20)})
        word = Word("other", datetime.fromtimestamp(self.time, UTC), Presence(online=True, in_force=5))
        self.hub.heard_of([Replica("other", "https://192.0.2.1:8443", 5)], {guest.id: word})
        self.publish(services={"files": place("files", 1, "n3")})
        self.publish(nodes={guest.id: None})
        self.hub.clock_was_set()
        self.hub.bring_up()
        self.hub.take_touched()


def hello(record: NodeRecord) -> Hello:
    report = HostReport(agent_version="0.1", backend="userspace", public_key=record.public_key)
    return Hello(revision=None, mesh=None, report=report)


def has(connection: Connection, revision: int) -> bool:
    return connection.told == revision


async def nothing(_: ControllerFrame) -> None:
    """Read a frame and forget it."""


def allocated() -> int:
    """How many blocks of memory Python's objects have."""
    for _ in range(3):  # what is freed may free more
        gc.collect()
    return sys.getallocatedblocks()


async def test_memory_is_flat_over_hours_of_hosts_policies_grants_and_services_that_come_and_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What leaks grows in each of several parts. What is bounded is full after the first of them."""
    monkeypatch.setattr("controller.mesh.hub.RevisionLog", partial(RevisionLog, max_size=50))
    monkeypatch.setattr("controller.mesh.state._REMEMBERED", 20)
    monkeypatch.setattr("controller.mesh.state.ENDED_KEPT", 0)
    caplog.set_level("CRITICAL")
    mesh, found = Mesh(), []
    for part in range(PARTS + 1):
        for number in range(part * ROUNDS, (part + 1) * ROUNDS):
            await mesh.round(number)
        found.append(allocated())
    growth = [after - before for before, after in itertools.pairwise(found)]
    assert min(growth) < ROUNDS / 2, f"each part of {ROUNDS} rounds left so many blocks: {growth}"
