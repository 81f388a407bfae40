"""`tests/bench/run` as people and machines call it."""

import json
import subprocess
from pathlib import Path

RUN = Path(__file__).with_name("run")


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([RUN, *arguments], capture_output=True, text=True, timeout=110, check=False)


def test_json_is_the_last_line_after_readable_tables() -> None:
    done = bench("guest-boot", "--json")
    assert done.returncode == 0, done.stderr
    *tables, last = done.stdout.splitlines()
    result = json.loads(last)
    assert result["bench"] == "guest-boot"
    assert result["figures"]["boot_s"] > 0
    assert result["bars"] == {}
    assert any("boot_s" in line for line in tables)


def test_an_unknown_bench_is_an_error_that_lists_the_known_ones() -> None:
    done = bench("no-such-bench")
    assert done.returncode == 2
    assert "guest-boot" in done.stderr
