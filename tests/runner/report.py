"""What a run of pytest came to, read from its JUnit file, and the lines that say so. Pure but for reading the file."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcome", "add", "overall_line", "part_line", "read"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Counts of tests. `broken`: the stage ended without saying (crash, kill, time limit); says how."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    broken: str = ""

    @property
    def ran(self) -> int:
        return self.passed + self.failed

    def counts(self) -> str:
        text = f"{self.passed} passed, {self.failed} failed"
        return text + (f", {self.skipped} skipped" if self.skipped else "")


def read(junit: Path, exit_code: int, seconds: float) -> Outcome:
    """The outcome of one pytest run that ended with `exit_code` and should have written `junit`.

    pytest's codes: 0 and 1 are results, 5 is "no tests collected"; anything else is not a result.
    """
    try:
        suites = ElementTree.parse(junit).getroot().findall("testsuite")
    except (OSError, ElementTree.ParseError):
        suites = []
    total = sum(int(suite.get("tests", 0)) for suite in suites)
    failed = sum(int(suite.get("failures", 0)) + int(suite.get("errors", 0)) for suite in suites)
    skipped = sum(int(suite.get("skipped", 0)) for suite in suites)
    broken = ""
    if exit_code not in (0, 1, 5) or not suites:
        broken = f"ended with {exit_code} before all tests had run"
    elif exit_code == 1 and not failed:
        broken = "pytest reports failures that its result file does not name"
    return Outcome(max(total - failed - skipped, 0), failed, skipped, seconds, broken)


def add(outcomes: Iterable[Outcome]) -> Outcome:
    """The sum of the stages of a part, or of all parts."""
    listed = list(outcomes)
    return Outcome(
        sum(o.passed for o in listed),
        sum(o.failed for o in listed),
        sum(o.skipped for o in listed),
        sum(o.seconds for o in listed),
        "; ".join(o.broken for o in listed if o.broken),
    )


def part_line(name: str, outcome: Outcome, where: str) -> str:
    note = f"  BROKEN: {outcome.broken}" if outcome.broken else ""
    return f"{name:<21}{outcome.counts():<36}{outcome.seconds:7.1f} s  {where}{note}"


def overall_line(outcomes: Iterable[Outcome]) -> str:
    """The last line of a run: parts that broke count as one failure each, since a count must not hide them."""
    listed = list(outcomes)
    total = add(listed)
    broken = sum(1 for outcome in listed if outcome.broken and not outcome.failed)
    return Outcome(total.passed, total.failed + broken, total.skipped).counts()
