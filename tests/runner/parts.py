"""The parts of the test suite and where each runs. A table and pure functions; starts nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

__all__ = ["PARTS", "Part", "Place", "Stage", "selected_paths", "stages", "test_files"]


class Place(Enum):
    """Where the tests of a stage run."""

    HOST = "host"
    GUEST = "guest"
    VIRTUAL_TIME = "guest in virtual time"


@dataclass(frozen=True, slots=True)
class Part:
    """Folders or modules under tests/ that are run by one name.

    `setup`: what tests/setup must provide. `needs_kernel`: runs where the kernel has WireGuard and netem. `compiled`:
    on the gateway as its wheel has it (tests/compiled), instead of its sources.
    """

    name: str
    folders: tuple[str, ...]
    setup: tuple[str, ...] = ("base",)
    needs_kernel: bool = False
    virtual_time: bool = False
    compiled: bool = False


@dataclass(frozen=True, slots=True)
class Stage:
    """One run of pytest. `select`: which tests of the part, by the host_kernel marker; empty for all."""

    part: Part
    place: Place
    select: str = ""


_INTERPRETED = ("audit", "build", "heads", "http_strict", "jsonrpc", "limits", "sessions", "shortcut", "sse", "streams")

PARTS: tuple[Part, ...] = (
    Part("unit", ("tests/unit",)),
    Part("control", ("tests/control",), setup=("base", "control")),
    Part(
        "bench-tests",
        ("tests/runner", "tests/bench", "tests/uml", "tests/compiled"),
        setup=("base", "kernel", "guest", "compiled"),
    ),
    Part("lab", ("tests/lab",), setup=("base", "kernel"), needs_kernel=True),
    Part("kernel", ("tests/kernel",), setup=("base", "kernel"), needs_kernel=True),
    Part("gateway", ("tests/gateway",), setup=("base", "kernel", "compiled"), compiled=True),
    # What the interpreter could do otherwise with the same sources; all of it runs in the parts that have whole hosts.
    Part("gateway-interpreted", tuple(f"tests/gateway/test_{name}.py" for name in _INTERPRETED)),
    Part("conformance", ("tests/conformance",), setup=("base", "conformance")),
    Part("virtual-time", ("tests/virtual_time",), setup=("base", "kernel", "guest"), virtual_time=True),
)


def stages(part: Part, *, host_suits: bool, has_host_tests: bool) -> list[Stage]:
    """Where the tests of `part` run on a host whose kernel has, or lacks, what the kernel tests need.

    `has_host_tests`: the part has tests with the host_kernel marker.
    """
    if part.virtual_time:
        return [Stage(part, Place.VIRTUAL_TIME)]
    if not part.needs_kernel or host_suits:
        return [Stage(part, Place.HOST)]
    guest = Stage(part, Place.GUEST, "not host_kernel")
    return [guest, Stage(part, Place.HOST, "host_kernel")] if has_host_tests else [guest]


def test_files(part: Part, root: Path) -> list[Path]:
    """The part's test modules; a part without any is not there yet."""
    found = [root / name for name in part.folders]
    return sorted(path for one in found for path in ([one] if one.is_file() else one.rglob("test_*.py")))


def selected_paths(part: Part, arguments: Sequence[str], root: Path) -> list[str]:
    """The folders and modules to give to pytest: none when the arguments already name a file or folder."""
    named = any((root / argument.partition("::")[0]).exists() for argument in arguments if not argument.startswith("-"))
    return [] if named else [folder for folder in part.folders if (root / folder).exists()]
