"""Nothing of a part stays on the host, however it ends: each test starts one that makes a mess, and ends it badly."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import eventually
from tests.runner.isolation import isolated

ROOT = Path(__file__).resolve().parents[2]
STARTER = "import subprocess, sys; subprocess.run(sys.argv[1:])"
# A lab with a daemon that left its session, a link and a table of the part's own namespace, and a file on a tmpfs.
MESS = """
import os, subprocess, sys, time
from tests.lab import Lab
marker = sys.argv[1]
lab = Lab()
host = lab.host("a", lab.switch("net"))
subprocess.Popen(["setsid", "--fork", "bash", "-c", f"exec -a {marker}-daemon sleep 1000"])
host.machine.call(lambda: subprocess.Popen(["bash", "-c", f"exec -a {marker}-inside sleep 1000"]))
subprocess.run(["ip", "link", "add", "mess0", "type", "veth"], check=True)
subprocess.run(["nft", "add", "table", "inet", "mess"], check=True)
print("messy", flush=True)
time.sleep(1000)
"""


@dataclass(frozen=True)
class Traces:
    """What a part could leave behind on the machine."""

    namespaces: str
    links: str
    tables: str
    mounts: str


def traces() -> Traces:
    def show(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    return Traces(
        show("ip", "netns", "list"),
        show("ip", "-o", "link", "show"),
        show("nft", "list", "tables"),
        Path("/proc/self/mounts").read_text(),
    )


def processes_named(marker: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit() and f"{marker}-".encode() in (entry / "cmdline").read_bytes().split(b"\0")[0]:
                found.append(int(entry.name))
    return found


def processes_below(pid: int) -> list[int]:
    """All descendants of `pid`, nearest first."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    return found[1:]


@pytest.fixture
def mess(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, Traces]]:
    """A running, messy part; the marker that its processes carry; what the machine looked like before."""
    before = traces()
    marker = f"mess{os.getpid()}n{time.monotonic_ns()}"
    script = tmp_path / "mess.py"
    script.write_text(MESS)
    temporary = tmp_path / "t"
    temporary.mkdir()
    command = [sys.executable, "-c", STARTER, *isolated([sys.executable, str(script), marker], temporary)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "messy\n"
            eventually(lambda: len(processes_named(marker)) == 2)
            yield process, marker, before
        finally:
            process.kill()


def chain(starter: int) -> list[int]:
    """Who started the part; unshare; process 1 inside; the tests."""
    return [starter, *processes_below(starter)[:3]]


@pytest.mark.parametrize("victim", range(4), ids=["starter", "unshare", "process 1", "tests"])
def test_nothing_stays_when_a_process_of_the_chain_is_killed(
    mess: tuple[subprocess.Popen[str], str, Traces], victim: int
) -> None:
    process, marker, before = mess
    os.kill(chain(process.pid)[victim], signal.SIGKILL)
    process.wait(10)
    eventually(lambda: not processes_named(marker), what="the end of every process of the part")
    assert traces() == before


def test_nothing_stays_after_control_c(mess: tuple[subprocess.Popen[str], str, Traces]) -> None:
    process, marker, before = mess
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to every process of the foreground
    process.wait(10)
    eventually(lambda: not processes_named(marker), what="the end of every process of the part")
    assert traces() == before


def test_a_part_sees_a_machine_of_its_own(tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    script = 'ip -o link | wc -l; ls /run/netns | wc -l; ls /proc | grep -c "^[0-9]"; echo $TMPDIR'
    done = subprocess.run(isolated(["sh", "-c", script], temporary), check=True, capture_output=True, text=True)
    links, namespaces, processes, directory = done.stdout.split()
    assert (links, namespaces, directory) == ("1", "0", str(temporary))
    assert int(processes) < 6


def test_the_exit_code_comes_back(tmp_path: Path) -> None:
    assert subprocess.run(isolated(["sh", "-c", "exit 7"], tmp_path), check=False).returncode == 7
    assert subprocess.run(isolated(["sh", "-c", "kill -9 $$"], tmp_path), check=False).returncode == 128 + 9
