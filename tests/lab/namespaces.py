"""Network namespaces: make, enter, end. A thread enters one; the rest of the process stays where it is."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tests.lab.waiting import eventually

__all__ = ["Namespace", "end_processes_in", "set_namespace"]

CLONE_NEWNET: Final = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class Namespace:
    """A named network namespace, as `ip netns` shows it, with loopback up and IPv6 usable at once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = Path("/run/netns", name)
        subprocess.run(["ip", "netns", "add", name], check=True)
        self._net = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        # Without duplicate address detection (RFC 4862), which would hold new addresses back for a second or two.
        for scope in ("all", "default"):
            self.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
        self.batch("link set lo up")

    def sysctl(self, name: str, value: int | str) -> None:
        with self.enter():
            Path("/proc/sys", *name.split(".")).write_text(str(value))

    def batch(self, *lines: str) -> None:
        """Run `ip` commands in one process; raises CalledProcessError at the first that fails."""
        subprocess.run(["ip", "-n", self.name, "-batch", "-"], input="\n".join(lines), text=True, check=True)

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Move the calling thread into the namespace. Sockets and processes made meanwhile stay in it for good.

        Not across an `await`: other tasks of the thread would find themselves here.
        """
        with Path("/proc/thread-self/ns/net").open() as back:
            set_namespace(self._net, CLONE_NEWNET)
            try:
                yield
            finally:
                set_namespace(back.fileno(), CLONE_NEWNET)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket of this namespace, for use anywhere."""
        with self.enter():
            return socket.socket(family, kind, protocol)

    @property
    def inode(self) -> int:
        return os.fstat(self._net).st_ino

    def delete(self) -> None:
        os.close(self._net)
        subprocess.run(["ip", "netns", "del", self.name], check=True)


def set_namespace(descriptor: int, kind: int) -> None:
    """setns(2) for the calling thread; Python has it since 3.12 only."""
    if _libc.setns(descriptor, kind) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


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
