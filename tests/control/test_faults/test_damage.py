"""Every state file of a host and of the controller, cut short and with bits flipped: refused, set aside, or harmless.

Never taken for something else than what was written, and never without a sentence that names what is damaged.
"""

import asyncio
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from agentd.errors import StateError
from agentd.netmap import load
from agentd.state import CA, CERTIFICATE, CONTROLLERS, IDENTITY_KEY, NETMAP, NODE, WIREGUARD_KEY, StateDir
from controller import backup as backups
from controller.audit import BrokenChain
from controller.bootstrap import open_existing
from controller.server import running
from controller.settings import Listen, Settings
from controller.state_dir import StateDirError
from controller.store.engine import StoreError
from controller.wire.stream import Controllers

from ..agents import Agent, allow_all, connected, eventually_in_force, joined, node, until
from ..support import Client, MovableClock

HOST_FILES = (NODE, WIREGUARD_KEY, IDENTITY_KEY, CERTIFICATE, CA, NETMAP, CONTROLLERS)
_FLIPS = 150  # for each file of a host: reading one takes no time
_STARTS = 3  # for each file of the controller: every one is a start


def noticed(agent: Agent) -> bool:
    return bool(agent.control.standing.error or agent.control.standing.connected)


def damaged(content: bytes, chance: random.Random, times: int) -> Iterator[bytes]:
    """The content cut short, and with one bit flipped, one place in each of `times` regions."""
    for part in range(times):
        place = min(int((part + chance.random()) * len(content) / times), len(content) - 1)
        yield content[:place]
        flipped = bytearray(content)
        flipped[place] ^= 1 << chance.randrange(8)
        yield bytes(flipped)


def _reader(name: str) -> Callable[[StateDir], object]:
    def wireguard(state: StateDir) -> object:
        key = state.wireguard_key()
        return key and key.raw

    def identity(state: StateDir) -> object:
        key = state.identity_key()
        return key and key.text

    return {
        NODE: StateDir.node,
        WIREGUARD_KEY: wireguard,
        IDENTITY_KEY: identity,
        CERTIFICATE: StateDir.certificate,
        CA: StateDir.ca,
        NETMAP: lambda state: load(state)[0],
        CONTROLLERS: StateDir.controllers,
    }[name]


class TestHost:
    @pytest.fixture
    async def state(self, admin: Client, tmp_path: Path) -> StateDir:
        """Of a host that joined and has a map."""
        state = await joined(admin, tmp_path, "host")
        async with connected(state) as agent:
            await until(lambda: agent.kernel.applied)
            await eventually_in_force(admin, "host", agent.kernel.applied[-1].revision)
        state.write_controllers(Controllers(urls=("https://one.example:8443", "https://two.example:8443")))
        return state

    @pytest.mark.parametrize("name", HOST_FILES)
    async def test_a_damaged_file_is_refused_by_name_or_means_the_same(
        self, state: StateDir, name: str, seed: int
    ) -> None:
        path, read = state.path / name, _reader(name)
        content, wanted = path.read_bytes(), read(state)
        assert wanted is not None
        complaints: list[str] = []
        for bad in damaged(content, random.Random(seed), _FLIPS):
            path.write_bytes(bad)
            try:
                found = read(state)
            except StateError as error:
                complaints.append(str(error))
                continue
            # A damaged map is set aside: then there is none. Of other controllers, the first one tells again.
            without = {NETMAP: None, CONTROLLERS: ()}.get(name, wanted)
            assert found in (wanted, without), bad
            assert found == wanted or name != NETMAP or not path.exists()
            complaints += [name] * (found != wanted)
        assert all(name in complaint for complaint in complaints)
        assert len(complaints) > _FLIPS  # of two for each place

    @pytest.mark.parametrize("name", [IDENTITY_KEY, CERTIFICATE, CA, NETMAP])
    async def test_a_file_that_is_damaged_while_the_agent_is_away_does_not_end_it(
        self, admin: Client, state: StateDir, name: str, seed: int
    ) -> None:
        """The map stays in force, and what is said names the file."""
        path = state.path / name
        content = path.read_bytes()
        for bad in damaged(content, random.Random(seed), 2):
            path.write_bytes(bad)
            async with connected(state) as agent:
                await until(partial(noticed, agent))
                error = agent.control.standing.error
                assert error is None or name in error
                assert name == NETMAP or agent.kernel.applied
        path.write_bytes(content)
        await allow_all(admin)
        async with connected(state) as agent:
            # The saved map is applied first and the changed one after it; the controller sees the last.
            async with asyncio.timeout(20):
                while (found := await node(admin, "host"))["behind"] or not found["online"]:
                    await asyncio.sleep(0.02)
                while (await node(admin, "host"))["in_force"] != agent.kernel.applied[-1].revision:
                    await asyncio.sleep(0.02)
            assert agent.control.standing.error is None


class TestController:
    @pytest.mark.parametrize("name", ["controller.db", "ca.pem", "ca.key"])
    async def test_a_damaged_file_is_refused_or_replaced_or_means_the_same(
        self, tmp_path: Path, clock: MovableClock, name: str, seed: int
    ) -> None:
        """SQLite has no checksums: a bit that flips inside a value of a database is noticed in the audit alone."""
        settings = Settings(state_dir=tmp_path / "whole", listen=Listen("127.0.0.1", 0))
        async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
            token, authority = controller.first_token, controller.context.authority.pem
            for number in range(5):
                await joined(admin, tmp_path, f"host-{number}")
            await allow_all(admin)
            wanted = await self.seen(admin)
        content = (settings.state_dir / name).read_bytes()
        for number, bad in enumerate(damaged(content, random.Random(seed), _STARTS)):
            copy = Settings(state_dir=tmp_path / f"copy-{number}", listen=Listen("127.0.0.1", 0))
            shutil.copytree(settings.state_dir, copy.state_dir)
            (copy.state_dir / name).write_bytes(bad)
            try:
                async with running(copy, clock) as again, Client(again, token=token) as admin:
                    assert again.context.authority.pem == authority
                    assert again.first_token is None
                    seen = await self.seen(admin)
                    assert seen == wanted or (name == "controller.db" and len(bad) == len(content))
                await self.audited(copy, clock)
            except (StoreError, StateDirError) as error:
                complaint = str(error)
                assert str(copy.state_dir) in complaint
            except BrokenChain:
                assert (name, len(bad)) == ("controller.db", len(content))

    async def test_what_can_be_made_again_is(self, tmp_path: Path, clock: MovableClock) -> None:
        settings = Settings(state_dir=tmp_path / "state", listen=Listen("127.0.0.1", 0))
        async with running(settings, clock) as controller:
            token = controller.first_token
        for name in ("tls.pem", "tls.key", "lock"):
            (settings.state_dir / name).write_bytes(b"\xff nonsense")
        async with running(settings, clock) as again, Client(again, token=token) as admin:
            assert (await admin.get("/nodes")).status_code == 200

    async def seen(self, admin: Client) -> list[object]:
        return [(await admin.get(path)).json()["items"] for path in ("/nodes", "/enrolment-keys", "/tokens")] + [
            (await admin.get("/policy")).json()
        ]

    async def audited(self, settings: Settings, clock: MovableClock) -> None:
        store = await open_existing(settings, clock)
        try:
            await backups.verify_audit(store)
        finally:
            await store.close()
