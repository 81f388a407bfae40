"""Backup and restore with real databases and processes: nothing lost, nothing taken for what it is not."""

import os
import shutil
import sqlite3
import stat
from pathlib import Path

import pytest

from agentd.netmap import load
from controller import backup as backups
from controller.audit import BrokenChain
from controller.backup import BackupError
from controller.bootstrap import open_existing
from controller.server import running
from controller.settings import Listen, Settings
from controller.state_dir import StateDirError
from controller.store.engine import StoreError

from .agents import allow_all, connected, eventually_in_force, joined, until
from .databases import Databases
from .hosts import new_node
from .support import Client, MovableClock
from .test_process import client, run, serve

LISTEN = Listen("127.0.0.1", 0)


async def lived_in(settings: Settings, clock: MovableClock) -> tuple[str, dict[str, object]]:
    """A mesh with a node, a policy and a history; its admin token and what REST shows of it."""
    async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
        assert controller.first_token
        await new_node(admin, admin, "db-1")
        await allow_all(admin)
        return controller.first_token, await seen(admin)


async def seen(admin: Client) -> dict[str, object]:
    return {
        path: (await admin.get(path)).json()["items"] if path != "/policy" else (await admin.get(path)).json()
        for path in ("/nodes", "/enrolment-keys", "/tokens", "/policy")
    }


def elsewhere(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path / "other", listen=LISTEN)


async def test_a_restored_mesh_is_the_same_mesh(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    token, before = await lived_in(settings, clock)
    file = tmp_path / "backup.db"
    rows = await backups.back_up(settings, file, clock)
    assert rows > 5
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.glob("*backup.db*")] == ["backup.db"]
    target = elsewhere(tmp_path)
    assert await backups.restore(target, file, clock) == rows
    assert (target.state_dir / "ca.pem").read_bytes() == (settings.state_dir / "ca.pem").read_bytes()
    async with running(target, clock) as controller, Client(controller, token=token) as admin:
        assert controller.first_token is None
        assert await seen(admin) == before
        newest = (await admin.get("/audit?limit=1")).json()["items"][0]
        assert newest["action"] == "system:mesh:restore"
    store = await open_existing(target, clock)
    try:
        assert (await backups.verify_audit(store))[0] == newest["seq"]
    finally:
        await store.close()


@pytest.mark.parametrize("direction", ["from", "to"])
async def test_postgresql_and_sqlite_take_each_others_backups(
    clock: MovableClock,
    tmp_path: Path,
    postgresql: Databases,
    direction: str,
) -> None:
    local = Settings(state_dir=tmp_path / "local", listen=LISTEN)
    async with postgresql() as url:
        server = Settings(state_dir=tmp_path / "server", listen=LISTEN, database_url=url)
        source, target = (server, local) if direction == "from" else (local, server)
        token, before = await lived_in(source, clock)
        await backups.back_up(source, tmp_path / "backup.db", clock)
        await backups.restore(target, tmp_path / "backup.db", clock)
        async with running(target, clock) as controller, Client(controller, token=token) as admin:
            assert await seen(admin) == before
            await new_node(admin, admin, "db-2")


async def test_a_backup_is_taken_while_the_controller_serves(
    settings: Settings, clock: MovableClock, tmp_path: Path
) -> None:
    async with running(settings, clock) as controller, Client(controller, token=controller.first_token) as admin:
        await backups.back_up(settings, tmp_path / "one.db", clock)
        await new_node(admin, admin, "db-1")
        await backups.back_up(settings, tmp_path / "two.db", clock)
    names = {}
    for number in ("one", "two"):
        with sqlite3.connect(tmp_path / f"{number}.db") as database:
            names[number] = database.execute("SELECT name FROM nodes").fetchall()
    assert names == {"one": [], "two": [("db-1",)]}


async def test_a_host_that_was_ahead_of_the_backup_gets_its_whole_map(
    settings: Settings, clock: MovableClock, tmp_path: Path
) -> None:
    async with running(settings, clock) as first, Client(first, token=first.first_token) as admin:
        token, port = first.first_token, first.port
        state = await joined(admin, tmp_path, "db-1")
        await backups.back_up(settings, tmp_path / "backup.db", clock)
        await allow_all(admin)
        await joined(admin, tmp_path, "db-2")
        async with connected(state) as agent:
            await until(lambda: agent.peers == {"db-2"})
            await eventually_in_force(admin, "db-1", agent.kernel.applied[-1].revision)
    saved, _ = load(state)
    assert saved is not None
    target = Settings(state_dir=tmp_path / "other", listen=Listen("127.0.0.1", port))
    await backups.restore(target, tmp_path / "backup.db", clock)
    async with running(target, clock) as second, Client(second, token=token) as admin:
        # The restored history grows past what the host holds, so that its revision alone would look continuable.
        while (await admin.get("/status")).json()["revision"] <= saved.netmap.revision:
            assert (await admin.post("/enrolment-keys", json={})).status_code == 201
        async with connected(state) as agent:
            # What it holds is in force first, from its disk.
            await until(lambda: agent.kernel.applied and not agent.kernel.applied[-1].rules)
            assert agent.peers == set()


async def test_a_backup_is_not_overwritten(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    await lived_in(settings, clock)
    file = tmp_path / "backup.db"
    file.write_text("precious")
    with pytest.raises(BackupError, match="exists"):
        await backups.back_up(settings, file, clock)
    assert file.read_text() == "precious"


async def test_nothing_is_restored_over_a_mesh(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    await lived_in(settings, clock)
    await backups.back_up(settings, tmp_path / "backup.db", clock)
    with pytest.raises(BackupError, match="already"):
        await backups.restore(settings, tmp_path / "backup.db", clock)
    used = Settings(state_dir=tmp_path / "other", database_url=settings.database)
    with pytest.raises(BackupError, match="already"):
        await backups.restore(used, tmp_path / "backup.db", clock)
    assert not (used.state_dir / "ca.key").exists()


async def test_a_controller_that_runs_is_in_the_way(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    async with running(settings, clock):
        await backups.back_up(settings, tmp_path / "backup.db", clock)
        with pytest.raises(StateDirError, match="another controller"):
            await backups.restore(settings, tmp_path / "backup.db", clock)


class TestDamage:
    @pytest.fixture
    async def file(self, settings: Settings, clock: MovableClock, tmp_path: Path) -> Path:
        await lived_in(settings, clock)
        await backups.back_up(settings, tmp_path / "backup.db", clock)
        return tmp_path / "backup.db"

    @pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
    async def test_a_cut_backup_is_refused(
        self, settings: Settings, clock: MovableClock, tmp_path: Path, file: Path, keep: float
    ) -> None:
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content) * keep)])
        await self.refused(elsewhere(tmp_path), file, clock, BackupError)

    async def test_an_altered_audit_is_refused(
        self, settings: Settings, clock: MovableClock, tmp_path: Path, file: Path
    ) -> None:
        with sqlite3.connect(file) as database:
            database.execute("UPDATE audit SET actor = 'nobody' WHERE seq = 2")
        await self.refused(elsewhere(tmp_path), file, clock, BrokenChain)

    async def test_another_ca_is_refused(
        self, settings: Settings, clock: MovableClock, tmp_path: Path, file: Path
    ) -> None:
        with sqlite3.connect(file) as database:
            database.execute("UPDATE mesh SET ca_sha256 = ?", ("0" * 64,))
        await self.refused(elsewhere(tmp_path), file, clock, BackupError)

    async def test_something_else_is_refused(
        self, settings: Settings, clock: MovableClock, tmp_path: Path, file: Path
    ) -> None:
        shutil.copy(settings.state_dir / "controller.db", file)
        await self.refused(elsewhere(tmp_path), file, clock, BackupError)

    async def refused(self, target: Settings, file: Path, clock: MovableClock, why: type[Exception]) -> None:
        with pytest.raises(why):
            await backups.restore(target, file, clock)
        assert {path.name for path in target.state_dir.iterdir()} <= {"lock"}

    async def test_a_damaged_database_is_not_served(self, settings: Settings, clock: MovableClock, file: Path) -> None:
        database = settings.state_dir / "controller.db"
        content = bytearray(database.read_bytes())
        content[4096 * 3 : 4096 * 4] = os.urandom(4096)
        database.write_bytes(content)
        with pytest.raises(StoreError, match="restore a backup"):
            async with running(settings, clock):
                pass


async def test_the_commands(tmp_path: Path) -> None:
    state, other, file = tmp_path / "state", tmp_path / "other", tmp_path / "backup.db"
    async with serve(state=state) as process:
        token = process.token
        saved = run("backup", str(file), "--state-dir", str(state))
        assert (saved.returncode, saved.stderr) == (0, "")
        again = run("backup", str(file), "--state-dir", str(state))
        assert again.returncode == 1
        assert "exists" in again.stderr
    back = run("restore", str(file), "--state-dir", str(other))
    assert (back.returncode, back.stderr) == (0, "")
    async with serve(state=other) as process:
        process.output.append(token)
        async with client(process, other) as admin:
            assert (await admin.get("/api/v1/status")).status_code == 200
    assert "unbroken" in run("audit", "verify", "--state-dir", str(other)).stdout
    for arguments in (["backup", "/nowhere/x.db"], ["restore", "/nowhere/x.db"]):
        failed = run(*arguments, "--state-dir", str(other if arguments[0] == "backup" else tmp_path / "third"))
        assert failed.returncode == 1
        assert failed.stderr.startswith("wardmesh-controller: cannot ")
        assert "Traceback" not in failed.stderr
