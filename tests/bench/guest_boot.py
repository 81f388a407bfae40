"""How long a command in the User-Mode Linux guest takes, against the same command here: the price of a kernel test."""

import subprocess
import sys
import time
from pathlib import Path

from tests.bench.figures import Bench, alternate

RUN = Path(__file__).parents[1] / "uml/run"
SCRIPT = "import hashlib\nfor _ in range(300_000): hashlib.sha256(b'x').digest()"


def seconds(*command: str | Path) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return time.monotonic() - started


def measure(bench: Bench) -> None:
    found = alternate(
        {
            "boot": lambda: seconds(RUN, "--", "true"),
            "work here": lambda: seconds(sys.executable, "-c", SCRIPT),
            "work in the guest": lambda: seconds(RUN, "--", sys.executable, "-c", SCRIPT),
        },
        rounds=3,
    )
    bench.table(
        "seconds, wall time", ("", "best", "median"), [(name, runs.lowest, runs.median) for name, runs in found.items()]
    )
    boot = found["boot"].lowest
    bench.figure("boot_s", boot)
    bench.figure("python_slowdown", (found["work in the guest"].lowest - boot) / found["work here"].lowest)
