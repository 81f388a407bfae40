"""Real databases for tests: a SQLite file, and a PostgreSQL cluster of our own that listens on a socket file only."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER_USER = "postgres"  # made by Debian's package; the server refuses to run as root


def postgresql_bin() -> Path | None:
    """Where Debian keeps the newest server's programs, None when it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextmanager
def postgresql_cluster(programs: Path) -> Iterator[str]:
    """A running cluster; yields the directory of its socket. Nothing of it remains afterwards."""
    as_user = {}
    owner = None
    if os.geteuid() == 0:
        try:
            owner = pwd.getpwnam(SERVER_USER)
        except KeyError:
            owner = pwd.getpwnam("nobody")
        as_user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    # Not under pytest's own directory: that is private to root, and a socket's path may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="wardmesh-pg-"))
    try:
        if owner:
            os.chown(home, owner.pw_uid, owner.pw_gid)
        data = home / "data"
        common = {"check": True, "stdout": subprocess.DEVNULL, "cwd": home, **as_user}
        subprocess.run(
            [programs / "initdb", "-D", data, "-A", "trust", "-U", "wardmesh", "-E", "UTF8", "--no-sync"], **common
        )
        options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections=100"
        log = home / "log"
        subprocess.run([programs / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", log, "-o", options, "start"], **common)
        try:
            yield str(home)
        finally:
            subprocess.run([programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"], **common)
    finally:
        shutil.rmtree(home)
