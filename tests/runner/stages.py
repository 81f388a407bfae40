"""Runs one stage, on the host or in the guest, and reads what came of it. Knows no other stage."""

import contextlib
import itertools
import os
import platform
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Final

from tests import compiled
from tests.lab.kernel import missing_features
from tests.runner import parts, report
from tests.runner.isolation import isolated
from tests.runner.parts import Place, Stage
from tests.runner.report import Outcome

__all__ = ["NOT_STARTED", "ROOT", "Lane", "Queue", "Running", "kernel_name", "title"]

ROOT: Final = Path(__file__).resolve().parents[2]
STAGE_SECONDS: Final = 1800  # wall time after which a stage is ended; single tests have pytest-timeout
INTERRUPTED_SECONDS: Final = 10  # for pytest to say where it was
NOT_STARTED: Final = Outcome(broken="it could not be started (the reason is above)")


class Running:
    """One run of pytest that has been started. `output`: None for our own; otherwise a file for both its outputs."""

    def __init__(self, stage: Stage, arguments: Sequence[str], results: Path, output: IO[bytes] | None = None) -> None:
        self._junit = results / f"{stage.part.name}-{stage.place.name.lower()}.xml"
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            _command(stage, arguments, results, self._junit),
            cwd=ROOT,
            env=_environment(stage),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )

    def finish(self) -> Outcome:
        """Wait for the end, or for the time limit. A keyboard interrupt lets pytest finish what it prints."""
        try:
            code = self._process.wait(STAGE_SECONDS + 30)
        except subprocess.TimeoutExpired:
            code = 124
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(INTERRUPTED_SECONDS)
            raise
        finally:
            self.kill()
        return report.read(self._junit, code, time.monotonic() - self._started)

    def kill(self) -> None:
        """End it at once, with everything in it; harmless when it has ended."""
        self._process.kill()
        self._process.wait()


class Queue:
    """Stages that wait for whoever is free next. Used from several threads."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self._waiting = deque(stages)

    def first(self) -> Stage | None:
        """Take the first; None when none is left."""
        with contextlib.suppress(IndexError):
            return self._waiting.popleft()
        return None

    def last(self) -> Stage | None:
        """Take the last; None when none is left."""
        with contextlib.suppress(IndexError):
            return self._waiting.pop()
        return None


class Lane(threading.Thread):
    """Stages one after another beside the others, their output kept until somebody asks for it.

    When its own are done, it helps with those that still wait. The thread lives as long as its processes: they have
    the parent-death signal, which goes with the thread.
    """

    def __init__(self, own: Sequence[Stage], waiting: Queue, arguments: Sequence[str], results: Path) -> None:
        super().__init__(daemon=True)
        self._own, self._waiting, self._arguments, self._results = own, waiting, arguments, results
        self._stopped = threading.Event()
        self._current: Running | None = None
        self._ended: SimpleQueue[tuple[Stage, Outcome] | None] = SimpleQueue()

    def run(self) -> None:
        try:
            for stage in itertools.chain(self._own, iter(self._waiting.last, None)):
                if self._stopped.is_set():
                    return
                outcome = NOT_STARTED
                try:
                    with self._output(stage).open("wb") as output:
                        self._current = Running(stage, self._arguments, self._results, output)
                        outcome = self._current.finish()
                finally:
                    self._ended.put((stage, outcome))
        finally:
            self._ended.put(None)

    def ended(self) -> Iterator[tuple[Stage, Outcome]]:
        """Each of its stages, as soon as it has ended, until there is nothing left for it to do."""
        yield from iter(self._ended.get, None)

    def show(self, stage: Stage) -> None:
        """Copy a stage's output to ours."""
        with self._output(stage).open("rb") as output:
            sys.stdout.flush()
            while chunk := output.read(65536):
                sys.stdout.buffer.write(chunk)
            sys.stdout.flush()

    def stop(self) -> None:
        """End it with what it runs."""
        self._stopped.set()
        if self._current is not None:
            self._current.kill()
        if self.is_alive():
            self.join(INTERRUPTED_SECONDS)

    def _output(self, stage: Stage) -> Path:
        return self._results / f"{stage.part.name}-{stage.place.name.lower()}.txt"


def _command(stage: Stage, arguments: Sequence[str], results: Path, junit: Path) -> list[str]:
    pytest = [sys.executable, "-m", "pytest", f"--junitxml={junit}", "-o", "junit_family=xunit2", *arguments]
    if stage.place is Place.VIRTUAL_TIME:
        pytest += ["-o", "timeout=0"]  # it would count the guest's seconds, of which there are millions
    if stage.part.compiled:
        pytest.append("--import-mode=append")
    pytest += parts.selected_paths(stage.part, arguments, ROOT)
    if stage.place is Place.HOST:
        temporary = results / "t"
        temporary.mkdir(exist_ok=True)
        return isolated(pytest, temporary)
    options = ["--virtual-time"] if stage.place is Place.VIRTUAL_TIME else []
    guest = [str(ROOT / "tests/uml/run"), "--share", str(results), "--timeout", str(STAGE_SECONDS)]
    return [*guest, *options, "--", *pytest]


def _environment(stage: Stage) -> dict[str, str]:
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"], "/usr/sbin", "/sbin"])
    env["WARDMESH_SELECT"] = stage.select
    if stage.part.compiled:
        env |= compiled.environment()
    if sys.stdout.isatty():
        env["FORCE_COLOR"] = "1"
    return env


def title(stage: Stage) -> str:
    """What is run where, and why there."""
    why = ""
    if stage.place is Place.GUEST:
        why = f"; the host's {platform.release()} lacks {' and '.join(missing_features())}"
    elif stage.select:
        why = " (userspace backend and other tests that need no WireGuard in the kernel)"
    return f"== {stage.part.name}: {kernel_name(stage.place)}{why}"


@cache
def kernel_name(place: Place) -> str:
    """The kernel that a stage at this place runs on."""
    if place is Place.HOST:
        return f"host kernel {platform.release()}"
    linux = subprocess.run([ROOT / "tests/uml/build"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    release = subprocess.run([linux, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    how = ", virtual time" if place is Place.VIRTUAL_TIME else ""
    return f"guest kernel {release} (User-Mode Linux{how})"
