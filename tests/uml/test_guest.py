"""The guest as `tests/uml/run` gives it: a machine with WireGuard that leaves nothing behind."""

import contextlib
import os
import pty
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.lab import eventually

RUN = Path(__file__).with_name("run")
ROOT = Path(__file__).resolve().parents[2]


def guest(*arguments: str, timeout: float = 60, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RUN, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=cwd,
    )


def shell(script: str, *options: str) -> str:
    done = guest(*options, "--", "sh", "-ec", script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_exit_code_and_both_outputs_come_back_and_nothing_else() -> None:
    done = guest("--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout == "out\nerr\n"
    assert done.stderr == ""


def test_a_command_that_a_signal_ended_has_the_shell_s_code() -> None:
    assert guest("--", "sh", "-c", "kill -9 $$").returncode == 128 + 9


def test_a_command_that_does_not_exist_is_named() -> None:
    done = guest("--", "no-such-command")
    assert done.returncode == 127
    assert "no-such-command" in done.stdout


def test_large_output_arrives_whole() -> None:
    done = guest("--", "sh", "-c", "seq 1 200000")
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))


def test_output_arrives_while_the_command_runs() -> None:
    with subprocess.Popen(
        [RUN, "--", "sh", "-c", "echo early; exec sleep 100"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "early\n"
        process.terminate()


def test_the_guest_has_what_kernel_tests_need() -> None:
    assert shell("from='from tests.lab.kernel import missing_features as m'; python -c \"$from; print(m())\"") == "()\n"


def test_loopback_host_name_and_devices_are_there() -> None:
    text = shell("cat /sys/class/net/lo/flags; uname -n; ls /dev/net/tun /dev/ptmx /dev/shm -d; readlink /dev/fd")
    assert text.splitlines() == ["0x9", "wardmesh-guest", "/dev/net/tun", "/dev/ptmx", "/dev/shm", "/proc/self/fd"]


def test_the_clock_is_the_host_s() -> None:
    assert abs(float(shell("date +%s")) - time.time()) < 60


def test_the_environment_is_the_repository_s() -> None:
    assert shell("command -v python").strip() == f"{ROOT}/.venv/bin/python"
    assert shell("pwd").strip() == str(Path.cwd())


def test_what_the_guest_writes_stays_in_the_guest(tmp_path: Path) -> None:
    victim = tmp_path / "file"
    victim.write_text("before")
    assert shell(f"echo after >{victim}; touch {tmp_path}/new; cat {victim}") == "after\n"
    assert victim.read_text() == "before"
    assert not (tmp_path / "new").exists()


def test_a_shared_directory_takes_results_out(tmp_path: Path) -> None:
    shared = tmp_path / "with space"
    shared.mkdir()
    (shared / "in").write_text("question")
    shell(f"cat '{shared}/in' >'{shared}/out'", "--share", str(shared))
    assert (shared / "out").read_text() == "question"


def test_it_runs_from_a_repository_anywhere(tmp_path: Path) -> None:
    clone = tmp_path / "a clone"
    (clone / "tests").mkdir(parents=True)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    (clone / "tests/uml").symlink_to(ROOT / "tests/uml")
    done = subprocess.run(
        [clone / "tests/uml/run", "--", "pwd"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=clone,
        check=True,
    )
    assert done.stdout == f"{clone}\n"


def test_a_guest_that_takes_too_long_is_ended_and_shows_its_last_lines() -> None:
    done = guest("--timeout", "3", "--", "sh", "-c", "echo so far; sleep 100")
    assert done.returncode == 124
    assert "did not finish within 3 s" in done.stderr
    assert "so far" in done.stderr


def test_a_panic_is_reported_as_one() -> None:
    done = guest("--", "sh", "-c", "echo before; echo c >/proc/sysrq-trigger; sleep 10")
    assert done.returncode == 125
    assert "ended without a result" in done.stderr
    assert "Kernel panic" in done.stderr


def test_no_process_and_no_file_stays(tmp_path: Path) -> None:
    shell("true")
    before = leftovers()
    assert guest("--", "true").returncode == 0
    assert leftovers() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_stays_when_the_run_is_killed(number: int) -> None:
    before = guest_processes()
    with subprocess.Popen(
        [RUN, "--", "sh", "-c", "echo up; exec sleep 1000"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        assert guest_processes() - before
        process.send_signal(number)
        process.wait(10)
    eventually(lambda: guest_processes() <= before, what="the end of the guest's processes")


def test_on_a_terminal_it_is_interactive_and_gives_the_terminal_back() -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (33, 101))
    before = termios.tcgetattr(slave)
    with subprocess.Popen(
        [RUN, "-i", "--", "sh"], stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        try:
            read_until(master, b"# ")
            os.write(master, b"stty size; tty; exit 5\n")
            assert b"33 101" in read_until(master, b"/dev/tty0")
            assert process.wait(20) == 5
        finally:
            process.kill()
    assert termios.tcgetattr(slave) == before
    os.close(slave)
    os.close(master)


def test_an_hour_passes_in_virtual_time() -> None:
    started = time.monotonic()
    text = shell("date +%s; sleep 3600; date +%s", "--virtual-time")
    first, last = map(int, text.split())
    assert 3600 <= last - first < 3700
    assert time.monotonic() - started < 30


def read_until(descriptor: int, end: bytes) -> bytes:
    seen = b""
    while end not in seen:
        seen += os.read(descriptor, 4096)
    return seen


def guest_processes() -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and b"rootfstype=hostfs" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
    return found


def leftovers() -> tuple[set[int], set[str]]:
    return guest_processes(), {path.name for path in Path(os.environ.get("TMPDIR", "/tmp")).glob("wardmesh-uml-*")}
