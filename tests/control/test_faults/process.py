"""Controllers in processes of their own that a test kills and starts again, within a second.

They are forked from a process that has imported everything already: to kill one is what `kill -9` does to the command,
and to start one costs no imports.
"""

import asyncio
import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import uvloop

from controller.identity.ca import CertificateAuthority
from controller.server import running
from controller.settings import Listen, Settings, SettingsError
from controller.state_dir import StateDirError
from controller.store.engine import StoreError
from controller.tls import TlsError

_log = logging.getLogger(__name__)
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])
_START_WITHIN = 60.0  # seconds


class Controller:
    """One controller's place: its settings and port, whoever runs there. `token` is an admin's.

    `constants`: values of modules, by their full names, that are others in its process.
    """

    def __init__(self, settings: Settings, log: Path, constants: Mapping[str, float] | None = None) -> None:
        # No limits: a host that comes back at once after each of many faults is meant to.
        self.settings = replace(settings, listen=Listen("127.0.0.1", free_port()), client_rate=0, stream_rate=0)
        self.log = log
        self.constants = dict(constants or {})
        self.token = ""
        self.up = asyncio.Event()
        self._process: multiprocessing.process.BaseProcess | None = None

    @property
    def authority(self) -> CertificateAuthority:
        state = self.settings.state_dir
        return CertificateAuthority.load((state / "ca.pem").read_bytes(), (state / "ca.key").read_bytes())

    @property
    def pid(self) -> int:
        """The process that runs."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    @property
    def port(self) -> int:
        return self.settings.listen.port

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        error = await self.try_start()
        assert error is None, error + "\n" + self.log.read_text()

    async def try_start(self) -> str | None:
        """Start it; why it did not start, or None when it serves."""
        ours, theirs = _FORKS.Pipe()
        process = _FORKS.Process(target=_serve, args=(self.settings, theirs, self.log, self.constants), daemon=True)
        process.start()
        theirs.close()
        self._process = process
        try:
            error, token = await asyncio.to_thread(_hear, ours)
        except EOFError:
            error, token = "it died while it started", None
        finally:
            ours.close()
        if error is not None:
            await self.gone()
            return error
        self.token = token or self.token
        self.up.set()
        return None

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, wherever it is."""
        self.up.clear()
        if self._process is not None and self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, number)
        await self.gone()

    async def gone(self) -> None:
        if self._process is not None:
            await asyncio.to_thread(self._process.join)
            self._process = None

    def trust(self) -> ssl.SSLContext:
        """A client's TLS context that trusts the mesh's CA and nothing else."""
        return ssl.create_default_context(cadata=self.authority.pem)

    def client(self) -> httpx.AsyncClient:
        """An admin's client. It outlives restarts."""
        return httpx.AsyncClient(
            base_url=f"https://127.0.0.1:{self.port}/api/v1",
            verify=self.trust(),
            headers={"authorization": f"Bearer {self.token}"},
            timeout=30,
        )


@asynccontextmanager
async def started(
    settings: Settings, log: Path, constants: Mapping[str, float] | None = None
) -> AsyncIterator[Controller]:
    """A controller that serves; it is killed in the end."""
    controller = Controller(settings, log, constants)
    try:
        await controller.start()
        yield controller
    finally:
        await controller.kill()


def free_port() -> int:
    """A port that nobody is given by chance while our controller is dead: below those of outgoing connections."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no free port between 20000 and 32000")


def _hear(pipe: Connection) -> tuple[str | None, str | None]:
    if not pipe.poll(_START_WITHIN):
        return f"it did not start within {_START_WITHIN:.0f} s", None
    error, token = pipe.recv()
    return error, token


def _serve(settings: Settings, pipe: Connection, log: Path, constants: Mapping[str, float]) -> None:
    for name, value in constants.items():
        module, _, constant = name.rpartition(".")
        setattr(importlib.import_module(module), constant, value)
    logging.basicConfig(filename=log, level=logging.INFO, force=True)
    os.umask(0o077)

    async def serve() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        async with running(settings) as controller:
            pipe.send((None, controller.first_token))
            await stop.wait()

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())
    except (StoreError, StateDirError, SettingsError, TlsError) as error:
        _log.exception("the controller ended")
        with contextlib.suppress(OSError):
            pipe.send((f"{type(error).__name__}: {error}", None))
