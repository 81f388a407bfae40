"""One process with pipes: lines in, lines out, and an end that leaves nothing behind. Knows no JSON-RPC.

The process leads a session and process group of its own, which is killed with it. When the gateway itself is killed,
the server reads the end of its input and must exit (2025-11-25, basic/lifecycle, shutdown).
"""

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from typing import Final

from controller.wire.mcp import StdioUpstream

__all__ = ["Child", "ChildError"]

log = logging.getLogger("agentd.gateway.stdio")

_LARGEST_LINE: Final = 16 * 1024 * 1024
_LARGEST_UNREAD: Final = 8 * 1024 * 1024  # bytes that the server has not read
_INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "USER", "LOGNAME")
_EXIT_SECONDS: Final = 2.0  # after its input ended, and again after SIGTERM
_TAIL: Final = 20  # lines of standard error that explain an exit


class ChildError(Exception):
    """The process cannot be started, or does not take or give what it should; one sentence."""


class Child:
    """A running process. `send` and `read` until it ends; `stop` in any case."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._said: deque[str] = deque(maxlen=_TAIL)
        self._errors = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, name: str, upstream: StdioUpstream) -> "Child":
        """Spawn the command, without a shell and with little environment. Raises ChildError."""
        inherited = {key: os.environ[key] for key in _INHERITED if key in os.environ}
        try:
            process = await asyncio.create_subprocess_exec(
                *upstream.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=inherited | upstream.environment,
                cwd=upstream.directory,
                start_new_session=True,
                limit=_LARGEST_LINE,
            )
        except OSError as error:
            raise ChildError(f"the command {upstream.command[0]!r} cannot be started: {error.strerror}") from error
        return cls(name, process)

    def send(self, line: bytes) -> None:
        """Give it a line. Raises ChildError when it ended or does not read."""
        stdin = self._process.stdin
        assert stdin is not None
        if stdin.is_closing() or self._process.returncode is not None:
            raise ChildError("the server's process has ended")
        if stdin.transport.get_write_buffer_size() > _LARGEST_UNREAD:
            raise ChildError("the server's process does not read what it is sent")
        stdin.write(line + b"\n")

    async def read(self) -> bytes | None:
        """The next line; None when it ended its output. Raises ChildError for a line without end."""
        stdout = self._process.stdout
        assert stdout is not None
        try:
            line = await stdout.readline()
        except ValueError as error:  # StreamReader's word for a line over the limit
            raise ChildError(f"the server's process wrote more than {_LARGEST_LINE} bytes in one line") from error
        return line or None

    def why(self) -> str:
        """How it ended, with what it last said on standard error."""
        code = self._process.returncode
        how = (
            "is running"
            if code is None
            else f"exited with code {code}"
            if code >= 0
            else f"was killed by {_name(code)}"
        )
        return f"{how}: {self._said[-1]}" if self._said else how

    async def stop(self) -> None:
        """End it and everything that it started: input closed, SIGTERM, SIGKILL. Idempotent."""
        stdin = self._process.stdin
        assert stdin is not None
        stdin.close()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._signal(number)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), _EXIT_SECONDS)
                break
        # Its group may outlive it. The id is not given away while the group has members.
        self._signal(signal.SIGKILL)
        await self._process.wait()
        self._errors.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._errors

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def _listen(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        while data := await stderr.read(4096):
            for line in data.decode("utf-8", "replace").splitlines():
                self._said.append(line[:500])
                log.debug("%s: %s", self.name, line[:500])


def _name(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
