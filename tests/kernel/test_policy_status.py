"""What real daemons say of their kernels: verdicts, counts, who hides the mesh.

The tunnel is in user space, so that any kernel will do.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from controller.wire.rest import Explanation
from tests.lab import Lab, eventually
from tests.lab.mesh import Agent, Controller

pytestmark = pytest.mark.host_kernel

POLICY = "grants:\n  - {from: [tag:agents], to: [tag:tools], ip: [tcp:8000, icmp]}\n"


@dataclass
class Mesh:
    controller: Controller
    agent: Agent
    tool: Agent


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    """An agent that may call a tool."""
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(POLICY)
        agent, tool = (
            Agent.join(lab.host(name, switch), controller.join_string(f"tag:{name}s"), backend="userspace")
            for name in ("agent", "tool")
        )
        eventually(lambda: tool.status()["rules"] > 0, 60)
        yield Mesh(controller, agent, tool)


def test_policy_hidden_by_another_table_is_said_in_the_status(mesh: Mesh) -> None:
    assert mesh.tool.status()["hidden_by"] == []
    mesh.tool.host.nft("table ip mine { chain in { type filter hook input priority 0 ; tcp dport 8000 drop ; } ; }")
    try:
        status = mesh.tool.status()
        (found,) = status["hidden_by"]
        assert (found["family"], found["table"], found["chain"], found["hook"]) == ("ip", "mine", "in", "input")
        assert (found["effect"], found["certain"]) == ("drop", True)
        assert found["traffic"] == ["tcp:8000 over wardmesh0, opened by peers"]
        assert any(notice.startswith("table ip mine, chain in drops tcp:8000") for notice in status["notices"])
        assert "table ip mine, chain in drops" in " ".join(mesh.tool.run("status", check=False).split())
    finally:
        mesh.tool.host.run("nft", "delete", "table", "ip", "mine")
    assert mesh.tool.status()["hidden_by"] == []


def explained(mesh: Mesh, source: str = "agent", destination: str = "tool", port: str = "tcp:8000") -> Explanation:
    return mesh.controller.ask(lambda client: client.explain(source, destination, port))


def test_policy_explain_has_what_both_kernels_have(mesh: Mesh) -> None:
    for port in ("tcp:8000", "icmp"):
        found = explained(mesh, port=port)
        for host in (found.source, found.destination):
            assert host.kernel is not None
            assert (host.kernel.passes, host.kernel.why) == (True, "")
            assert host.kernel.grant == found.grants[0].id
            assert host.kernel.revision == host.in_force


def test_policy_that_denies_is_found_in_both_kernels(mesh: Mesh) -> None:
    for question in (("agent", "tool", "tcp:8001"), ("tool", "agent", "tcp:8000"), ("agent", "tool", "udp:8000")):
        found = explained(mesh, *question)
        for host in (found.source, found.destination):
            assert host.kernel is not None
            assert host.kernel.passes is False
            assert "table inet wardmesh, chain deny/" in host.kernel.why


def test_policy_explain_reads_the_kernel_and_not_the_map(mesh: Mesh) -> None:
    mesh.tool.host.nft("table ip mine { chain in { type filter hook input priority 0 ; tcp dport 8000 drop ; } ; }")
    try:
        found = explained(mesh)
        assert found.allowed
        assert found.destination.allows
        assert found.destination.kernel is not None
        assert found.destination.kernel.passes is False
        assert found.destination.kernel.why == "refused by table ip mine, chain in"
        assert found.source.kernel is not None
        assert found.source.kernel.passes is True
        said = mesh.controller.wardmesh("policy", "explain", "--from", "agent", "--to", "tool", "--port", "tcp:8000")
        assert "does not pass" in said
        assert "table ip mine, chain in" in " ".join(said.split())
    finally:
        mesh.tool.host.run("nft", "delete", "table", "ip", "mine")
    kernel = explained(mesh).destination.kernel
    assert kernel is not None
    assert kernel.passes is True


def test_policy_counters_are_those_of_the_kernels(mesh: Mesh) -> None:
    address = mesh.controller.node("tool").addresses[0]
    mesh.agent.host.run("ping", "-n", "-c", "1", "-W", "10", address)

    def agrees() -> bool:
        grants = mesh.controller.ask(lambda client: client.policy_counters()).grants
        counted = {name: count for grant in grants for name, count in grant.hosts.items()}
        return counted == {
            name: sum(agent.status()["accepted"].values())
            for name, agent in (("agent", mesh.agent), ("tool", mesh.tool))
        }

    eventually(agrees, what="the same counts over REST as on the hosts")
    shown = mesh.controller.wardmesh("policy", "counters")
    assert "agent:" in shown
    assert "tool:" in shown


def test_policy_explain_says_that_an_offline_host_gives_no_answer(mesh: Mesh) -> None:
    mesh.tool.process.stop()
    try:
        eventually(lambda: not explained(mesh).destination.online, what="the controller notices")
        found = explained(mesh)
        assert (found.allowed, found.destination.kernel) == (True, None)
        assert found.source.kernel is not None
    finally:
        mesh.tool.restart()
        mesh.tool.wait_in_force()
