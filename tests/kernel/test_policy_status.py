"""What real daemons say of their kernels: who hides the mesh. The tunnel is in user space: any kernel will do."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

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
