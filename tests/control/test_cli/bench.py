"""What the tests of `wardmesh` run: the real controller as a process, and the real command as another."""

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BIN = Path(sys.executable).parent
START = 60.0  # seconds; a machine that runs other tests beside this one is slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Controller:
    """A running controller, as an admin knows it."""

    url: str
    token: str
    state_dir: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@contextmanager
def running_controller(directory: Path) -> Iterator[Controller]:
    """`wardmesh-controller serve`, from its `ready` line until its graceful end."""
    url = f"https://127.0.0.1:{free_port()}"
    command: list[str | Path] = [BIN / "wardmesh-controller", "serve", "--state-dir", directory / "state"]
    command += ["--listen", url.removeprefix("https://"), "--url", url]
    with (directory / "controller.log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, bufsize=0)
    try:
        seen = read_until(process, re.compile(r"^ready https://", re.MULTILINE), directory / "controller.log")
        token = re.search(r"wma_\S+", seen)
        assert token, f"the first start printed no admin token:\n{seen}"
        yield Controller(url=url, token=token[0], state_dir=directory / "state", process=process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def read_until(process: subprocess.Popen[bytes], pattern: re.Pattern[str], log: Path) -> str:
    assert process.stdout is not None
    seen, deadline = "", time.monotonic() + START
    while not pattern.search(seen):
        ready, _, _ = select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
        if not chunk:
            raise AssertionError(f"the controller did not start:\n{seen}\n{log.read_text()}")
        seen += chunk.decode()
    return seen


@dataclass(frozen=True)
class Result:
    """What a command left: exit code and both streams."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.out)

    def problem(self) -> dict[str, Any]:
        assert self.code != 0, self
        problem: dict[str, Any] = json.loads(self.err)
        return problem


@dataclass(frozen=True)
class Cli:
    """`wardmesh` with a home of its own. Standard input is not a terminal, unless `on_terminal` is used."""

    home: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("WARDMESH_")}
        return inherited | {"HOME": str(self.home), "XDG_CONFIG_HOME": str(self.home / "config"), **self.env}

    @property
    def saved(self) -> Path:
        return self.home / "config" / "wardmesh" / "session.json"

    def __call__(self, *arguments: str | Path, stdin: str = "") -> Result:
        done = subprocess.run(
            [BIN / "wardmesh", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd=self.home,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        """The command as a process that goes on; whoever starts it ends it."""
        return subprocess.Popen(
            [BIN / "wardmesh", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment(),
            cwd=self.home,
            bufsize=0,
        )

    def on_terminal(self, *arguments: str | Path, answer: str | None, prompt: str) -> Result:
        """Run on a pseudo-terminal: wait for `prompt`, type `answer` (None: press Ctrl-C)."""
        master, slave = pty.openpty()
        process = subprocess.Popen(
            # The terminal becomes the controlling one, so that Ctrl-C turns into SIGINT as it does for people.
            ["setsid", "--ctty", "--wait", BIN / "wardmesh", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=self.environment() | {"COLUMNS": "200", "TERM": "xterm"},
            cwd=self.home,
        )
        os.close(slave)
        shown, deadline, typed = "", time.monotonic() + 60, False
        try:
            while time.monotonic() < deadline:
                if not typed and prompt in shown:
                    os.write(master, b"\x03" if answer is None else answer.encode() + b"\n")
                    typed = True
                if select.select([master], [], [], 0.1)[0]:
                    try:
                        chunk = os.read(master, 65536)
                    except OSError:  # EIO: the other end is closed
                        break
                    shown += chunk.decode(errors="replace")
            code = process.wait(max(0.1, deadline - time.monotonic()))
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
            os.close(master)
        assert "Traceback" not in shown, shown
        return Result(code, shown, "")
