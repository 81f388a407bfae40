"""Two hosts with real daemons, and their controller: mended between tests, because building them anew costs most."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentd.errors import AgentError
from agentd.local_api import Status, StatusRequest
from agentd.local_client import ask
from tests.lab import Host, Lab, Switch, eventually
from tests.lab.mesh import Agent, Controller

_guests = itertools.count(1)


@dataclass
class Mesh:
    """A controller and two hosts that may talk to each other. Starting it is what a test costs most: all share it."""

    lab: Lab
    switch: Switch
    controller: Controller
    left: Agent
    right: Agent

    def reaches(self, seconds: int = 2) -> bool:
        """True when a ping from left to right is answered."""
        ping = self.left.host.run("ping", "-c", "1", "-W", str(seconds), mesh_address(self.right), check=False)
        return ping.returncode == 0

    def heal(self) -> None:
        """Undo what a test did to the controller and to the left host; the right one nobody touches."""
        if not self.controller.process.running:
            self.controller.restart()
        if not self._is_member():
            self.left.host.run(*command(self.left), "leave", "--force", check=False)
            self.left.process.kill()
            if "left" in self.names():
                self.delete("left")
            self.left = Agent.join(self.left.host, self.controller.join_string())
        elif not self.left.process.running or status(self.left)["map"] != "current":
            self.left.process.stop()  # and start: it would come back by itself, but in its own time
            self.left.restart()
            self.left.wait_in_force()
        eventually(self.is_whole, 60, what="two hosts that see each other")

    def _is_member(self) -> bool:
        saved = self.left.state_dir / "netmap.json"
        return "left" in self.names() and saved.exists() and json.loads(saved.read_text())["resume"]

    def delete(self, name: str) -> None:
        """Remove the node, as an administrator does."""
        self.controller.ask(lambda client: client.delete_node(client.find_node(name).value.id))

    def names(self) -> set[str]:
        """The nodes that the controller knows."""
        return {node.name for node in self.controller.ask(lambda client: list(client.nodes()))}

    def is_whole(self) -> bool:
        """True when both hosts have the other's present key, from the controller."""
        left, right = status(self.left), status(self.right)
        return all(
            one["map"] == "current" and [peer["public_key"] for peer in one["peers"]] == [other["public_key"]]
            for one, other in ((left, right), (right, left))
        )


def next_guest() -> str:
    """A name that no other host of this run has."""
    return f"guest{next(_guests)}"


def status(agent: Agent) -> dict[str, Any]:
    """What `agentd status --json` prints, without starting a program for it."""
    answer = agent.host.call(lambda: ask(Path("/run/wardmesh/agentd.sock"), StatusRequest(), Status))
    return dict(json.loads(answer.model_dump_json()))


def answers(agent: Agent) -> bool:
    """True once the daemon answers questions."""
    try:
        return bool(status(agent))
    except AgentError:
        return False


def mesh_address(agent: Agent, family: int = 4) -> str:
    """The address that the host was given when it joined."""
    node = json.loads((agent.state_dir / "node.json").read_text())
    addresses: list[str] = node["addresses"]
    return next(address for address in addresses if (":" in address) == (family == 6))


def footprint(host: Host) -> str:
    """Everything on a host that a daemon could leave behind."""
    questions = (
        "ip -o link",
        "ip -o address",
        "ip route show table all",
        "ip -6 route show table all",
        "ip rule",
        "nft list ruleset",
        "cat /etc/hosts",
    )
    answers = [
        host.run("sh", "-c", f"{question} | sed 's/ \\(valid_lft\\|expires\\).*//' | sort").stdout
        for question in questions
    ]
    answers.append(host.run("find", "/run", "-mindepth", "1").stdout)
    return "\n".join(answers)


def command(agent: Agent) -> list[str]:
    """agentd with the options that this daemon was started with."""
    return [*agent.process.command[:-1]]


def reboot(agent: Agent) -> None:
    """What a reboot takes: the kernel's state, and processes. The lab's host keeps its cables."""
    link = agent.host.run("ip", "link", "del", "wardmesh0", check=False)
    assert link.returncode == 0, link.stderr
    agent.host.run("nft", "flush", "ruleset")
