"""Runs the official suite and reads what it found. Knows nothing of gateways."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from .processes import ROOT

__all__ = ["Difference", "Leg", "Report", "Suite", "compare"]

Leg = Literal["server", "client"]
Check = tuple[str, str]  # scenario, check id
_STAMP = re.compile(r"-\d{4}-\d\d-\d\dT[\d-]+Z$")
_TIMEOUT_MS = 120_000  # a scenario: Python starts slowly on a busy machine
_RUN_SECONDS = 1500
_LOOPBACK = Path(__file__).with_name("loopback.cjs")


@dataclass(frozen=True)
class Report:
    """`statuses`: how often each check of each scenario ended how. `scored_ok`: the suite's own verdict."""

    statuses: dict[Check, Counter[str]]
    scored_ok: bool
    summary: str

    def count(self, status: str) -> int:
        return sum(counter[status] for counter in self.statuses.values())

    def scenarios(self) -> set[str]:
        return {scenario for scenario, _ in self.statuses}


@dataclass(frozen=True)
class Difference:
    """A check that did not end alike."""

    scenario: str
    check: str
    direct: dict[str, int]
    through: dict[str, int]

    def __str__(self) -> str:
        return f"{self.scenario} / {self.check}: direct {self.direct}, through {self.through}"


class Suite:
    """The suite at its fixed version, under the Node that was installed with it."""

    def __init__(self, tools: Path) -> None:
        self._node = tools / "node/bin/node"
        self._package = tools / "node_modules/@modelcontextprotocol/conformance"

    def client_scenarios(self, revision: str) -> list[str]:
        """What the revision runs against clients, scored or not."""
        wanted = yaml.safe_load((self._package / f"requirements/{revision}.yaml").read_text())
        unscored = [entry["scenario"] for entry in wanted["not_scored"] if entry["leg"] == "client"]
        return [*wanted["client"], *unscored]

    def server(self, url: str, revision: str, output: Path) -> Report:
        """The whole server leg against the server at `url`."""
        return self._run("server", ["--url", url, "--requirements", revision], output)

    def client(self, module: str, scenario: str, revision: str, output: Path) -> Report:
        """One scenario of the client leg with the client that `python -m module URL` starts.

        (The suite runs a whole leg at once: dozens of Python processes, which time out on a small machine.)
        """
        command = f"{sys.executable} -m {module}"
        what = ["--command", command, "--scenario", scenario, "--spec-version", revision]
        return self._run("client", what, output, NODE_OPTIONS=f"--require {_LOOPBACK}")

    def _run(self, leg: Leg, what: list[str], output: Path, **environment: str) -> Report:
        output.mkdir(parents=True)
        command = [str(self._node), str(self._package / "dist/index.js"), leg, *what]
        command += ["--output-dir", str(output), "--timeout", str(_TIMEOUT_MS)]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, "NO_COLOR": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_RUN_SECONDS,
            check=False,
        )
        statuses = read(output, leg)
        if not statuses:
            raise RuntimeError(f"the suite did not run:\n{done.stdout[-4000:]}")
        return Report(
            statuses, done.returncode == 0, (done.stdout.partition("=== SUMMARY ===")[2] or done.stdout[-4000:]).strip()
        )


def read(output: Path, leg: Leg) -> dict[Check, Counter[str]]:
    """What the suite wrote, one folder a scenario. INFO is its log of messages, not a check."""
    statuses: dict[Check, Counter[str]] = {}
    for file in sorted(output.rglob("checks.json")):
        scenario = _STAMP.sub("", str(file.parent.relative_to(output))).removeprefix(f"{leg}-")
        for check in json.loads(file.read_text()):
            if check["status"] != "INFO":
                statuses.setdefault((scenario, check["id"]), Counter())[check["status"]] += 1
    return statuses


def compare(direct: Report, through: Report) -> list[Difference]:
    """Every check that did not end alike."""
    return [
        Difference(*key, dict(direct.statuses.get(key, {})), dict(through.statuses.get(key, {})))
        for key in sorted(direct.statuses.keys() | through.statuses.keys())
        if direct.statuses.get(key) != through.statuses.get(key)
    ]
