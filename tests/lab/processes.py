"""Real processes with captured output: wait for a line, stop, end with everything they started."""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Final

__all__ = ["Process", "ProcessEnded"]

TAIL_LINES: Final = 40


class ProcessEnded(AssertionError):  # noqa: N818 - it fails a test by saying what happened
    """The process ended while something was awaited from it; the message has its code and last lines."""


class Process:
    """A running program, in a session of its own. Reads both its outputs all the time, so that it never blocks."""

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: str | None = None,
    ) -> None:
        self.command = [str(word) for word in command]
        self._popen = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
        self._lines: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self._open_outputs = 2
        self._readers = [
            threading.Thread(target=self._read, args=(stream, name), daemon=True)
            for stream, name in ((self._popen.stdout, "stdout"), (self._popen.stderr, "stderr"))
        ]
        for reader in self._readers:
            reader.start()
        if stdin is not None and self._popen.stdin:
            with contextlib.suppress(BrokenPipeError), self._popen.stdin as pipe:
                pipe.write(stdin.encode())

    def __repr__(self) -> str:
        return f"<Process {self.pid} {' '.join(self.command)!r}>"

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.poll()

    @property
    def running(self) -> bool:
        return self.returncode is None

    @property
    def output(self) -> str:
        """Both outputs, in the order in which they arrived."""
        with self._changed:
            return "\n".join(line for _, line in self._lines)

    @property
    def stdout(self) -> str:
        with self._changed:
            return "\n".join(line for stream, line in self._lines if stream == "stdout")

    @property
    def stderr(self) -> str:
        with self._changed:
            return "\n".join(line for stream, line in self._lines if stream == "stderr")

    def wait_for_line(self, pattern: str, timeout: float = 20, after: int = 0) -> re.Match[str]:
        """Wait until a line of either output matches `pattern` (re.search). Returns the match.

        `after`: how many lines to disregard; `len(process)` now makes it wait for a new one.
        Raises ProcessEnded when the process ends without such a line, AssertionError after `timeout` seconds.
        """
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        seen = after
        with self._changed:
            while True:
                for _, line in self._lines[seen:]:
                    if match := wanted.search(line):
                        return match
                seen = max(seen, len(self._lines))
                if not self._open_outputs:
                    raise ProcessEnded(
                        f"{self!r} ended with {self._popen.wait()} before a line matched {pattern!r}\n{self._tail()}"
                    )
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise AssertionError(f"{self!r}: no line matched {pattern!r} in {timeout} s\n{self._tail()}")
                self._changed.wait(remaining)

    def __len__(self) -> int:
        """How many lines it has written so far."""
        with self._changed:
            return len(self._lines)

    def wait(self, timeout: float = 20) -> int:
        """Wait for its end; returns the exit code (negative: the signal). Raises AssertionError after `timeout`."""
        try:
            code = self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self!r} has not ended within {timeout} s\n{self._tail()}") from None
        for reader in self._readers:
            reader.join(1)  # a child that outlives it may hold the pipes open
        return code

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the process and what it started in its session; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, and its exit code. Raises AssertionError when it does not end in time (it is killed then)."""
        if self.running:
            self._popen.terminate()
        try:
            return self.wait(timeout)
        finally:
            self.kill()

    def _read(self, stream: IO[bytes] | None, name: str) -> None:
        if stream is None:
            return
        with stream:
            for raw in stream:
                with self._changed:
                    self._lines.append((name, raw.decode(errors="replace").rstrip("\r\n")))
                    self._changed.notify_all()
        with self._changed:
            self._open_outputs -= 1
            self._changed.notify_all()

    def _tail(self) -> str:
        return "\n".join(f"    {line}" for _, line in self._lines[-TAIL_LINES:])
