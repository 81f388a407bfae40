"""The systemd units: clean, and little exposed. That the daemon works under its unit is a kernel test."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from agentd.config import Config
from agentd.naming import LEFT

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
BIN = Path(sys.executable).parent
NAMES = ["agentd.service", "wardmesh-controller.service", "wardmesh-gateway.service", "wardmesh-names.service"]
LARGEST_EXPOSURE = 2.0


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_no_fault(tmp_path: Path, name: str) -> None:
    # The commands are where this environment has them; nothing else of the unit is changed.
    text = (UNITS / name).read_text()
    unit = tmp_path / name
    unit.write_text(re.sub(r"^ExecStart=(?=\w)", f"ExecStart={BIN}/", text, flags=re.MULTILINE))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
def test_the_exposure_is_low(name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNITS / name)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    match = re.search(r"Overall exposure level for \S+: ([\d.]+)", answer.stdout)
    assert match, answer.stderr
    assert float(match[1]) <= LARGEST_EXPOSURE


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [
        ("agentd.service", ["CAP_NET_ADMIN CAP_NET_BIND_SERVICE"] * 2),
        ("wardmesh-controller.service", [""]),
        ("wardmesh-gateway.service", [""]),
        ("wardmesh-names.service", ["CAP_DAC_OVERRIDE CAP_CHOWN CAP_FOWNER"]),
    ],
)
def test_a_unit_has_the_capabilities_that_it_needs_and_no_other(name: str, capabilities: list[str]) -> None:
    text = (UNITS / name).read_text()
    found = re.findall(r"^(?:AmbientCapabilities|CapabilityBoundingSet)=(.*)$", text, flags=re.MULTILINE)
    assert found == capabilities


def test_the_names_are_written_when_agentd_leaves_them() -> None:
    path = (UNITS / "wardmesh-names.path").read_text()
    assert f"PathChanged={Config().socket.parent / LEFT}\n" in path
    assert "WantedBy=agentd.service\n" in path


def test_the_gateway_may_open_agentds_socket_by_its_group() -> None:
    agentd, gateway = ((UNITS / name).read_text() for name in ("agentd.service", "wardmesh-gateway.service"))
    (group,) = re.findall(r"^Group=(.*)$", agentd, flags=re.MULTILINE)
    assert re.findall(r"^SupplementaryGroups=(.*)$", gateway, flags=re.MULTILINE) == [group]


def test_the_users_of_the_units_are_made() -> None:
    made = set(re.findall(r"^u (\S+)", (UNITS / "wardmesh.sysusers.conf").read_text(), flags=re.MULTILINE))
    used = {
        user for unit in UNITS.glob("*.service") for user in re.findall(r"^User=(\S+)", unit.read_text(), re.MULTILINE)
    }
    assert made == used
