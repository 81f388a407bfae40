"""Keeps the mesh's names on this host as the map in force says: the task around `names`.

Where programs ask systemd-resolved, it is told to ask our responder; elsewhere the names are lines of the hosts file.
Level-triggered, as the kernel's state is: what somebody else changed is put back with the next look. Where agentd may
not write the hosts file, it leaves the names beside its socket, for a unit that runs as root.
"""

import asyncio
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from controller.wire.base import split_endpoint
from controller.wire.netmap import Netmap

from .config import Config
from .dns import Zone
from .dns_server import DnsError, DnsServer
from .names import Entry, HostsFile, NamesError, entries, few, parse_entries, written, zone
from .resolved import Resolved, ResolvedError, is_asked

__all__ = ["LEFT", "Naming", "remove_names", "write_left"]

log = logging.getLogger("agentd.naming")

LEFT: Final = "names"  # the file beside the socket
_LOOK_EVERY: Final = 300.0  # seconds; who edits the file by hand sees our block come back
_LONGEST: Final = 1024 * 1024  # bytes


class Naming:
    """The names of one mesh on this host."""

    def __init__(self, config: Config) -> None:
        self._file = _hosts_file(config)
        self._left = config.socket.parent / LEFT
        self._dns = _Dns(config) if config.dns else None
        self._file_problem: str | None = None
        self._wanted: tuple[Entry, ...] | None = None
        self._ended = False
        self._look = asyncio.Event()
        self._turn = asyncio.Lock()

    @property
    def problem(self) -> str | None:
        """Why the names are not where they should be."""
        return self._file_problem or (self._dns.problem if self._dns is not None else None)

    def adopt(self, netmap: Netmap) -> None:
        """This map is in force."""
        if self._dns is not None:
            self._dns.adopt(netmap)
        wanted = entries(netmap)
        if wanted != self._wanted:
            self._wanted = wanted
            self._look.set()

    async def run(self) -> None:
        """Keep them until cancelled."""
        if self._dns is not None:
            await self._dns.start()
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY):
                        await self._look.wait()
                self._look.clear()
                async with self._turn:
                    if self._wanted is not None and not self._ended:
                        await self._keep(self._wanted)
        finally:
            await self._stop()

    async def _keep(self, wanted: tuple[Entry, ...]) -> None:
        asked = self._dns is not None and await self._dns.register()
        if self._file is not None:
            await asyncio.to_thread(self._put, self._file, () if asked else few(wanted))

    async def _stop(self) -> None:
        """Nobody answers any more, but the tunnel stays: so do the names, in the hosts file."""
        if self._dns is None:
            return
        was_asked = await self._dns.close()
        if was_asked and self._file is not None and self._wanted is not None and not self._ended:
            await asyncio.to_thread(self._put, self._file, few(self._wanted))

    async def end(self) -> list[str]:
        """Take them away for good: the host leaves. Returns what was done; what cannot be done is only logged."""
        self._ended = True
        async with self._turn:
            if self._dns is not None:
                await self._dns.close()
            return await asyncio.to_thread(_remove, self._file, self._left)

    def _put(self, file: HostsFile, wanted: tuple[Entry, ...]) -> None:
        try:
            if file.put(wanted):
                log.info("the mesh's names are in %s", file.path, extra={"names": len(wanted)})
            problem = None
        except NamesError as error:
            problem = str(error)
            _leave(self._left, wanted)
        if problem is not None and problem != self._file_problem:
            log.warning("%s", problem)
        self._file_problem = problem


class _Dns:
    """The responder, and systemd-resolved where it is asked."""

    def __init__(self, config: Config) -> None:
        assert config.dns
        self.problem: str | None = None
        self._where = config.dns
        self._resolved = Resolved(config.link)
        self._server: DnsServer | None = None
        self._zone: Zone | None = None
        self._registered = False
        self._fresh_until = 0.0  # names change often, and where to ask for them does not

    def adopt(self, netmap: Netmap) -> None:
        self._zone = zone(netmap)
        if self._server is not None:
            self._server.zone = self._zone

    async def start(self) -> None:
        """Answer from now on; without, the hosts file has to do."""
        server = DnsServer(self._zone or Zone(""))
        try:
            await server.start(*split_endpoint(self._where))
        except DnsError as error:
            self._note(str(error))
            return
        self._server = server
        if self._zone is not None:
            server.zone = self._zone

    async def register(self) -> bool:
        """Have systemd-resolved ask us. False: nobody does, where it is not there or did not take it."""
        if self._server is None or self._zone is None or not is_asked():
            self._registered = False
            return False
        now = asyncio.get_running_loop().time()
        if self._registered and now < self._fresh_until:
            return True
        try:
            await self._resolved.register(self._where, self._zone.domain)
        except ResolvedError as error:
            self._note(str(error))
            self._registered = False
            return False
        if not self._registered:
            log.info("systemd-resolved asks %s about %s", self._where, self._zone.domain)
        self._registered, self._fresh_until, self.problem = True, now + _LOOK_EVERY / 2, None
        return True

    async def close(self) -> bool:
        """Answer no more. True when systemd-resolved asked us."""
        was_asked, self._registered = self._registered, False
        if was_asked:
            try:
                await self._resolved.revert()
            except ResolvedError as error:
                log.warning("%s", error)
        if self._server is not None:
            await self._server.close()
            self._server = None
        return was_asked

    def _note(self, problem: str) -> None:
        if problem != self.problem:
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
