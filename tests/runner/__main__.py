"""`tests/run` after the bootstrap: runs the chosen parts, each where it belongs, and prints one line per part.

Exit code 0 only when every part ran at least one test and none failed. With more than one part and processor, stages
run two at a time: those in the guest, which has one processor, and then the last of those on the host, beside the first
of those on the host, and are shown after these.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from tests.lab.kernel import missing_features
from tests.runner import parts, report
from tests.runner.parts import PARTS, Part, Place, Stage
from tests.runner.report import Outcome
from tests.runner.stages import NOT_STARTED, ROOT, Lane, Queue, Running, kernel_name, title

Plan = dict[Part, list[Stage]]


def main() -> int:
    chosen, arguments = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    set_up(*sorted({name for part in chosen for name in part.setup}))
    plan = {part: planned for part in chosen if (planned := stages_of(part)) or len(chosen) < len(PARTS)}
    if any(stage.place is not Place.HOST for planned in plan.values() for stage in planned):
        set_up("guest")
    with tempfile.TemporaryDirectory(prefix="wm-") as results:
        Path(results).chmod(0o711)  # PostgreSQL and other users of the tests' files pass through
        outcomes: dict[Stage, Outcome] = {}
        try:
            run(plan, arguments, Path(results), outcomes)
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    return summarise(plan, outcomes, narrowed=bool(arguments), interrupted=interrupted)


def parse(arguments: Sequence[str]) -> tuple[list[Part], list[str]]:
    """The parts to run, and what goes to pytest."""
    names = [part.name for part in PARTS]
    listed = list(arguments)
    at = listed.index("--") if "--" in listed else len(listed)
    parser = argparse.ArgumentParser(prog="tests/run", epilog="Arguments after -- go to pytest.")
    parser.add_argument("part", nargs="*", help=f"{', '.join(names)}, or all (the default)")
    wanted = parser.parse_args(listed[:at]).part
    unknown = [name for name in wanted if name not in (*names, "all")]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(names)}, all")
    everything = not wanted or "all" in wanted
    return [part for part in PARTS if everything or part.name in wanted], listed[at + 1 :]


def set_up(*names: str) -> None:
    """Provide what a part needs; tests/setup says what it does, and why when it cannot."""
    if subprocess.run([ROOT / "tests/setup", *names], check=False).returncode != 0:
        raise SystemExit(2)


def stages_of(part: Part) -> list[Stage]:
    """Where this part runs on this machine; nowhere when it has no tests yet."""
    files = parts.test_files(part, ROOT)
    if not files:
        return []
    has_host_tests = any("host_kernel" in file.read_text() for file in files)
    return parts.stages(part, host_suits=not missing_features(), has_host_tests=has_host_tests)


def run(plan: Plan, arguments: Sequence[str], results: Path, outcomes: dict[Stage, Outcome]) -> None:
    """Run all stages; `outcomes` has those that finished, also when this is interrupted."""
    stages = [stage for planned in plan.values() for stage in planned]
    several = len(plan) > 1 and len(stages) > 1 and (os.cpu_count() or 1) > 1
    guests = [stage for stage in stages if several and stage.place is not Place.HOST]
    waiting = Queue(stage for stage in stages if stage not in guests)
    lane = Lane(guests, waiting, arguments, results)
    if several:
        names = ", ".join(dict.fromkeys(stage.part.name for stage in guests))
        print(f"\n== beside these, shown afterwards: {names or 'those at the end'}", flush=True)
        lane.start()
    try:
        while stage := waiting.first():
            print(f"\n{title(stage)}", flush=True)
            outcomes[stage] = Running(stage, arguments, results).finish()
        if several:
            for stage, outcome in lane.ended():
                print(f"\n{title(stage)}", flush=True)
                lane.show(stage)
                outcomes[stage] = outcome
        for stage in stages:
            outcomes.setdefault(stage, NOT_STARTED)
    finally:
        lane.stop()


def summarise(plan: Plan, outcomes: Mapping[Stage, Outcome], *, narrowed: bool, interrupted: bool) -> int:
    """Print the summary; returns the exit code. `narrowed`: arguments may have deselected whole parts on purpose."""
    print("\n== summary")
    totals = []
    for part, planned in plan.items():
        finished = {stage: outcomes[stage] for stage in planned if stage in outcomes}
        if planned and not finished:
            continue  # interrupted before it
        total = report.add(finished.values()) if planned else Outcome(broken="it has no tests")
        where = [kernel_name(stage.place) for stage, outcome in finished.items() if outcome.ran or outcome.broken]
        totals.append(total)
        empty = "" if total.ran or total.broken else "no test ran"
        print(report.part_line(part.name, total, " and ".join(where) or empty))
    ran = any(total.ran for total in totals)
    failed = any(total.failed or total.broken for total in totals)
    missing = not ran or (not narrowed and not all(total.ran for total in totals))
    if interrupted:
        print("interrupted; what had not run is not counted")
    print(report.overall_line(totals), flush=True)
    return 130 if interrupted else 1 if failed or missing else 0


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
