"""Weeks and months of a real mesh: certificates renew themselves, and tunnels outlive the controller's absence.

Everything runs in the guest whose clock jumps when nothing computes: the controller, two agents, their kernel tunnel.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Host, Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller
from tests.lab.processes import Process

DAY = 86400
Mesh = tuple[Controller, Agent, Agent]


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        net = lab.switch("net")
        controller = Controller.start(lab.host("controller", net))
        controller.put_policy(ALLOW_ALL)
        a, b = (Agent.join(lab.host(name, net), controller.join_string()) for name in ("a", "b"))
        eventually(lambda: reaches(a.host, b), timeout=60, interval=1)
        yield controller, a, b


@pytest.fixture
def pair() -> Iterator[tuple[Controller, Agent]]:
    """As little as has a certificate: each agent's day costs some seconds, for its stream's pings."""
    with Lab() as lab:
        net = lab.switch("net")
        controller = Controller.start(lab.host("controller", net))
        yield controller, Agent.join(lab.host("a", net), controller.join_string())


def reaches(host: Host, other: Agent) -> bool:
    address = other.status()["addresses"][0]
    return host.run("ping", "-n", "-c", "1", "-W", "2", address, check=False).returncode == 0


def moment(status: dict[str, Any], field: str) -> datetime:
    return datetime.fromisoformat(status[field])


def let_pass(seconds: float) -> None:
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    eventually(lambda: datetime.now(UTC) >= end, timeout=seconds + DAY, interval=seconds / 4)


def switches(process: Process) -> int:
    """How often the kernel has put a thread of the process on the processor."""
    counts = [
        int(line.split()[1])
        for status in Path(f"/proc/{process.pid}/task").glob("*/status")
        for line in status.read_text().splitlines()
        if "ctxt_switches" in line
    ]
    return sum(counts)


def test_a_controller_and_an_agentd_with_nothing_to_do_sleep(pair: tuple[Controller, Agent]) -> None:
    controller, a = pair
    hours, before = 12, {process: switches(process) for process in (controller.process, a.process)}
    let_pass(hours * 3600)
    woken = {process: (switches(process) - count) / hours for process, count in before.items()}
    # The stream's pings and the once-a-minute looks are most of it. Something that polls each second is 7,200.
    assert woken[a.process] < 900
    assert woken[controller.process] < 1800


def test_a_certificate_renews_itself_for_thirty_days(pair: tuple[Controller, Agent]) -> None:
    controller, a = pair
    begin = datetime.now(UTC)
    ends = set()
    while datetime.now(UTC) < begin + timedelta(days=30):
        let_pass(DAY)
        status = a.status()
        ends.add(moment(status, "certificate_until"))
        assert moment(status, "certificate_until") > datetime.now(UTC)
        assert status["controller"]["phase"] == "streaming"
    # 72 hours each, replaced when a third is left: every 48 hours.
    assert 14 <= len(ends) <= 16
    assert controller.node("a").online
    assert "WARNING" not in a.process.output


def test_a_mesh_works_while_its_controller_is_away_for_a_week_and_is_whole_when_it_is_back(mesh: Mesh) -> None:
    controller, a, b = mesh
    in_force = a.status()["in_force"]
    assert controller.process.stop() == 0

    for _ in range(7):
        let_pass(DAY)
        assert reaches(a.host, b)
    status = a.status()
    assert status["in_force"] == in_force
    assert status["controller"]["phase"] != "streaming"
    assert moment(status, "certificate_until") < datetime.now(UTC)  # it could not be renewed

    controller.restart()
    for agent in (a, b):
        eventually(agent.streams, timeout=3600, interval=60)
        assert moment(agent.status(), "certificate_until") > datetime.now(UTC)
    assert reaches(a.host, b)


def test_an_agent_that_starts_while_the_controller_is_away_for_days_uses_the_saved_map(mesh: Mesh) -> None:
    controller, a, b = mesh
    assert controller.process.stop() == 0
    a.process.stop()
    let_pass(4 * DAY)  # longer than a certificate lives
    a.restart()
    a.wait_in_force()
    assert reaches(a.host, b)
    controller.restart()
    eventually(a.streams, timeout=3600, interval=60)
