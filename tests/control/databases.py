"""Real databases for tests: a SQLite file, and a PostgreSQL cluster of our own that listens on a socket file only."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncpg

from tests.lab import eventually

from .support import migrated

SERVER_USER = "postgres"  # made by Debian's package; the server refuses to run as root


def _programs() -> Path:
    """Where Debian keeps the newest server's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    if on_path is None:
        raise RuntimeError("PostgreSQL's server is not installed: apt-get install postgresql (tests/run does)")
    return Path(on_path).parent


class Cluster:
    """A PostgreSQL server of our own. `home` is the directory of its socket."""

    def __init__(self, programs: Path, home: Path) -> None:
        self.home = home
        self._programs, self._data = programs, home / "data"
        self._user = _give_to_server_user(home)
        self._run("initdb", "-A", "trust", "-U", "wardmesh", "-E", "UTF8", "--no-sync")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.home} -c fsync=off -c max_connections=100"
        self._run("pg_ctl", "-w", "-t", "60", "-l", self.home / "log", "-o", options, "start")

    def stop(self) -> None:
        """Stop it at once, its connections too."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def kill(self) -> None:
        """kill -9 of every process of it."""
        postmaster = int((self._data / "postmaster.pid").read_text().split()[0])
        # The postmaster first, or it would begin to recover from the death of its children.
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        processes = (postmaster, *map(int, children))
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        eventually(lambda: not any(map(_runs, processes)), timeout=60)
        # The next server would take a zombie that nobody has reaped for the one that wrote them.
        for lock in (self._data / "postmaster.pid", self.home / ".s.PGSQL.5432.lock"):
            lock.unlink()

    def _run(self, program: str, *arguments: str | Path) -> None:
        _run([self._programs / program, "-D", self._data, *arguments], self.home, self._user)


class Databases:
    """Databases of one cluster, each for as long as its context: a call yields the URL of an empty one."""

    def __init__(self, cluster: Cluster) -> None:
        self._home = cluster.home
        self._numbers = itertools.count()
        self._template: str | None = None

    def __call__(self) -> AbstractAsyncContextManager[str]:
        return self._database("template1")

    @asynccontextmanager
    async def with_schema(self) -> AsyncIterator[str]:
        """One that has the newest schema already: a copy of one that was migrated once."""
        if self._template is None:
            await self._create("migrated", "template1")
            await migrated(self._url("migrated"))
            self._template = "migrated"
        async with self._database(self._template) as url:
            yield url

    @asynccontextmanager
    async def _database(self, template: str) -> AsyncIterator[str]:
        name = f"test{next(self._numbers)}"
        await self._create(name, template)
        yield self._url(name)
        await self._administer(f"DROP DATABASE {name} WITH (FORCE)")

    async def _create(self, name: str, template: str) -> None:
        await self._administer(f"CREATE DATABASE {name} TEMPLATE {template}")

    async def _administer(self, statement: str) -> None:
        admin = await asyncpg.connect(host=str(self._home), user="wardmesh", database="postgres")
        try:
            await admin.execute(statement)
        finally:
            await admin.close()

    def _url(self, name: str) -> str:
        return f"postgresql://wardmesh@/{name}?host={self._home}"


@contextmanager
def postgresql_cluster() -> Iterator[Cluster]:
    """A running cluster. Nothing of it remains afterwards."""
    programs = _programs()
    # Not under pytest's own directory: that is private to root, and a socket's path may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="wardmesh-pg-"))
    try:
        cluster = Cluster(programs, home)
        cluster.start()
        try:
            yield cluster
        finally:
            if (home / "data" / "postmaster.pid").exists():
                cluster.stop()
    finally:
        shutil.rmtree(home)


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _give_to_server_user(home: Path) -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get(SERVER_USER) or names["nobody"]
    os.chown(home, user.pw_uid, user.pw_gid)
    return user


def _run(arguments: list[str | Path], home: Path, user: pwd.struct_passwd | None) -> None:
    done = subprocess.run(
        arguments,
        check=False,
        cwd=home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        user=user.pw_uid if user else None,
        group=user.pw_gid if user else None,
        extra_groups=[] if user else None,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[0]} failed: {done.stderr.decode(errors='replace')}")
