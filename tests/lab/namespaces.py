"""Network namespaces: make, enter, end. A thread enters one; the rest of the process stays where it is."""

import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.lab.syscalls import CLONE_NEWNET, MNT_DETACH, MS_BIND, MS_REC, MS_SHARED, called, mount, on_a_thread
from tests.lab.waiting import eventually
from tests.lab.wires import Wires

__all__ = ["Namespace", "end_processes_in"]

_DIRECTORY: Final = Path("/run/netns")  # where `ip` looks


class Namespace:
    """A named network namespace, as `ip netns` shows it, with loopback up and IPv6 usable at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _DIRECTORY / name
        _share_directory()
        self.path.touch(exist_ok=False)
        on_a_thread(self._begin)
        self._net = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        # Without duplicate address detection (RFC 4862), which would hold new addresses back for a second or two.
        for scope in ("all", "default"):
            self.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
        with self.wires() as wires:
            wires.up("lo")

    def _begin(self) -> None:
        called("unshare", CLONE_NEWNET)
        mount("/proc/thread-self/ns/net", str(self.path), None, MS_BIND)

    def sysctl(self, name: str, value: int | str) -> None:
        with self.enter():
            Path("/proc/sys", *name.split(".")).write_text(str(value))

    def batch(self, *lines: str) -> None:
        """Run `ip` commands in one process; raises CalledProcessError at the first that fails."""
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    @contextlib.contextmanager
    def wires(self) -> Iterator[Wires]:
        """What makes links, addresses and routes here, without a process for each."""
        with self.enter(), Wires() as wires:
            yield wires

    @property
    def descriptor(self) -> int:
        """The open namespace."""
        return self._net

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread into the namespace. Sockets and processes made meanwhile stay in it for good.

        Not across an `await`: other tasks of the thread would find themselves here.
        """
        with Path("/proc/thread-self/ns/net").open() as back:
            called("setns", self._net, CLONE_NEWNET)
            try:
                yield
            finally:
                called("setns", back.fileno(), CLONE_NEWNET)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, for use anywhere."""
        with self.enter():
            return socket.socket(family, kind, protocol)

    @property
    def inode(self) -> int:
        return os.fstat(self._net).st_ino

    def delete(self) -> None:
        os.close(self._net)
        called("umount2", str(self.path).encode(), MNT_DETACH)
        self.path.unlink()


def _share_directory() -> None:
    """Have what ends here end in all mount namespaces, as `ip netns add` does."""
    _DIRECTORY.mkdir(exist_ok=True)
    try:
        mount("", str(_DIRECTORY), "none", MS_SHARED | MS_REC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mount(str(_DIRECTORY), str(_DIRECTORY), "none", MS_BIND | MS_REC)  # it was no mount of its own yet
        mount("", str(_DIRECTORY), "none", MS_SHARED | MS_REC)


def end_processes_in(namespaces: Iterable[Namespace]) -> None:
    """Kill every process whose main thread is in one of `namespaces`, also what has left its parent's session."""
    inodes = {namespace.inode for namespace in namespaces}
    found = [pid for pid in _all_pids() if pid != os.getpid() and _net_inode(pid) in inodes]
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(_net_inode(pid) not in inodes for pid in found), what=f"the end of {found}")


def _all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _net_inode(pid: int) -> int | None:
    """None when the process is gone (a zombie has left its namespace)."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except (FileNotFoundError, ProcessLookupError):
        return None
