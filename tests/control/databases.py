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
    # Not under pytest's own directory: that is private to root, and a socket's path may have 107 bytes.
    home = Path(tempfile.mkdtemp(prefix="wardmesh-pg-"))
    data, log = home / "data", home / "log"
    options = f"-c listen_addresses= -c unix_socket_directories={home} -c fsync=off -c max_connections=100"
    try:
        user = _give_to_server_user(home)
        _run([programs / "initdb", "-D", data, "-A", "trust", "-U", "wardmesh", "-E", "UTF8", "--no-sync"], home, user)
        _run([programs / "pg_ctl", "-D", data, "-w", "-t", "60", "-l", log, "-o", options, "start"], home, user)
        try:
            yield str(home)
        finally:
            _run([programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop"], home, user)
    finally:
        shutil.rmtree(home)


def _give_to_server_user(home: Path) -> pwd.struct_passwd | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = names.get(SERVER_USER) or names["nobody"]
    os.chown(home, user.pw_uid, user.pw_gid)
    return user


def _run(arguments: list[str | Path], home: Path, user: pwd.struct_passwd | None) -> None:
    become = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
    done = subprocess.run(arguments, check=False, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **become)
    if done.returncode != 0:
        raise RuntimeError(f"{arguments[0]} failed: {done.stderr.decode(errors='replace')}")
