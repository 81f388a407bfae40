"""Lets programs that run as other users start from this checkout and this Python, wherever they are installed.

A developer's or a CI's Python is often below a home directory that nobody else may enter. Modes of files outside stay
as they are: in a mount namespace of its own, such a directory is replaced by one that can be entered, with the same
entries. Needs root.
"""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.lab.syscalls import CLONE_FS, CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, called, mount

__all__ = ["reveal", "revealed"]

_CHECKOUT = Path(__file__).parents[2]


def reveal() -> None:
    """In the mount namespace of this thread, which must be its own."""
    for needed in (Path(sys.base_prefix), Path(sys.prefix), _CHECKOUT):
        path = needed.resolve()
        for directory in (*reversed(path.parents), path):
            if not directory.stat().st_mode & stat.S_IXOTH:
                _replace(directory)


@contextmanager
def revealed() -> Iterator[None]:
    """In a mount namespace of its own, which the calling thread enters for as long as this lasts."""
    before, here = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), Path.cwd()
    try:
        called("unshare", CLONE_FS | CLONE_NEWNS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        reveal()
        os.chdir(here)
        yield
    finally:
        called("unshare", CLONE_FS)  # setns(2) refuses who shares its root, as with threads that began meanwhile
        called("setns", before, CLONE_NEWNS)
        os.close(before)
        os.chdir(here)


def _replace(directory: Path) -> None:
    opened = {entry: os.open(entry, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC) for entry in directory.iterdir()}
    links = {entry: entry.readlink() for entry in opened if entry.is_symlink()}
    directories = {entry for entry in opened if entry.is_dir() and entry not in links}
    mount("tmpfs", str(directory), "tmpfs")
    directory.chmod(0o755)
    for entry, descriptor in opened.items():
        if entry in links:
            entry.symlink_to(links[entry])
        else:
            entry.mkdir() if entry in directories else entry.touch()
            mount(f"/proc/self/fd/{descriptor}", str(entry), None, MS_BIND | MS_REC)
        os.close(descriptor)
