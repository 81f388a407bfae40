"""Clocks that are put a day forward or back, at the controller or at a host: nothing is lost, nobody is thrown out."""

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from agentd.session import Phase
from agentd.state import StateDir
from controller.server import Running, running
from controller.settings import Listen, Settings

from ..agents import Agent, connected, joined, node, until
from ..hosts import Host, new_key
from ..support import Client, MovableClock

HOUR = 3600
GRANT = {"from": ["caller"], "to": ["tool"], "ip": ["tcp:22"], "ttl": HOUR, "reason": "an hour"}


@pytest.fixture(autouse=True)
def watchful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both look at their clocks within a moment, not within a minute."""
    for pause in ("_SOON", "_SELDOM"):
        monkeypatch.setattr(f"controller.tidying.{pause}", 0.05)
    monkeypatch.setattr("agentd.apply._LOOK_AT_CLOCK", 0.05)


@dataclass
class Mesh:
    admin: Client
    caller: Agent
    tool: StateDir

    def reaches(self, names: set[str]) -> bool:
        """Whether these, and no others, are the caller's peers."""
        return self.caller.peers == names

    async def granted(self) -> str:
        """A temporary grant, in force at the caller."""
        made = await self.admin.post("/grants", json=GRANT)
        assert made.status_code == 201, made.text
        await until(lambda: self.caller.peers == {"tool"})
        grant_id: str = made.json()["id"]
        return grant_id

    async def names(self) -> set[str]:
        return {item["name"] for item in (await self.admin.get("/nodes")).json()["items"]}


@pytest.fixture
async def mesh(admin: Client, tmp_path: Path) -> AsyncIterator[Mesh]:
    caller, tool = [await joined(admin, tmp_path, name) for name in ("caller", "tool")]
    async with connected(caller) as agent:
        await until(lambda: agent.standing is Phase.STREAMING and agent.kernel.applied)
        yield Mesh(admin, agent, tool)


async def test_a_grant_that_ended_in_a_day_that_was_not_yet_is_in_force_again(mesh: Mesh, clock: MovableClock) -> None:
    await mesh.granted()
    clock.advance(days=1)
    await until(lambda: mesh.caller.peers == set())
    clock.advance(days=-1)
    await until(lambda: mesh.caller.peers == {"tool"})


async def test_a_grant_is_in_force_again_after_a_controller_was_started_while_its_clock_was_a_day_fast(
    settings: Settings, clock: MovableClock, tmp_path: Path
) -> None:
    async with running(settings, clock) as first, Client(first, token=first.first_token) as admin:
        caller = await joined(admin, tmp_path, "caller")
        await joined(admin, tmp_path, "tool")
        assert (await admin.post("/grants", json=GRANT)).status_code == 201
        token, port = first.first_token, first.port
    clock.advance(days=1)
    fixed = Settings(state_dir=settings.state_dir, database_url=settings.database_url, listen=Listen("127.0.0.1", port))
    async with running(fixed, clock) as second, Client(second, token=token), connected(caller) as agent:
        await until(lambda: agent.standing is Phase.STREAMING and agent.kernel.applied)
        assert agent.peers == set()
        clock.advance(days=-1)
        await until(lambda: agent.peers == {"tool"})


async def test_a_grant_that_was_revoked_stays_so_whatever_the_clock_says(mesh: Mesh, clock: MovableClock) -> None:
    revoked, other = await mesh.granted(), await mesh.granted()
    clock.advance(days=1)
    await until(lambda: mesh.caller.peers == set())
    clock.advance(days=-1)
    await until(lambda: mesh.caller.peers == {"tool"})
    for grant_id in (revoked, other):
        await mesh.admin.delete(f"/grants/{grant_id}", headers={"if-match": "*"})
    await until(lambda: mesh.caller.peers == set())
    clock.advance(days=1)
    clock.advance(days=-2)
    made = await mesh.admin.post("/enrolment-keys", json={})
    assert made.is_success
    assert (await mesh.admin.get("/grants", params={"state": "active"})).json()["items"] == []
    assert mesh.caller.peers == set()


@pytest.mark.parametrize("days", [1, -1])
async def test_credentials_and_streams_outlive_a_clock_that_is_wrong_for_a_while(
    mesh: Mesh, controller: Running, clock: MovableClock, tmp_path: Path, days: int
) -> None:
    admin = mesh.admin
    secret = (await admin.post("/tokens", json={"role": "admin", "note": "an hour", "ttl": HOUR})).json()["secret"]
    key = await new_key(admin, ttl=HOUR, uses=2)
    opened = mesh.caller.control.standing.connected
    clock.advance(days=days)
    # What still holds then: those without an end, certificates, and who connects anew.
    assert (await admin.get("/nodes")).status_code == 200
    async with connected(mesh.tool) as tool, Client(controller, token=secret) as hourly, Client(controller) as anyone:
        await until(lambda: tool.standing is Phase.STREAMING)
        assert (await hourly.get("/nodes")).status_code == (401 if days > 0 else 200)
        assert (await Host("early").ask(anyone, key)).status_code == (403 if days > 0 else 200)
        clock.advance(days=-days)
        assert (await hourly.get("/nodes")).status_code == 200
        assert (await Host("late").ask(anyone, key)).status_code == 200
        assert tool.standing is Phase.STREAMING
        assert (await node(admin, "tool"))["online"]
    assert mesh.caller.control.standing.connected == opened, "the stream was broken"
    made = await joined(admin, tmp_path, "after")
    async with connected(made) as after:
        await until(lambda: after.standing is Phase.STREAMING)


async def test_an_ephemeral_host_that_was_away_for_a_moment_was_not_away_for_a_day(
    mesh: Mesh, controller: Running, clock: MovableClock, tmp_path: Path
) -> None:
    key = await new_key(mesh.admin, ephemeral=True)
    async with Client(controller) as anyone:
        await Host("brief").enrol(anyone, key)
    await mesh.granted()
    for days in (1, -1, 2, -2):
        clock.advance(days=days)
        # The same look at the clock that ends the grant, or lets it live, precedes the look for who stayed away.
        await until(partial(mesh.reaches, set() if days > 0 else {"tool"}))
        assert "brief" in await mesh.names()


async def test_a_host_whose_clock_was_fast_for_a_while_has_its_temporary_rule_back(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it told its kernel to do at which time is enough to know: rules that have ended are left out."""
    await mesh.granted()
    (rule,) = (rule for rule in mesh.caller.kernel.applied[-1].rules.values() if rule.expires is not None)
    assert rule.expires is not None
    real, ahead = time.time, 0.0
    monkeypatch.setattr("agentd.apply.time.time", lambda: real() + ahead)
    before = len(mesh.caller.kernel.applied)
    ahead = 86400.0
    await until(lambda: len(mesh.caller.kernel.applied) > before)
    ahead, before = 0.0, len(mesh.caller.kernel.applied)
    await until(lambda: len(mesh.caller.kernel.applied) > before)
