"""Counting: what a run came to, from pytest's exit code and result file."""

from pathlib import Path

from tests.runner.report import Outcome, add, overall_line, part_line, read

SUITE = (
    '<testsuites><testsuite tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}"/></testsuites>'
)


def junit(path: Path, tests: int, failures: int = 0, errors: int = 0, skipped: int = 0) -> Path:
    path.write_text(SUITE.format(tests=tests, failures=failures, errors=errors, skipped=skipped))
    return path


def test_counts_errors_as_failures(tmp_path: Path) -> None:
    outcome = read(junit(tmp_path / "x", 10, failures=1, errors=2, skipped=3), 1, 5.0)
    assert (outcome.passed, outcome.failed, outcome.skipped, outcome.broken) == (4, 3, 3, "")


def test_no_tests_collected_is_nothing_run_but_not_broken(tmp_path: Path) -> None:
    outcome = read(junit(tmp_path / "x", 0), 5, 0.1)
    assert outcome.ran == 0
    assert not outcome.broken


def test_a_run_without_a_result_file_is_broken(tmp_path: Path) -> None:
    assert "ended with 137" in read(tmp_path / "missing", 137, 1.0).broken


def test_a_truncated_result_file_is_broken(tmp_path: Path) -> None:
    path = junit(tmp_path / "x", 10)
    path.write_text(path.read_text()[:30])
    assert read(path, 0, 1.0).broken


def test_an_interrupted_run_is_broken_though_it_wrote_results(tmp_path: Path) -> None:
    assert "ended with 2" in read(junit(tmp_path / "x", 4), 2, 1.0).broken


def test_the_overall_line_adds_parts_and_counts_a_broken_one_as_a_failure() -> None:
    parts = [Outcome(passed=5, skipped=1), Outcome(passed=2, failed=1), Outcome(broken="no result")]
    assert overall_line(parts) == "7 passed, 2 failed, 1 skipped"


def test_the_overall_line_is_alone_on_its_line_and_plain() -> None:
    assert overall_line([Outcome(passed=3)]) == "3 passed, 0 failed"


def test_a_part_line_names_the_kernel_and_what_broke() -> None:
    line = part_line("kernel", Outcome(passed=3, broken="ended with 137"), "guest kernel 6.1.1")
    assert "guest kernel 6.1.1" in line
    assert "ended with 137" in line


def test_adding_keeps_every_reason() -> None:
    assert add([Outcome(broken="one"), Outcome(broken="two")]).broken == "one; two"
