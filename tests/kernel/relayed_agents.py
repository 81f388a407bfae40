"""Real agents that only a relay can bring together: two behind symmetric NATs, the relay, and their controller."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import Lab, eventually
from tests.lab.mesh import Agent, Controller

__all__ = ["PORT", "RelayedAgents", "passed_on", "relayed_agents", "wakeups"]

PORT: Final = 5201  # policy lets the two reach it at each other
POLICY: Final = f"""
relays: {{eu: {{on: ["tag:relay"]}}}}
grants: [{{from: ["tag:host"], to: ["tag:host"], ip: [icmp, "tcp:{PORT}"]}}]
"""


@dataclass(frozen=True)
class RelayedAgents:
    """Three agents that run; left and right may reach each other."""

    controller: Controller
    relay: Agent
    left: Agent
    right: Agent
    address: str  # of the right one

    @property
    def all(self) -> dict[str, Agent]:
        return {"relay": self.relay, "left": self.left, "right": self.right}

    def reach(self) -> None:
        """Return when a ping from left to right is answered."""

        def reaches() -> bool:
            return self.left.host.run("ping", "-n", "-c1", "-W", "1", self.address, check=False).returncode == 0

        eventually(reaches, 60, what="a ping by way of the relay")

    def send(self, *amount: str) -> None:
        """One TCP stream from left to right, for as long as these options tell iperf3."""
        server = self.right.host.start("iperf3", "-s", "-1", "-B", self.address, "-p", str(PORT))
        eventually(lambda: bool(self.right.host.run("ss", "-Hltn", f"sport = :{PORT}").stdout), 30, what="iperf3")
        self.left.host.run("iperf3", "-c", self.address, "-p", str(PORT), *amount, timeout=120)
        server.wait(30)


@contextmanager
def relayed_agents() -> Iterator[RelayedAgents]:
    with Lab() as lab:
        internet = lab.switch("internet")
        controller = Controller.start(lab.host("controller", internet))
        controller.put_policy(POLICY)
        relay = Agent.join(lab.host("relay", internet), controller.join_string("tag:relay"))
        eventually(lambda: any("forwards no IPv6" in notice for notice in relay.status()["notices"]), 30)
        relay.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        agents = []
        for name in ("left", "right"):
            home = lab.switch(f"home-{name}")
            host = lab.host(name, home)
            lab.nat(f"nat-{name}", inside=home, outside=internet, random_ports=True)
            agents.append(Agent.join(host, controller.join_string("tag:host")))
        left, right = agents
        yield RelayedAgents(controller, relay, left, right, right.status()["addresses"][0])


def wakeups(agent: Agent) -> int:
    """How often any thread of any process on that host has waited for something, and was woken."""
    host = Path(f"/proc/{agent.process.pid}/ns/net").stat().st_ino
    times = 0
    for task in Path("/proc").glob("[0-9]*/task/*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if (task / "ns/net").stat().st_ino == host:
                said = (task / "status").read_text()
                times += int(said.partition("\nvoluntary_ctxt_switches:")[2].split(maxsplit=1)[0])
    return times


def passed_on(relay: Agent) -> int:
    """Packets that have left the relay's mesh interface."""
    shown = json.loads(relay.host.run("ip", "-j", "-s", "link", "show", "dev", "wardmesh0").stdout)
    return int(shown[0]["stats64"]["tx"]["packets"])
