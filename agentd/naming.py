"""Keeps the mesh's names on this host as the map in force says: the task around `names`.

Level-triggered, as the kernel's state is: what somebody else changed is put back with the next look. Where agentd may
not write the hosts file, it leaves the names beside its socket, for a unit that runs as root.
"""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from controller.wire.netmap import Netmap

from .config import Config
from .names import Entry, HostsFile, NamesError, entries, parse_entries, written

__all__ = ["LEFT", "Naming", "remove_names", "write_left"]

log = logging.getLogger("agentd.naming")

LEFT: Final = "names"  # the file beside the socket
_LOOK_EVERY: Final = 300.0  # seconds; who edits the file by hand sees our block come back
_LONGEST: Final = 1024 * 1024  # bytes


class Naming:
    """The names of one mesh on this host. `problem`: why they are not there."""

    def __init__(self, config: Config) -> None:
        self.problem: str | None = None
        self._file = _hosts_file(config)
        self._left = config.socket.parent / LEFT
        self._wanted: tuple[Entry, ...] | None = None
        self._ended = False
        self._look = asyncio.Event()
        self._turn = asyncio.Lock()

    def adopt(self, netmap: Netmap) -> None:
        """This map is in force."""
        wanted = entries(netmap)
        if wanted != self._wanted:
            self._wanted = wanted
            self._look.set()

    async def run(self) -> None:
        """Keep them until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_EVERY):
                    await self._look.wait()
            self._look.clear()
            async with self._turn:
                if self._file is not None and self._wanted is not None and not self._ended:
                    await asyncio.to_thread(self._put, self._file, self._wanted)

    async def end(self) -> list[str]:
        """Take them away for good: the host leaves. Returns what was done; what cannot be done is only logged."""
        self._ended = True
        async with self._turn:
            return await asyncio.to_thread(_remove, self._file, self._left)

    def _put(self, file: HostsFile, wanted: tuple[Entry, ...]) -> None:
        try:
            if file.put(wanted):
                log.info("the mesh's names are in %s", file.path, extra={"names": len(wanted)})
            problem = None
        except NamesError as error:
            problem = str(error)
            _leave(self._left, wanted)
        if problem is not None and problem != self.problem:
            log.warning("%s", problem)
        self.problem = problem


def _hosts_file(config: Config) -> HostsFile | None:
    return HostsFile(config.hosts_file, config.link) if isinstance(config.hosts_file, Path) else None


def remove_names(config: Config) -> list[str]:
    """Remove the block of a daemon that does not run. Returns what was done."""
    return _remove(_hosts_file(config), config.socket.parent / LEFT)


def write_left(config: Config) -> bool:
    """What the unit that runs as root does: put what agentd left into the hosts file. True when it changed.

    Raises NamesError.
    """
    file, left = _hosts_file(config), config.socket.parent / LEFT
    if file is None:
        return False
    try:
        # We may be root and whoever wrote it is not: a link could lead anywhere.
        with os.fdopen(os.open(left, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb") as opened:
            text = opened.read(_LONGEST + 1)
    except FileNotFoundError:
        text = b""
    except OSError as error:
        raise NamesError(f"cannot read {left}: {error.strerror}") from error
    if len(text) > _LONGEST:
        raise NamesError(f"{left} is longer than {_LONGEST} bytes: let agentd write it again")
    return file.put(parse_entries(text.decode(errors="replace")))


def _leave(left: Path, wanted: tuple[Entry, ...]) -> None:
    text = written(wanted)
    with suppress(OSError):  # then the sentence about the hosts file is all that can be said
        if not left.exists() or left.read_text() != text:
            fresh = left.with_name(f".{left.name}.new")
            fresh.write_text(text)
            fresh.replace(left)


def _remove(file: HostsFile | None, left: Path) -> list[str]:
    done = []
    if left.exists():
        _leave(left, ())  # whoever put them into the hosts file for us takes them out
    try:
        if file is not None and file.put(()):
            done.append(f"remove the mesh's names from {file.path}")
    except NamesError as error:
        log.warning("%s", error)
    return done
