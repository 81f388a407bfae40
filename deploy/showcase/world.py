"""The demo's machines: three hosts and a controller behind one switch, with the lab's own way to run our programs.

Starts and asks; what it means is told by `story`.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from controller.client.rest import RestClient
from tests.lab import Host, Lab, Switch, eventually
from tests.lab.mesh import Agent, Controller

__all__ = ["BIN", "HOSTS", "REPOSITORY", "World", "mesh_address", "peer_of"]

BIN: Final = Path(sys.executable).parent
REPOSITORY: Final = Path(__file__).resolve().parent.parent.parent
# Each host and the tag that the policy knows it by.
HOSTS: Final = {"assistant": "tag:agents", "warehouse": "tag:tools", "visitor": "tag:visitors"}
SERVING: Final = "warehouse"


class World:
    """The topology, and what runs on it so far."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.switch: Switch = lab.switch("switch")
        self.admin: Host = lab.host("controller", self.switch)
        self.hosts: dict[str, Host] = {name: lab.host(name, self.switch) for name in HOSTS}
        self.agents: dict[str, Agent] = {}
        self._controller: Controller | None = None

    @property
    def controller(self) -> Controller:
        assert self._controller, "the controller has not been started"
        return self._controller

    def start_controller(self) -> None:
        self._controller = Controller.start(self.admin)

    def ask(self, *command: str) -> Any:
        """What `wardmesh COMMAND --json` answers."""
        return json.loads(self.controller.wardmesh(*command, "--json"))

    def join(self, name: str) -> Agent:
        """Enrol a host with a new one-shot key, as a person would, and start its daemon."""
        join = self.controller.wardmesh("key", "create", "--tag", HOSTS[name])
        # The gateway of a host that serves: agentd starts it as a user without rights.
        settings = {"gateway": "nobody"} if name == SERVING else {}
        self.agents[name] = Agent.join(self.hosts[name], join, **settings)
        return self.agents[name]

    def call(self, name: str, url: str, tool: str, *arguments: str) -> dict[str, Any]:
        """What an MCP client on a host says of one call; `arguments` are written NAME=VALUE."""
        client = (str(BIN / "python"), "-m", "deploy.showcase.mcp_client", url, tool, *arguments)
        found: dict[str, Any] = json.loads(self.hosts[name].run(*client, timeout=60).stdout)
        return found

    def wait_until_in_force(self) -> int:
        """Wait until every host's kernel has the newest revision that concerns it; returns the mesh's revision."""

        def settled() -> int:
            status = self.controller.ask(RestClient.status)
            assert status.online == len(self.agents), f"{status.online} hosts are online"
            assert status.behind == 0, f"{status.behind} hosts are behind"
            return status.revision

        return eventually(settled, timeout=60, what="every host's kernel at the newest revision")

    def shell(self, host: Host) -> tuple[dict[str, str], str]:
        """Environment and first line of a shell in which a person types commands on `host`."""
        env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "HOME": str(host.directory)}
        if host is self.admin:
            found = self.controller
            env |= {"WARDMESH_URL": found.url, "WARDMESH_TOKEN": found.token, "WARDMESH_CA": str(found.ca_file)}
        agent = self.agents.get(host.name)
        if agent is None:
            return env, ""
        options = f"--state-dir {agent.state_dir} --config {agent.config}"
        return env, f'agentd() {{ command agentd {options} "$@"; }}'


def mesh_address(agent: Agent) -> str:
    """The host's IPv4 address in the mesh."""
    return next(str(address) for address in agent.status()["addresses"] if "." in address)


def peer_of(agent: Agent, name: str) -> dict[str, Any]:
    """What the agent's kernel knows of one peer. Raises AssertionError while it has no such peer."""
    found: list[dict[str, Any]] = [peer for peer in agent.status()["peers"] if peer["name"] == name]
    assert found, f"{agent.host.name} has no peer {name}"
    return found[0]
