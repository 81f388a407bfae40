"""Disks without space, under the controller and under a host: said plainly, nothing acknowledged is lost, and all is
well again when there is space.

The disks are small file systems in memory, which really are full.
"""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agentd.netmap import load
from agentd.state import StateDir
from controller import backup as backups
from controller.clock import utc_now
from controller.server import running
from controller.settings import Listen, Settings
from controller.store.backup import BackupError

from ..agents import allow_all, connected, eventually_in_force, joined, remove, until
from ..support import Client, MovableClock
from .invariants import check
from .load import Promises
from .process import Controller, started

FULL = "the disk is full"


class Disk:
    """A small file system. `fill` takes all of its space but for `left` bytes, `free` gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / ".ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Disk]:
    path.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", path], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with mounted(tmp_path / "disk", "4m") as made:
        yield made


class TestController:
    @pytest.fixture
    async def controller(self, disk: Disk, tmp_path: Path) -> AsyncIterator[Controller]:
        async with started(Settings(state_dir=disk.path / "state"), tmp_path / "log") as controller:
            yield controller

    async def test_writes_are_refused_plainly_until_there_is_space_and_reads_and_hosts_go_on(
        self, controller: Controller, disk: Disk, tmp_path: Path
    ) -> None:
        promises = Promises()
        async with controller.client() as admin:
            state = await joined(admin, tmp_path, "host")
            async with connected(state) as agent:
                await until(lambda: agent.kernel.applied)
                disk.fill()
                # Some fit into what the database has already; each of them was acknowledged and is there.
                refused = await self.write_until_refused(controller, promises)
                assert FULL in refused
                assert (await admin.get("/nodes")).status_code == 200
                await controller.kill()
                again = await controller.try_start()
                assert again is None or FULL in again
                disk.free()
                if again is not None:
                    await controller.start()
                await self.write(controller, promises, "after")
                await allow_all(admin)
                await check(controller, promises, [agent])

    async def write(self, controller: Controller, promises: Promises, note: str) -> str | None:
        """Make a key; why that was refused, None when it was not."""
        async with controller.client() as admin:
            promises.tried("key", note, 1)
            answer = await admin.post("/enrolment-keys", json={"note": note})
        if answer.is_success:
            promises.acknowledged("key", note, 1)
            return None
        assert answer.status_code == 503, answer.text
        return str(answer.json()["detail"])

    async def write_until_refused(self, controller: Controller, promises: Promises) -> str:
        for number in range(2000):
            if refused := await self.write(controller, promises, f"{number} " + "x" * 150):
                return refused
        raise AssertionError("never refused")

    async def test_a_first_start_without_space_says_so_and_leaves_nothing_that_is_in_the_way(
        self, disk: Disk, tmp_path: Path
    ) -> None:
        controller = Controller(Settings(state_dir=disk.path / "state"), tmp_path / "log")
        disk.fill()
        refused = await controller.try_start()
        assert refused is not None
        assert FULL in refused
        disk.free()
        await controller.start()
        await check(controller, Promises())
        await controller.kill()

    async def test_a_backup_without_space_names_its_own_disk_and_leaves_no_file(
        self, disk: Disk, tmp_path: Path, clock: MovableClock
    ) -> None:
        settings = Settings(state_dir=tmp_path / "state", listen=Listen("127.0.0.1", 0))
        async with running(settings, clock):
            disk.fill()
            with pytest.raises(BackupError, match=f"{disk.path}.*{FULL}"):
                await backups.back_up(settings, disk.path / "backup.db", utc_now)
            assert [path.name for path in disk.path.iterdir()] == [".ballast"]
            disk.free()
            assert await backups.back_up(settings, disk.path / "backup.db", utc_now) > 0

    async def test_a_restore_without_space_leaves_a_place_where_it_can_be_repeated(
        self, disk: Disk, tmp_path: Path, clock: MovableClock
    ) -> None:
        settings = Settings(state_dir=tmp_path / "state", listen=Listen("127.0.0.1", 0))
        async with running(settings, clock) as controller:
            token = controller.first_token
        await backups.back_up(settings, tmp_path / "backup.db", utc_now)
        target = replace(settings, state_dir=disk.path / "state")
        disk.fill()
        with pytest.raises(Exception, match=FULL):
            await backups.restore(target, tmp_path / "backup.db", utc_now)
        disk.free()
        await backups.restore(target, tmp_path / "backup.db", utc_now)
        async with running(target, clock) as again, Client(again, token=token) as admin:
            assert (await admin.get("/nodes")).status_code == 200


class TestHost:
    @pytest.fixture
    async def state(self, admin: Client, disk: Disk) -> StateDir:
        """Of a host that joined and has a map; then its disk is full."""
        state = await joined(admin, disk.path, "host")
        async with connected(state) as agent:
            await until(lambda: agent.kernel.applied)
            await eventually_in_force(admin, "host", agent.kernel.applied[-1].revision)
        disk.fill()
        return state

    async def test_maps_are_in_force_all_the_same_and_saved_when_there_is_space(
        self, admin: Client, state: StateDir, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("agentd.apply._SAVE_AGAIN", 0.05)
        await joined(admin, tmp_path, "other")
        async with connected(state) as agent:
            await allow_all(admin)
            await until(lambda: agent.peers == {"other"})
            await until(lambda: FULL in str(agent.applier.save_error))
            assert agent.applier.outcome is not None
            assert agent.applier.outcome.error is None
            disk.free()
            await until(lambda: agent.applier.save_error is None)
            saved, _ = load(state)
            assert saved is not None
            assert saved.netmap == agent.kernel.applied[-1]

    async def test_a_host_that_starts_without_space_has_its_map_and_hears_what_is_new(
        self, admin: Client, state: StateDir, tmp_path: Path
    ) -> None:
        await joined(admin, tmp_path, "other")
        await allow_all(admin)
        with state.lock():
            async with connected(state) as agent:
                await until(lambda: agent.peers == {"other"})

    async def test_what_is_taken_away_is_taken_away_without_space(
        self, admin: Client, state: StateDir, disk: Disk, tmp_path: Path
    ) -> None:
        await joined(admin, tmp_path, "other")
        await allow_all(admin)
        async with connected(state) as agent:
            await until(lambda: agent.peers == {"other"})
            await remove(admin, "host")
            await until(lambda: agent.peers == set())
