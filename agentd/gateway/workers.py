"""Several gateway processes on the same addresses (SO_REUSEPORT), so that more than one core carries calls.

The parent serves nothing: it starts workers, starts them again when they die, and passes signals on.
"""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence

from .siblings import Family

__all__ = ["supervise"]

log = logging.getLogger("agentd.gateway")

_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 30.0
_STEADY = 60.0  # seconds after which a worker's death is no sign of a fault that will repeat


async def supervise(arguments: Sequence[str], count: int, grace: float, *, with_parent: bool = False) -> int:
    """Keep `count` workers running until SIGTERM or SIGINT; returns an exit code.

    A worker that cannot even start is not started for ever: when all of them fail at once at the start, so do we.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    family = Family(count)
    workers = [_Worker(arguments, number, family.descriptors(number)) for number in range(count)]
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(signal.SIGHUP, _read_again, workers)
    if with_parent:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    tasks = [asyncio.create_task(worker.keep_running()) for worker in workers]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
    failed = not stop.is_set()
    stopping.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(worker.end(grace + 5) for worker in workers))
    family.close()
    return 1 if failed else 0


def _read_again(workers: "list[_Worker]") -> None:
    for worker in workers:
        worker.signal(signal.SIGHUP)


class _Worker:
    """One worker process."""

    def __init__(self, arguments: Sequence[str], number: int, inherited: Sequence[int]) -> None:
        self._arguments = (*arguments, "--worker", str(number), "--siblings", ",".join(map(str, inherited)))
        self._inherited = inherited
        self._number = number
        self._process: asyncio.subprocess.Process | None = None

    async def keep_running(self) -> None:
        """Start it, again and again; returns when it ends before it was ever steady with a failure of its own."""
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        first = True
        while True:
            began = loop.time()
            # Its standard input is a pipe that only we hold: when we die, however that is, it reads the end and stops.
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agentd.gateway", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                pass_fds=self._inherited,
            )
            code = await self._process.wait()
            lived = loop.time() - began
            if code == 1 and first:
                return  # it said why
            first = False
            pause = _FIRST_PAUSE if lived > _STEADY else min(pause * 2, _LONGEST_PAUSE)
            log.error("a worker ended", extra={"worker": self._number, "code": code, "again_in": pause})
            await asyncio.sleep(pause)

    def signal(self, number: signal.Signals) -> None:
        """Pass a signal on."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    async def end(self, patience: float) -> None:
        """Ask it to end; kill it when it does not within `patience` seconds."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), patience)
        except TimeoutError:
            log.warning("a worker did not end and was killed", extra={"worker": self._number})
            process.kill()
            await process.wait()
