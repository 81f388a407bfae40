"""kill -9 of a daemon at the two worst moments: between what it does to the kernel and what it writes to the disk.

The daemon is the real one, but for the one function that saves a map, which kills it there. What must hold: the next
start converges, what was taken away does not come back, and the controller was told of nothing that a restart forgets.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.daemons import Mesh, status
from tests.lab import eventually
from tests.lab.mesh import ALLOW_ALL

OTHER_RULES = 'grants:\n  - from: ["*"]\n    to: ["*"]\n    ip: ["tcp:7000", "icmp"]\n'
KILLED = """
import os, signal
from agentd import apply, main
save = apply.save
def save_and_die(*arguments):
    armed = os.path.exists({armed!r})
    if armed and {moment!r} == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    save(*arguments)
    if armed:
        os.kill(os.getpid(), signal.SIGKILL)
apply.save = save_and_die
main.main()
"""


@pytest.fixture
def mortal(mesh: Mesh) -> Iterator[Mesh]:
    """Its left host's daemon is started by the test; it ends with the policy that all tests expect."""
    yield mesh
    mesh.left.process.stop()
    if not mesh.controller.process.running:
        mesh.controller.restart()
    mesh.controller.put_policy(ALLOW_ALL)


def dies_at(mesh: Mesh, moment: str) -> Path:
    """Run the left host's daemon so that it dies when it saves a map while the file that is returned is there."""
    mesh.left.process.stop()
    armed = mesh.left.host.directory / f"armed-{moment}"
    code = KILLED.format(moment=moment, armed=str(armed))
    options = ("--state-dir", mesh.left.state_dir, "--config", mesh.left.config, "run")
    mesh.left.process = mesh.left.host.start(sys.executable, "-c", code, *options)
    mesh.left.wait_in_force()
    eventually(mesh.is_whole, 60, what="two hosts that see each other")
    eventually(lambda: saved(mesh)["revision"] == status(mesh.left)["in_force"], 60, what="the saved map")
    eventually(lambda: not mesh.controller.node("left").behind, 60, what="the acknowledgement")
    return armed


def saved(mesh: Mesh) -> dict[str, object]:
    found: dict[str, object] = json.loads((mesh.left.state_dir / "netmap.json").read_text())["netmap"]
    return found


def test_a_daemon_that_dies_between_applying_and_saving_converges_at_its_next_start(mortal: Mesh) -> None:
    mesh = mortal
    armed = dies_at(mesh, "before")
    before = saved(mesh)["revision"]
    armed.touch()
    revision = mesh.controller.put_policy(OTHER_RULES)
    eventually(lambda: not mesh.left.process.running, 60, what="the death of the daemon")
    armed.unlink()
    assert saved(mesh)["revision"] == before
    assert mesh.controller.node("left").in_force == before, "it told of what its next start does not know"
    assert mesh.reaches(5)  # the kernel has the newer map, and needs no daemon
    mesh.left.restart()
    mesh.left.wait_in_force()
    eventually(lambda: mesh.controller.node("left").in_force == revision, 60, what="the newest map")
    assert saved(mesh)["revision"] == status(mesh.left)["in_force"] == revision
    assert mesh.left.run("status", "--diff").strip() == "nothing: the kernel is as it should be"
    assert mesh.reaches(5)


def test_a_daemon_that_dies_between_saving_a_denial_and_applying_it_denies_at_its_next_start(mortal: Mesh) -> None:
    """Also while the controller, which said so, is away."""
    mesh = mortal
    armed = dies_at(mesh, "after")
    armed.touch()
    mesh.controller.wardmesh("node", "disable", "left")
    eventually(lambda: not mesh.left.process.running, 60, what="the death of the daemon")
    armed.unlink()
    assert saved(mesh)["peers"] == {}
    mesh.controller.process.kill()
    assert mesh.left.host.run("nft", "list", "table", "inet", "wardmesh").stdout.count("accept") > 0
    mesh.left.restart()
    mesh.left.wait_in_force()
    assert (status(mesh.left)["map"], status(mesh.left)["peers"]) == ("denied", [])
    assert not mesh.reaches(1)
    mesh.controller.restart()
    mesh.controller.wardmesh("node", "enable", "left")
    eventually(lambda: status(mesh.left)["map"] == "current", 90, what="the return")
    eventually(mesh.reaches, 30, what="the tunnel")
