"""`tests/run` after the bootstrap: runs the chosen parts, each where it belongs, and prints one line per part.

Exit code 0 only when every part ran at least one test and none failed.
"""

import argparse
import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.kernel import missing_features
from tests.runner import parts, report
from tests.runner.isolation import isolated
from tests.runner.parts import PARTS, Part, Place, Stage
from tests.runner.report import Outcome

ROOT = Path(__file__).resolve().parents[2]
STAGE_SECONDS = 1800  # wall time after which a stage is ended; single tests have pytest-timeout


def main() -> int:
    chosen, arguments = parse(sys.argv[1:])
    explicit = chosen != list(PARTS)
    outcomes: dict[str, Outcome] = {}
    places: dict[str, str] = {}
    interrupted = False
    set_up(*sorted({name for part in chosen for name in part.setup}))
    with tempfile.TemporaryDirectory(prefix="wm-") as results:
        Path(results).chmod(0o711)  # PostgreSQL and other users of the tests' files pass through
        for part in chosen:
            files = parts.test_files(part, ROOT)
            if not files:
                if explicit:
                    outcomes[part.name], places[part.name] = Outcome(broken="it has no tests"), "-"
                continue
            has_host_tests = any("host_kernel" in file.read_text() for file in files)
            planned = parts.stages(part, host_suits=not missing_features(), has_host_tests=has_host_tests)
            if any(stage.place is not Place.HOST for stage in planned):
                set_up("guest")
            try:
                finished = [run(stage, arguments, Path(results)) for stage in planned]
            except KeyboardInterrupt:
                interrupted = True
                break
            outcomes[part.name] = report.add(finished)
            places[part.name] = " and ".join(
                kernel_name(stage.place)
                for stage, outcome in zip(planned, finished, strict=True)
                if outcome.ran or outcome.broken
            )
    return summarise(outcomes, places, narrowed=bool(arguments), interrupted=interrupted)


def parse(arguments: Sequence[str]) -> tuple[list[Part], list[str]]:
    """The parts to run, and what goes to pytest."""
    names = [part.name for part in PARTS]
    own, rest = _split(arguments)
    parser = argparse.ArgumentParser(prog="tests/run", epilog="Arguments after -- go to pytest.")
    parser.add_argument("part", nargs="*", help=f"{', '.join(names)}, or all (the default)")
    wanted = parser.parse_args(own).part
    unknown = [name for name in wanted if name not in (*names, "all")]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}, all")
    everything = not wanted or "all" in wanted
    return [part for part in PARTS if everything or part.name in wanted], rest


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    listed = list(arguments)
    if "--" not in listed:
        return listed, []
    at = listed.index("--")
    return listed[:at], listed[at + 1 :]


def set_up(*names: str) -> None:
    """Provide what a part needs; tests/setup says what it does, and why when it cannot."""
    if subprocess.run([ROOT / "tests/setup", *names], check=False).returncode != 0:
        raise SystemExit(2)


def run(stage: Stage, arguments: Sequence[str], results: Path) -> Outcome:
    """Run one stage, its output on ours, and read what came of it."""
    junit = results / f"{stage.part.name}-{stage.place.name.lower()}.xml"
    print(f"\n== {stage.part.name}: {kernel_name(stage.place)}{_reason(stage)}", flush=True)
    pytest = [sys.executable, "-m", "pytest", f"--junitxml={junit}", "-o", "junit_family=xunit2", *arguments]
    if stage.place is Place.VIRTUAL_TIME:
        pytest += ["-o", "timeout=0"]  # it would count the guest's seconds, of which there are millions
    pytest += parts.selected_paths(stage.part, arguments, ROOT)
    temporary = results / "t"
    temporary.mkdir(exist_ok=True)
    command = (
        isolated(pytest, temporary)
        if stage.place is Place.HOST
        else [
            *(str(ROOT / "tests/uml/run"), "--share", str(results), "--timeout", str(STAGE_SECONDS)),
            *(("--virtual-time",) if stage.place is Place.VIRTUAL_TIME else ()),
            *("--", *pytest),
        ]
    )
    started = time.monotonic()
    code = call(command, environment(stage))
    return report.read(junit, code, time.monotonic() - started)


def call(command: Sequence[str], env: dict[str, str]) -> int:
    """Run to the end, or to the time limit; a keyboard interrupt lets pytest finish what it prints."""
    with subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL) as process:
        try:
            return process.wait(STAGE_SECONDS + 30)
        except subprocess.TimeoutExpired:
            return 124
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            raise
        finally:
            process.kill()


def environment(stage: Stage) -> dict[str, str]:
    env = dict(os.environ)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"], "/usr/sbin", "/sbin"])
    env["WARDMESH_SELECT"] = stage.select
    if sys.stdout.isatty():
        env["FORCE_COLOR"] = "1"
    return env


def kernel_name(place: Place) -> str:
    if place is Place.HOST:
        return f"host kernel {platform.release()}"
    linux = subprocess.run([ROOT / "tests/uml/build"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    release = subprocess.run([linux, "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    how = ", virtual time" if place is Place.VIRTUAL_TIME else ""
    return f"guest kernel {release} (User-Mode Linux{how})"


def _reason(stage: Stage) -> str:
    if stage.place is Place.GUEST:
        return f"; the host's {platform.release()} lacks {' and '.join(missing_features())}"
    return " (userspace backend and other tests that need no WireGuard in the kernel)" if stage.select else ""


def summarise(outcomes: dict[str, Outcome], places: dict[str, str], *, narrowed: bool, interrupted: bool) -> int:
    """Print the summary; returns the exit code. `narrowed`: arguments may have deselected whole parts on purpose."""
    print("\n== summary")
    empty = []
    for name, outcome in outcomes.items():
        print(report.part_line(name, outcome, places[name]))
        if not outcome.ran and not outcome.broken:
            empty.append(name)
    ran = sum(outcome.ran for outcome in outcomes.values())
    failed = any(outcome.failed or outcome.broken for outcome in outcomes.values())
    missing = not ran or (bool(empty) and not narrowed)
    if missing:
        print(f"no test ran in: {', '.join(empty) or 'any part'}")
    if interrupted:
        print("interrupted; what had not run is not counted")
    print(report.overall_line(outcomes.values()), flush=True)
    return 130 if interrupted else 1 if failed or missing else 0


if __name__ == "__main__":
    sys.exit(main())
