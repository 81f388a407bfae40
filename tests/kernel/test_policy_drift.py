"""Somebody undoes on a host what policy put there: it is back at once, and the controller's audit says so.

A real controller and a real daemon. What one reconciler does with more disturbances is in test_reconcile.py; how long
a table is away is measured by tests/bench/acl.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.lab import Host, Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

TOLD_SECONDS: Final = 40  # a host tells of drift, and the controller records it, once in ten seconds at most


@dataclass
class Mesh:
    """A controller and a host with a daemon. Starting them is what a test costs most: all share them."""

    controller: Controller
    agent: Agent

    @property
    def host(self) -> Host:
        return self.agent.host

    def drifts(self) -> list[str]:
        """What the audit says that this host put back, newest first."""
        node = self.controller.node(self.host.name).id
        entries = self.controller.ask(lambda client: list(client.audit(action="host:node:drift")))
        return [entry.new["put_back"] for entry in entries if entry.actor == entry.subject == f"node:{node}"]

    def state(self) -> str:
        """What the daemon made on the host, as the system's own tools show it."""
        questions = (
            "nft -s list table inet wardmesh",
            "ip -o address show dev wardmesh0",
            "ip route show dev wardmesh0",
            "ip -6 route show dev wardmesh0",
        )
        shown = [self.host.run(*question.split(), check=False).stdout for question in questions]
        return "\n".join(line for line in "".join(shown).splitlines() if "fe80::" not in line)


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(ALLOW_ALL)
        yield Mesh(controller, Agent.join(lab.host("drifting", switch), controller.join_string()))


@pytest.mark.parametrize(
    ("disturbance", "told"),
    [
        ("nft flush ruleset", "replace table inet wardmesh"),
        ("nft delete table inet wardmesh", "replace table inet wardmesh"),
        ("ip address del {own}/32 dev wardmesh0", "add address {own}/32"),
        ("ip route del {prefix} dev wardmesh0", "add route {prefix}"),
    ],
)
def test_what_somebody_undoes_on_a_host_is_put_back_and_audited(mesh: Mesh, disturbance: str, told: str) -> None:
    status = mesh.agent.status()
    names = {"own": status["addresses"][0], "prefix": status["prefixes"][0]}
    before, known = mesh.state(), mesh.drifts()
    mesh.host.run(*disturbance.format(**names).split())
    eventually(lambda: mesh.state() == before, what="what was undone")
    eventually(lambda: len(mesh.drifts()) > len(known), TOLD_SECONDS, what="the audit's entry")
    assert told.format(**names) in mesh.drifts()[0]
