"""Boots the User-Mode Linux guest for one command: output streams live, the exit code comes back, nothing stays.

    tests/uml/run [--virtual-time] [--mem 2G] [--timeout 1800] [--share DIR]… [-i] [--] COMMAND…

The guest's kernel is an ordinary program with several helper processes. They live in a process namespace of their
own, which ends with this process however it ends. Needs no root. Standard library only; knows nothing of pytest.
"""

import argparse
import json
import os
import pty
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
import tty
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

HERE: Final = Path(__file__).resolve().parent
REPOSITORY: Final = HERE.parent.parent
# Exit codes that are the guest's fault, not the command's; as timeout(1) and the shell use them.
TIMED_OUT: Final = 124
GUEST_FAILED: Final = 125
KERNEL_COMPLAINTS: Final = ("BUG:", "WARNING:", "Oops", "Call Trace", "general protection fault", "refcount_t:")
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class GuestError(Exception):
    """The guest could not run the command; the message says why."""

    code = GUEST_FAILED


class GuestTimeoutError(GuestError):
    """The command took longer than it may."""

    code = TIMED_OUT


@dataclass(frozen=True)
class Job:
    """One command for one guest. Directories in `shares` are writable at the same path inside."""

    argv: Sequence[str]
    cwd: Path
    env: dict[str, str]
    shares: Sequence[Path] = ()
    memory: str = "2G"
    virtual_time: bool = False
    interactive: bool = False
    timeout: float = 1800


@dataclass
class Screen:
    """Splits the console into what the kernel prints (kept, for diagnosis) and what the command prints (shown).

    `begin` and `end` frame the command's output; nobody else knows them.
    """

    output: int
    begin: bytes
    end: bytes
    showing: bool = False
    ended: bool = False
    pending: bytes = b""
    tail: deque[bytes] = field(default_factory=lambda: deque(maxlen=40))

    def feed(self, chunk: bytes) -> None:
        self._remember(chunk)
        self.pending += chunk
        if not self.showing and not self.ended:
            before, found, after = self.pending.partition(self.begin)
            if not found:
                self.pending = self.pending[-len(self.begin) :]
                return
            self.showing, self.pending = True, after
        if self.showing:
            before, found, after = self.pending.partition(self.end)
            if found:
                self.showing, self.ended = False, True
                self._show(before)
                self.pending = b""
                return
            # The frame's end may be cut in two by the read: hold back what could be its beginning.
            keep = next((n for n in range(len(self.end) - 1, 0, -1) if self.pending.endswith(self.end[:n])), 0)
            cut = len(self.pending) - keep
            self._show(self.pending[:cut])
            self.pending = self.pending[cut:]

    def _show(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.output, data) :]

    def _remember(self, chunk: bytes) -> None:
        first, *rest = chunk.split(b"\n")
        if self.tail:
            self.tail[-1] += first
        else:
            self.tail.append(first)
        self.tail.extend(rest)

    def last_lines(self) -> str:
        lines = [line.decode(errors="replace").rstrip() for line in self.tail]
        return "\n".join(f"    {line}" for line in lines if line)


def kernel_path() -> Path:
    """The guest's kernel, built now if it is not in the cache (progress goes to stderr)."""
    built = subprocess.run([HERE / "build"], stdout=subprocess.PIPE, text=True, check=False)
    if built.returncode != 0:
        raise GuestError("the guest's kernel could not be built (the reason is above)")
    return Path(built.stdout.strip())


def boot(job: Job) -> int:
    """Run `job` in a new guest. Returns the command's exit code. Raises GuestError when the guest failed instead."""
    kernel = kernel_path()
    directory = Path(tempfile.mkdtemp(prefix="wardmesh-uml-"))
    try:
        code = _run(job, kernel, directory)
        _report_kernel_complaints(directory / "kernel.log")
        return code
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(job: Job, kernel: Path, directory: Path) -> int:
    terminal = os.get_terminal_size(0) if job.interactive else None
    begin, end = (f"\x1e{word} {secrets.token_hex(8)}\x1e" for word in ("begin", "end"))
    description = {
        "begin": begin,
        "end": end,
        "argv": list(job.argv),
        "cwd": str(job.cwd),
        "env": job.env,
        "shares": [str(path) for path in job.shares],
        "seed": secrets.token_hex(64),
        "terminal": (terminal.lines, terminal.columns) if terminal else None,
    }
    (directory / "job.json").write_text(json.dumps(description))
    # No spaces on the kernel's command line, wherever the repository and its Python are.
    (directory / "python").symlink_to(Path(sys.executable).resolve())
    shutil.copyfile(HERE / "init.py", directory / "init.py")
    (directory / "memory").mkdir()

    command = _command(job, kernel, directory)
    screen = Screen(sys.stdout.fileno(), begin.encode(), end.encode())
    deadline = time.monotonic() + job.timeout
    sys.stdout.flush()
    with (
        _console(job.interactive) as console,
        subprocess.Popen(
            command,
            stdin=console.guest_input,
            stdout=console.guest_output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={"PATH": SYSTEM_PATH, "HOME": str(directory)},
        ) as guest,
    ):
        try:
            console.guest_has_them()
            timed_out = not _relay(console, screen, deadline)
        finally:
            guest.kill()  # unshare dies, and by --kill-child its process namespace with everything in it
    if timed_out:
        raise GuestTimeoutError(
            f"the guest did not finish within {job.timeout:.0f} s; its last lines:\n{screen.last_lines()}"
        )
    try:
        return int((directory / "exit").read_text())
    except (OSError, ValueError) as error:
        raise GuestError(f"the guest ended without a result; its last lines:\n{screen.last_lines()}") from error


def _command(job: Job, kernel: Path, directory: Path) -> list[str]:
    memory = directory / "memory"
    # The guest's memory is a sparse file. /dev/shm is 64 MB in containers, so it gets a tmpfs of its own, in a mount
    # namespace of its own. sh stays process 1: the kernel's default reactions to signals need a process that is not.
    script = f'mount -t tmpfs -o size=64g,mode=0700 tmpfs {memory} && TMPDIR={memory} "$0" "$@"; exit $?'
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        "unshare",
        *(() if os.geteuid() == 0 else ("--user", "--map-root-user")),
        *("--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc"),
        *("sh", "-c", script),
        str(kernel),
        *(f"mem={job.memory}", "root=none", "rootfstype=hostfs", "rootflags=/", "ro"),
        *("con=null", "con0=fd:0,fd:1", "loglevel=1", f"uml_dir={directory}/"),
        *(("time-travel=inf-cpu",) if job.virtual_time else ()),
        *(f"init={directory}/python", f"WARDMESH_JOB={directory}"),
        *("--", "-I", "-S", f"{directory}/init.py"),
    ]


@dataclass
class Console:
    """The host's ends of the guest's console. `keyboard` is None when nobody types."""

    guest_input: int
    guest_output: int
    reader: int
    writer: int
    keyboard: int | None

    def guest_has_them(self) -> None:
        for descriptor in {self.guest_input, self.guest_output}:
            os.close(descriptor)


@contextmanager
def _console(interactive: bool) -> Iterator[Console]:
    if not interactive:
        # The guest hangs up its console at end of file, so its input is a pipe that stays open and silent.
        guest_input, writer = os.pipe()
        reader, guest_output = os.pipe()
        try:
            yield Console(guest_input, guest_output, reader, writer, None)
        finally:
            os.close(writer)
            os.close(reader)
        return
    master, slave = pty.openpty()
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0)
        yield Console(slave, slave, master, master, 0)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
        os.close(master)


def _relay(console: Console, screen: Screen, deadline: float) -> bool:
    """Copy the console both ways until the guest closes it. False when the deadline passed first."""
    watched = [console.reader] if console.keyboard is None else [console.reader, console.keyboard]
    while (remaining := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select(watched, [], [], min(remaining, 1))
        if console.keyboard in ready:
            os.write(console.writer, os.read(0, 1024))
        if console.reader in ready:
            try:
                chunk = os.read(console.reader, 65536)
            except OSError:  # a pty answers EIO once the guest has closed its end
                chunk = b""
            if not chunk:
                return True
            screen.feed(chunk)
    return False


def _report_kernel_complaints(log: Path) -> None:
    text = log.read_text(errors="replace") if log.exists() else ""
    if any(word in text for word in KERNEL_COMPLAINTS):
        print(f"uml: the guest's kernel complained:\n{text}", file=sys.stderr)


def guest_environment(virtual_time: bool) -> dict[str, str]:
    """The caller's environment, with the repository's commands first and what names the host's session left out."""
    private = ("TMPDIR", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK", "PYTHONHOME", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in private}
    env["PATH"] = f"{REPOSITORY}/.venv/bin:{SYSTEM_PATH}"
    env["VIRTUAL_ENV"] = f"{REPOSITORY}/.venv"
    env["WARDMESH_GUEST"] = "virtual-time" if virtual_time else "uml"
    return env


def parse(arguments: Sequence[str] | None) -> Job:
    parser = argparse.ArgumentParser(
        prog="tests/uml/run", description="Run a command in a User-Mode Linux guest with WireGuard and nftables."
    )
    parser.add_argument("--virtual-time", action="store_true", help="the guest's clock jumps whenever it is idle")
    parser.add_argument("--mem", default="2G", help="the guest's memory (2G)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds until the guest is killed (1800)")
    parser.add_argument("--share", type=Path, action="append", default=[], help="host directory to make writable")
    parser.add_argument("-i", "--interactive", action="store_true", help="give the command this terminal")
    parser.add_argument("command", nargs="+", help="what to run, e.g. bash or: pytest tests/kernel")
    options = parser.parse_args(arguments)
    return Job(
        argv=options.command,
        cwd=Path.cwd(),
        env=guest_environment(options.virtual_time),
        shares=[path.resolve(strict=True) for path in options.share],
        memory=options.mem,
        virtual_time=options.virtual_time,
        interactive=options.interactive,
        timeout=options.timeout,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    try:
        return boot(parse(arguments))
    except GuestError as error:
        print(f"tests/uml/run: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 130


def _stop(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
