"""The systemd units: clean, and little exposed. That the daemon works under its unit is a kernel test."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
BIN = Path(sys.executable).parent
LARGEST_EXPOSURE = 2.0

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@pytest.mark.parametrize("name", ["agentd.service", "wardmesh-controller.service"])
def test_systemd_finds_no_fault(tmp_path: Path, name: str) -> None:
    # The commands are where this environment has them; nothing else of the unit is changed.
    text = (UNITS / name).read_text()
    unit = tmp_path / name
    unit.write_text(re.sub(r"^ExecStart=(?=\w)", f"ExecStart={BIN}/", text, flags=re.MULTILINE))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["agentd.service", "wardmesh-controller.service"])
def test_the_exposure_is_low(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / name)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", answer.stdout)
    assert match, answer.stderr
    assert float(match[1]) <= LARGEST_EXPOSURE


def test_agentd_has_one_capability() -> None:
    text = (UNITS / "agentd.service").read_text()
    found = re.findall(r"^(?:AmbientCapabilities|CapabilityBoundingSet)=(.*)$", text, flags=re.MULTILINE)
    assert found == ["CAP_NET_ADMIN", "CAP_NET_ADMIN"]


def test_the_users_of_the_units_are_made() -> None:
    made = set(re.findall(r"^u (\S+)", (UNITS / "wardmesh.sysusers.conf").read_text(), flags=re.MULTILINE))
    used = {
        user for unit in UNITS.glob("*.service") for user in re.findall(r"^User=(\S+)", unit.read_text(), re.MULTILINE)
    }
    assert made == used
