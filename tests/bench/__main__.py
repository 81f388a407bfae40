"""`tests/bench/run NAME [--json]`: runs one bench where its kernel is, and prints what it found.

A bench is a module tests/bench/NAME.py with `measure(bench: Bench) -> None`, a docstring that says what it measures,
and `NEEDS_KERNEL = True` when it needs WireGuard in the kernel. Its `prepare()`, if it has one, runs first, where there
is a network; with `add_arguments(parser)` it has options of its own, and gets them: `measure(bench, options)`. Exit
code 0 whatever the figures; not 0 only when nothing could be measured.
"""

import argparse
import importlib
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from tests.bench.figures import Bench
from tests.lab.kernel import missing_features
from tests.runner.isolation import isolated

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
LIBRARY = {"__init__", "__main__", "figures", "policies"}
GUEST_SECONDS = 3600


def main() -> int:
    options, rest = parse()
    module = load(options.name)
    own = own_options(module, options.name, rest)
    if options.measure_here is not None:
        measure(module, options, own)
        return 0
    with tempfile.TemporaryDirectory(prefix="wm-") as directory:
        results = Path(directory)
        results.chmod(0o711)  # PostgreSQL, which is another user, passes through to its temporary files
        code = run(module, options.name, rest, results)
        found = results / "bench.json"
        if code != 0 or not found.exists():
            print(f"tests/bench/run: {options.name} could not be measured (exit code {code})", file=sys.stderr)
            return code or 1
        bench = Bench.from_json(found.read_text())
    bench.print_summary()
    if options.json:
        print(bench.to_json(), flush=True)
    return 0


def parse() -> tuple[argparse.Namespace, list[str]]:
    """The options of every bench, and what is left for this one."""
    names = sorted(path.stem.replace("_", "-") for path in HERE.glob("*.py") if is_bench(path))
    parser = argparse.ArgumentParser(
        prog="tests/bench/run",
        description="Run one bench.",
        epilog="`tests/bench/run NAME -- --help` shows what a bench takes besides.",
    )
    parser.add_argument("name", choices=names, help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--measure-here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--guest", action="store_true", help=argparse.SUPPRESS)
    options, rest = parser.parse_known_args()
    return options, [argument for argument in rest if argument != "--"]


def own_options(module: ModuleType, name: str, arguments: list[str]) -> argparse.Namespace | None:
    """What the bench's own `add_arguments` makes of them; None for a bench that takes none."""
    parser = argparse.ArgumentParser(prog=f"tests/bench/run {name}", description=module.__doc__)
    if not hasattr(module, "add_arguments"):
        parser.parse_args(arguments)
        return None
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def is_bench(path: Path) -> bool:
    return path.stem not in LIBRARY and not path.stem.startswith("test_")


def load(name: str) -> ModuleType:
    return importlib.import_module(f"tests.bench.{name.replace('-', '_')}")


def run(module: ModuleType, name: str, rest: list[str], results: Path) -> int:
    """Run the bench in a place of its own, with this kernel or the guest's; returns the exit code."""
    if hasattr(module, "prepare"):
        module.prepare()
    guest = getattr(module, "NEEDS_KERNEL", False) and bool(missing_features())
    command = [sys.executable, "-m", "tests.bench", name, *rest, "--measure-here", str(results / "bench.json")]
    if guest:
        print(f"this machine's kernel lacks {' and '.join(missing_features())}: measuring in the guest", flush=True)
        launcher = [str(ROOT / "tests/uml/run"), "--share", str(results), "--timeout", str(GUEST_SECONDS)]
        command = [*launcher, "--", *command, "--guest"]
    else:
        temporary = results / "t"
        temporary.mkdir()
        command = isolated(command, temporary)
    return subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, check=False).returncode


def measure(module: ModuleType, options: argparse.Namespace, own: argparse.Namespace | None) -> None:
    """In that place: measure, and leave the result for the process that printed."""
    kernel = platform.release() + (" (User-Mode Linux guest)" if options.guest else "")
    bench = Bench(options.name, kernel)
    module.measure(*((bench,) if own is None else (bench, own)))
    if not bench.figures:
        raise SystemExit(f"{options.name} ended without a single figure")
    options.measure_here.write_text(bench.to_json())


if __name__ == "__main__":
    sys.exit(main())
