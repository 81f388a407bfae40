"""Where each part runs."""

from pathlib import Path

from tests.runner import parts
from tests.runner.parts import PARTS, Place, selected_paths, stages

ROOT = Path(__file__).resolve().parents[2]
PART = {part.name: part for part in PARTS}
AGAIN = PART["gateway-interpreted"]  # modules of another part, in another way


def places(name: str, *, suits: bool, host_tests: bool = True) -> list[tuple[Place, str]]:
    return [(s.place, s.select) for s in stages(PART[name], host_suits=suits, has_host_tests=host_tests)]


def test_kernel_tests_run_here_when_this_kernel_can() -> None:
    assert places("kernel", suits=True) == [(Place.HOST, "")]


def test_otherwise_they_run_in_the_guest_and_only_the_marked_ones_here() -> None:
    assert places("kernel", suits=False) == [(Place.GUEST, "not host_kernel"), (Place.HOST, "host_kernel")]
    assert places("kernel", suits=False, host_tests=False) == [(Place.GUEST, "not host_kernel")]


def test_virtual_time_is_always_in_the_guest() -> None:
    assert places("virtual-time", suits=True) == [(Place.VIRTUAL_TIME, "")]


def test_parts_without_kernel_needs_run_here() -> None:
    assert places("unit", suits=False) == [(Place.HOST, "")]


def test_every_folder_with_tests_belongs_to_exactly_one_part() -> None:
    folders = [folder for part in PARTS if part is not AGAIN for folder in part.folders]
    assert len(folders) == len(set(folders))
    for path in (ROOT / "tests").rglob("test_*.py"):
        assert sum(path.is_relative_to(ROOT / folder) for folder in folders) == 1, path


def test_what_runs_on_the_compiled_gateway_runs_in_part_on_its_sources_too() -> None:
    assert [part.name for part in PARTS if part.compiled] == ["gateway"]
    assert [str(path.relative_to(ROOT)) for path in parts.test_files(AGAIN, ROOT)] == sorted(AGAIN.folders)


def test_arguments_that_name_tests_replace_the_folders() -> None:
    assert selected_paths(PART["unit"], ["-k", "x"], ROOT) == ["tests/unit"]
    assert selected_paths(PART["unit"], ["tests/runner/test_parts.py::test_x"], ROOT) == []
