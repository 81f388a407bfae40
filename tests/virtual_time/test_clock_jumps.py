"""The clock of a whole mesh is put a day forward and back: real daemons, a real controller and the kernel's tunnel.

Only in the guest, whose clock is its own. Clocks that differ are in `control/test_faults/test_clocks.py`.
"""

import os
import signal
import time
from collections.abc import Iterator

import pytest

from tests.lab import Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

DAY = 86400


@pytest.fixture(scope="module")
def mesh() -> Iterator[tuple[Controller, Agent, Agent]]:
    with Lab() as lab:
        net = lab.switch("net")
        controller = Controller.start(lab.host("controller", net))
        controller.put_policy(ALLOW_ALL)
        a, b = (Agent.join(lab.host(name, net), controller.join_string()) for name in ("a", "b"))
        eventually(lambda: reaches(a, b), timeout=60, interval=1)
        yield controller, a, b


def reaches(one: Agent, other: Agent) -> bool:
    address = other.status()["addresses"][0]
    return one.host.run("ping", "-n", "-c", "1", "-W", "2", address, check=False).returncode == 0


def put_clock(seconds: float) -> None:
    time.clock_settime(time.CLOCK_REALTIME, time.time() + seconds)


def test_tunnels_streams_and_certificates_outlive_a_clock_that_is_put_a_day_forward_and_back(
    mesh: tuple[Controller, Agent, Agent],
) -> None:
    """One of the agents does not run at the moment at which it is put back."""
    controller, a, b = mesh
    put_clock(DAY)
    check(controller, a, b, "in tomorrow")
    keys = [controller.node(name).public_key for name in ("a", "b")]
    a.process.stop()
    put_clock(-DAY)
    a.restart()
    check(controller, a, b, "back in today")
    assert [controller.node(name).public_key == key for name, key in zip(("a", "b"), keys, strict=True)] == [False] * 2


@pytest.mark.parametrize("elsewhere", [False, True], ids=["where it was", "elsewhere"])
def test_a_host_that_slept_for_an_hour_is_there_again_within_seconds(
    mesh: tuple[Controller, Agent, Agent], elsewhere: bool
) -> None:
    controller, a, b = mesh
    eventually(lambda: a.streams() and reaches(a, b), timeout=600, interval=10)
    before = a.process.output.count("this host slept")
    os.kill(a.process.pid, signal.SIGSTOP)
    a.host.unplug()
    end = time.monotonic() + 400  # for the others, who notice
    eventually(lambda: time.monotonic() > end, timeout=1000, interval=100)
    eventually(lambda: not controller.node("a").online, timeout=600, interval=10)
    put_clock(3600)
    if elsewhere:
        a.host.readdress()
    a.host.plug()
    os.kill(a.process.pid, signal.SIGCONT)
    eventually(lambda: reaches(b, a) and reaches(a, b), timeout=15, interval=1)
    eventually(a.streams, timeout=15, interval=1)
    assert a.process.output.count("this host slept") == before + 1


def check(controller: Controller, a: Agent, b: Agent, when: str) -> None:
    # Long enough for the kernel to make new keys for the tunnel: the old ones live three minutes.
    end = time.monotonic() + 400
    eventually(lambda: time.monotonic() > end, timeout=1000, interval=200)
    eventually(lambda: reaches(a, b) and reaches(b, a), timeout=600, interval=60, what=f"tunnel {when}")
    for agent in (a, b):
        eventually(agent.streams, 600, interval=60)
    assert controller.node("a").online
