"""The gateway that agentd starts where no service manager does: as another user, and again when it dies.

Whether there is something to serve, and how that goes, is `serving`'s; what a gateway does is not known here.
"""

import asyncio
import logging
import os
import pwd
import shutil
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config import Config
from .errors import AgentError
from .gateway.spool import unshipped
from .serving import Serving

__all__ = ["GatewayProcess", "User", "gateway_uid", "gateway_user", "remove_files"]

log = logging.getLogger("agentd.gateway_process")

_FIRST_PAUSE: Final = 0.5  # seconds
_LONGEST_PAUSE: Final = 60.0
_STEADY: Final = 60.0  # seconds after which an end is no sign of a fault that will repeat
_BEYOND_GRACE: Final = 10.0  # seconds that it has to end once running calls have had their time
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class User:
    """As whom the gateway runs."""

    name: str
    uid: int
    gid: int


def gateway_user(config: Config) -> User:
    """Who the gateway's user is, when agentd is to start it. Raises AgentError when that cannot be."""
    found = _find(config.gateway_user)
    if found is None:
        raise AgentError(
            f"gateway: there is no user {config.gateway_user!r}: make it with "
            f'`useradd --system {config.gateway_user}`, or name another one (gateway = "USER")'
        )
    if found.uid in {0, os.geteuid()}:
        raise AgentError(
            f'gateway: {found.name} has agentd\'s own rights: name a user that has none (gateway = "USER")'
        )
    if os.geteuid() != 0:
        raise AgentError(
            f"gateway: only root can start it as {found.name}: run agentd as root, "
            "or leave `gateway` out and start wardmesh-gateway.service"
        )
    return found


def gateway_uid(config: Config) -> int | None:
    """The user id of the gateway, whoever starts it; None where no such user exists."""
    found = _find(config.gateway_user)
    return found.uid if found is not None else None


def _find(name: str) -> User | None:
    try:
        entry = pwd.getpwnam(name)
    except KeyError:
        return None
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


class GatewayProcess:
    """Runs one gateway while `serving` has something to serve."""

    def __init__(self, config: Config, user: User, serving: Serving) -> None:
        self._socket, self._directory, self._grace = config.socket, config.gateway_dir, config.gateway_grace
        self._options = (
            *("--workers", str(config.gateway_workers), "--spool-size", str(config.gateway_spool_size)),
            *("--grace", str(config.gateway_grace), "--log-level", config.log_level),
        )
        self._user = user
        self._serving = serving
        self._look = asyncio.Event()
        self._ended = False
        self._turn = asyncio.Lock()  # held while it runs

    def wake(self) -> None:
        """What is to be served may have changed."""
        self._look.set()

    async def run(self) -> None:
        """Until cancelled; the gateway ends then, too."""
        pause = _FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            await self._until(wanted=True)
            began = loop.time()
            why = await self._run_once()
            if why is None:
                self._serving.problem, pause = None, _FIRST_PAUSE
                continue
            pause = _FIRST_PAUSE if loop.time() - began > _STEADY else pause
            self._serving.problem = f"{why}; it is started again in {pause:.0f} s" if pause >= 1 else why
            log.error("%s", why, extra={"again_in": pause})
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._until(wanted=False)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def pause(self) -> None:
        """Stop it until `resume` or `end`, while records still have a way to the controller: it ships what is left."""
        self._ended = True
        self._look.set()
        async with self._turn:
            pass

    def resume(self) -> None:
        """Serve again what is to be served: the host does not leave after all."""
        self._ended = False
        self._look.set()

    async def end(self) -> list[str]:
        """Never serve again, and remove its files: the host leaves. Returns what was removed. Raises AgentError."""
        self._ended = True
        self._look.set()
        async with self._turn:
            return await asyncio.to_thread(remove_files, self._directory)

    async def _run_once(self) -> str | None:
        """Start it, and wait for its end; returns why it ended, None when there was nothing to serve any more."""
        async with self._turn:
            try:
                process = await self._start()
            except OSError as error:
                return f"the gateway cannot be started: {error.strerror} ({error.filename})"
            log.info("started the gateway", extra={"pid": process.pid, "user": self._user.name})
            exited = asyncio.create_task(process.wait())
            unwanted = asyncio.create_task(self._until(wanted=False))
            try:
                await asyncio.wait([exited, unwanted], return_when=asyncio.FIRST_COMPLETED)
                if process.returncode is None:
                    return None
                return f"the gateway ended with {_described(process.returncode)}: its own log says why"
            finally:
                unwanted.cancel()
                await _stop(process, self._grace)
                await asyncio.gather(exited, unwanted, return_exceptions=True)

    async def _start(self) -> asyncio.subprocess.Process:
        self._make_directory()
        # Whoever opens agentd's socket needs its group; the user may be in it already.
        group = self._socket.stat().st_gid
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "agentd.gateway", "--with-parent"),
            *("--state-dir", self._directory, "--agent-socket", self._socket, *self._options),
            # It reads the end of this pipe when we die, however that is, and stops.
            stdin=asyncio.subprocess.PIPE,
            cwd="/",
            env={"PATH": _PATH, "HOME": str(self._directory), "LANG": "C.UTF-8"},
            # From root to another user: the kernel takes every capability away (capabilities(7)).
            user=self._user.uid,
            group=self._user.gid,
            extra_groups=[group],
            umask=0o077,
        )

    def _make_directory(self) -> None:
        with suppress(FileExistsError):
            self._directory.mkdir(mode=0o700)
            os.chown(self._directory, self._user.uid, self._user.gid)

    async def _until(self, *, wanted: bool) -> None:
        while (self._serving.wanted and not self._ended) is not wanted:
            self._look.clear()
            await self._look.wait()


def remove_files(directory: Path) -> list[str]:
    """Remove the gateway's state: spool, session key. Returns what was removed. Raises AgentError."""
    if not directory.exists():
        return []
    try:
        lost = unshipped(directory / "spool")
        shutil.rmtree(directory)
    except OSError as error:
        raise AgentError(f"cannot remove {directory} ({error.strerror}): remove it by hand") from error
    return [
        f"remove {directory}" + (f", with {lost} records of calls that the controller does not have" if lost else "")
    ]


async def _stop(process: asyncio.subprocess.Process, grace: float) -> None:
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(grace + _BEYOND_GRACE):
            await process.wait()
    except TimeoutError:
        log.warning("the gateway did not end and was killed", extra={"pid": process.pid})
        process.kill()
        await process.wait()


def _described(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
