"""Processes with captured output, and bounded waiting."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Process, ProcessEnded, eventually


@pytest.fixture
def shell() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for process in started:
        process.kill()


def start(shell: list[Process], script: str, stdin: str | None = None) -> Process:
    shell.append(Process(["sh", "-c", script], stdin=stdin))
    return shell[-1]


def test_waits_for_a_line_of_either_output(shell: list[Process]) -> None:
    process = start(shell, "echo one; echo ready port=7 >&2; exec sleep 100")
    assert process.wait_for_line(r"port=(\d+)").group(1) == "7"
    assert process.wait_for_line("one")
    assert process.stdout == "one"
    assert process.stderr == "ready port=7"


def test_can_disregard_lines_already_written(shell: list[Process]) -> None:
    process = start(shell, "trap 'echo tick' USR1; echo tick; while :; do sleep 0.05; done")
    process.wait_for_line("tick")
    seen = len(process)
    with pytest.raises(AssertionError, match="no line matched"):
        process.wait_for_line("tick", timeout=0.1, after=seen)
    process.signal(signal.SIGUSR1)
    process.wait_for_line("tick", after=seen)


def test_says_so_when_the_process_ends_first(shell: list[Process]) -> None:
    process = start(shell, "echo because; exit 4")
    with pytest.raises(ProcessEnded, match=r"ended with 4(.|\n)*because"):
        process.wait_for_line("ready")


def test_gives_up_after_the_time_it_was_given(shell: list[Process]) -> None:
    process = start(shell, "exec sleep 100")
    with pytest.raises(AssertionError, match=r"no line matched 'ready' in 0\.1 s"):
        process.wait_for_line("ready", timeout=0.1)


def test_gives_input(shell: list[Process]) -> None:
    process = start(shell, "cat", stdin="secret\n")
    assert process.wait() == 0
    assert process.stdout == "secret"


def test_stop_is_a_termination_that_the_process_can_answer(shell: list[Process]) -> None:
    process = start(shell, "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.05; done")
    process.wait_for_line("up")
    assert process.stop() == 9
    assert "bye" in process.output


def test_kill_ends_its_children_too(shell: list[Process]) -> None:
    process = start(shell, "sleep 1000 & echo child=$!; wait")
    child = int(process.wait_for_line(r"child=(\d+)").group(1))
    process.kill()
    eventually(lambda: not _alive(child))


def test_a_talkative_process_is_never_blocked(shell: list[Process]) -> None:
    shell.append(Process([sys.executable, "-c", "print('x' * 5_000_000); print('done')"]))
    assert shell[-1].wait_for_line("^done$")


def test_eventually_returns_what_it_waited_for() -> None:
    answers = iter([0, "", 7])
    assert eventually(lambda: next(answers)) == 7


def test_eventually_takes_a_failed_assertion_as_not_yet() -> None:
    answers = iter([1, 2, 3])

    def three() -> bool:
        assert next(answers) == 3
        return True

    assert eventually(three)


def test_eventually_tells_the_last_answer() -> None:
    with pytest.raises(AssertionError, match=r"not within 0\.05 s: the moon; last answer: 0"):
        eventually(lambda: 0, timeout=0.05, what="the moon")


def test_eventually_does_not_hide_other_errors() -> None:
    with pytest.raises(KeyError):
        eventually(lambda: dict[str, str]()["missing"])


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
