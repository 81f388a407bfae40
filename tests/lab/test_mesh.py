"""The project's own programs in the lab: enough to show that the helpers are the real thing."""

from tests.lab import Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller


def test_two_agents_join_and_reach_each_other_through_the_tunnel() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        controller = Controller.start(lab.host("controller", net))
        controller.put_policy(ALLOW_ALL)
        a, b = (Agent.join(lab.host(name, net), controller.join_string()) for name in ("a", "b"))
        there = controller.node("b").addresses[0]
        eventually(lambda: a.host.run("ping", "-c1", "-W1", there, check=False).returncode == 0, timeout=30)
        assert "transfer" in b.host.run("wg", "show").stdout


def test_a_controller_can_be_restarted_with_its_state() -> None:
    with Lab() as lab:
        controller = Controller.start(lab.host("controller", lab.switch("net")))
        revision = controller.put_policy(ALLOW_ALL)
        assert controller.process.stop() == 0
        controller.restart()
        assert controller.ask(lambda client: client.policy().value.revision) == revision
        assert f'"revision": {revision}' in controller.wardmesh("policy", "show", "--json")
