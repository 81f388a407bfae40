"""A network namespace with what else makes a machine: a host name, its own /run, /sys and /etc/hosts.

So several hosts of one lab run the same daemons with the same paths under /run, as real hosts do. Other files are
shared with the machine that runs the tests. Knows nothing of topologies.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.lab.namespaces import Namespace
from tests.lab.revealed import reveal
from tests.lab.syscalls import (
    CLONE_FS,
    CLONE_NEWNS,
    CLONE_NEWUTS,
    MS_BIND,
    MS_PRIVATE,
    MS_REC,
    called,
    mount,
    on_a_thread,
)

__all__ = ["Machine"]

T = TypeVar("T")


class Machine(Namespace):
    """A namespace of each kind that the daemons look at, held open by this process: they end with it."""

    def __init__(self, name: str, hostname: str, run_directory: Path, hosts_file: Path) -> None:
        super().__init__(name)
        self._run_directory = run_directory
        self._hosts_file = hosts_file
        hosts_file.write_text("127.0.0.1 localhost\n::1 localhost\n")
        self._hostname = hostname
        self._descriptors = on_a_thread(self._make)

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on this machine, on a thread of its own. Its working directory there is /."""

        def body() -> T:
            called("unshare", CLONE_FS)  # setns(2) changes the mounts only of who shares its root with nobody
            for descriptor, kind in zip(self._descriptors, (CLONE_NEWNS, CLONE_NEWUTS), strict=True):
                called("setns", descriptor, kind)
            with self.enter():
                return function()

        return on_a_thread(body)

    def delete(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)
        super().delete()

    def _make(self) -> tuple[int, int]:
        """On a thread that becomes the machine's first; the namespaces live on in the descriptors."""
        called("unshare", CLONE_NEWNS | CLONE_NEWUTS)
        mount("none", "/", None, MS_REC | MS_PRIVATE)
        with self.enter():
            mount("sysfs", "/sys", "sysfs")
        reveal()  # other users may run the project's programs
        mount(str(self._run_directory), "/run", None, MS_BIND)
        mount(str(self._hosts_file), "/etc/hosts", None, MS_BIND)
        name = self._hostname.encode()
        called("sethostname", name, len(name))
        return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY), os.open("/proc/thread-self/ns/uts", os.O_RDONLY)
