"""`tests/run` as people and machines call it, on test files made for the purpose."""

import contextlib
import os
import platform
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.lab import eventually

RUN = Path(__file__).parents[1] / "run"
MIXED = """
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.mark.skip
def test_skipped(): pass
"""
SLOW = """
import pathlib, subprocess
def test_slow():
    pathlib.Path({started!r}).touch()
    subprocess.run(["bash", "-c", "exec -a {marker} sleep 1000"])
"""
MEETING = """
import pathlib
from tests.lab import eventually
def test_meets_the_other():
    first, second = (pathlib.Path({directory!r}) / name for name in ("first", "second"))
    try:
        first.mkdir()
    except FileExistsError:
        second.mkdir()
    eventually(lambda: first.exists() and second.exists(), timeout=60)
"""
CRASH = "def test_crash():\n    import os\n    os.kill(os.getpid(), 9)\n"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RUN, *arguments], capture_output=True, text=True, timeout=100, check=False)


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.splitlines()[-1]


def file_of(directory: Path, text: str) -> Path:
    path = directory / "test_made_up.py"
    path.write_text(text)
    return path


def test_the_last_line_counts_and_a_failure_is_a_failure(tmp_path: Path) -> None:
    done = run("unit", "--", file_of(tmp_path, MIXED))
    assert last_line(done) == "1 passed, 1 failed, 1 skipped"
    assert done.returncode == 1


def test_all_passing_is_success_and_the_part_s_line_names_the_kernel(tmp_path: Path) -> None:
    done = run("unit", "--", file_of(tmp_path, MIXED), "-k", "passes")
    assert last_line(done) == "1 passed, 0 failed"
    assert done.returncode == 0
    assert platform.release() in next(line for line in done.stdout.splitlines() if line.startswith("unit "))


def test_a_run_without_any_test_fails(tmp_path: Path) -> None:
    done = run("unit", "--", file_of(tmp_path, MIXED), "-k", "no_test_has_such_a_name")
    assert last_line(done) == "0 passed, 0 failed"
    assert done.returncode == 1


def test_a_killed_pytest_is_a_failure_that_is_named(tmp_path: Path) -> None:
    done = run("unit", "--", file_of(tmp_path, CRASH))
    assert "BROKEN: ended with 137" in done.stdout
    assert last_line(done) == "0 passed, 1 failed"
    assert done.returncode == 1


def test_parts_in_the_guest_run_beside_the_others_and_are_counted(tmp_path: Path) -> None:
    done = run("unit", "virtual-time", "--", file_of(tmp_path, MIXED), "-k", "passes")
    assert last_line(done) == "2 passed, 0 failed"
    assert "virtual time" in next(line for line in done.stdout.splitlines() if line.startswith("virtual-time "))


def test_two_parts_on_the_host_run_at_the_same_time_where_there_are_two_processors(tmp_path: Path) -> None:
    done = run("unit", "bench-tests", "--", file_of(tmp_path, MEETING.format(directory=str(tmp_path))))
    assert last_line(done) == ("2 passed, 0 failed" if (os.cpu_count() or 1) > 1 else "1 passed, 1 failed")


def test_an_unknown_part_is_an_error_that_lists_the_known_ones() -> None:
    done = run("kernal")
    assert done.returncode == 2
    assert "virtual-time" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_stays_when_it_is_ended_while_two_parts_run(tmp_path: Path, number: int) -> None:
    started, marker = tmp_path / "started", f"slow-{os.getpid()}-{number}"
    slow = file_of(tmp_path, SLOW.format(started=str(started), marker=marker))
    before = directories()
    with subprocess.Popen(
        [RUN, "unit", "virtual-time", "--", slow], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        eventually(lambda: started.exists() and len(processes_with(b"rootfstype=hostfs", process.pid)) > 0, timeout=60)
        process.send_signal(number)
        process.wait(30)
        if number != signal.SIGKILL:
            assert process.returncode == 130
            assert directories() == before
    eventually(lambda: not processes_with(marker.encode()), what="the end of the tests")
    eventually(lambda: not processes_with(str(slow).encode()), what="the end of pytest, on the host and in the guest")


def processes_with(word: bytes, ancestor: int | None = None) -> list[int]:
    """Processes that have `word` in their arguments, and `ancestor` above them."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if (
                not entry.name.isdigit()
                or word not in (entry / "cmdline").read_bytes()
                or int(entry.name) == os.getpid()
            ):
                continue
            if ancestor is None or ancestor in ancestors(int(entry.name)):
                found.append(int(entry.name))
    return found


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def directories() -> set[str]:
    return {path.name for path in Path(tempfile.gettempdir()).glob("w*m*-*")}
