"""The one place that starts processes: `wireguard-go`, where the kernel has no WireGuard.

Always a list, never a shell; secrets never in the arguments.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Mapping
from typing import IO, Final

from agentd.model import KernelError

__all__ = ["ended", "find", "spawn", "stop"]

_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STOP_TIMEOUT: Final = 5.0


def find(program: str) -> str | None:
    """Where the program is. The system's own directories are searched too: a service's PATH may lack sbin."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_PATH}")


def spawn(program: str, *arguments: str, environment: Mapping[str, str], messages: IO[bytes], install: str) -> int:
    """Start a program that outlives us, in a session of its own; returns its process id.

    `messages` is a file for what it prints: were it a pipe, the program would die with our end of it.
    """
    path = find(program)
    if path is None:
        raise KernelError(f"{program} is not installed: install the package {install}")
    return os.posix_spawn(
        path,
        [path, *arguments],
        {"PATH": _PATH, **environment},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, messages.fileno(), 1),
            (os.POSIX_SPAWN_DUP2, messages.fileno(), 2),
        ],
        setsid=True,
    )


def ended(pid: int) -> int | None:
    """The exit code (negative: the signal) of a program that `spawn` started, None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


async def stop(pid: int) -> None:
    """End a process, ours or not: first by asking. Returns when it is gone."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    gone = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, gone.set)
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            signal.pidfd_send_signal(handle, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STOP_TIMEOUT):
                    await gone.wait()
                    break
    except ProcessLookupError:
        pass  # it ended by itself, and somebody has collected it
    finally:
        loop.remove_reader(handle)
        os.close(handle)
    with contextlib.suppress(ChildProcessError):  # not our child: init collects it
        ended(pid)
