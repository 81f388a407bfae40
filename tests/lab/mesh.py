"""The project's own programs on the lab's hosts: a real controller, real agentd daemons, found on $PATH's venv.

The only module of the lab that knows what is being tested.
"""

import json
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx

from controller.client.rest import RestClient
from controller.wire.rest import EnrolmentKeyCreate, Node, PolicyWrite
from tests.lab.processes import Process
from tests.lab.topology import Host

__all__ = ["ALLOW_ALL", "Agent", "Controller"]

T = TypeVar("T")
PORT: Final = 8443
_BIN: Final = Path(sys.executable).parent
START_SECONDS: Final = 60  # the guest is slow while several daemons import their modules
ALLOW_ALL: Final = 'grants:\n  - from: ["*"]\n    to: ["*"]\n    ip: ["tcp:*", "udp:*", "icmp"]\n'


@dataclass(eq=False)
class Controller:
    """`wardmesh-controller serve` on a host, and its administrator's view."""

    host: Host
    url: str
    state_dir: Path
    process: Process
    token: str = field(repr=False)
    ca_file: Path

    @classmethod
    def start(cls, host: Host, *options: str) -> Self:
        """Start a new controller on `host`'s first address, and wait until it serves."""
        url = f"https://{host.address}:{PORT}"
        state_dir = host.directory / "controller"
        process = _serve(host, url, state_dir, options)
        token = process.wait_for_line(r"(wma_\S+)").group(1)
        ca_file = host.directory / "ca.pem"
        with host.enter():
            # Whom to trust is what we are asking, on a network that is ours alone.
            ca_file.write_text(httpx.get(f"{url}/ca.pem", verify=False).raise_for_status().text)
        return cls(host, url, state_dir, process, token, ca_file)

    def restart(self, *options: str) -> None:
        """Start it again with the state it left; it must have ended."""
        assert not self.process.running
        self.process = _serve(self.host, self.url, self.state_dir, options)

    def ask(self, question: Callable[[RestClient], T]) -> T:
        """Ask over REST, as the administrator, from the controller's own host."""
        tls = ssl.create_default_context(cafile=str(self.ca_file))
        with self.host.enter(), RestClient(self.url, self.token, tls) as client:
            return question(client)

    def wardmesh(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        """Run the `wardmesh` command on the controller's host; returns what it printed."""
        env = {"WARDMESH_URL": self.url, "WARDMESH_TOKEN": self.token, "WARDMESH_CA": str(self.ca_file)}
        return self.host.run(_BIN / "wardmesh", *arguments, env=env, stdin=stdin, check=check).stdout

    def join_string(self, *tags: str, uses: int = 1) -> str:
        """A join string for a new node with these tags."""
        key = EnrolmentKeyCreate(tags=tags, uses=uses)
        return self.ask(lambda client: client.create_enrolment_key(key)).join

    def put_policy(self, text: str) -> int:
        """Replace the policy; returns its revision."""
        return self.ask(lambda client: client.put_policy(PolicyWrite(text=text), client.policy().etag)).revision

    def node(self, name: str) -> Node:
        """The node of that name, as the controller sees it now."""
        return self.ask(lambda client: client.find_node(name)).value


@dataclass(eq=False)
class Agent:
    """`agentd` on a host: joined, and running while `process` is."""

    host: Host
    state_dir: Path
    config: Path
    process: Process

    @classmethod
    def join(cls, host: Host, join_string: str, *, name: str | None = None, **settings: Any) -> Self:
        """Join the mesh and run the daemon; returns when a map is in force. `settings` go to the configuration file."""
        state_dir, config = host.directory / "agentd", host.directory / "agentd.toml"
        # JSON's strings, numbers and lists are TOML's.
        config.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items()))
        command = _agentd(state_dir, config)
        host.run(*command, "join", "-", "--name", name or host.name, stdin=join_string, timeout=START_SECONDS)
        agent = cls(host, state_dir, config, host.start(*command, "run"))
        agent.wait_in_force()
        return agent

    def run(self, *arguments: str, check: bool = True) -> str:
        """Run an `agentd` command on this host; returns what it printed."""
        return self.host.run(*_agentd(self.state_dir, self.config), *arguments, check=check).stdout

    def complaint(self, *arguments: str) -> str:
        """What an `agentd` command that fails prints to standard error."""
        done = self.host.run(*_agentd(self.state_dir, self.config), *arguments, check=False)
        assert done.returncode == 1, done
        return done.stderr

    def status(self) -> dict[str, Any]:
        """`agentd status --json`, whatever its exit code says."""
        status: dict[str, Any] = json.loads(self.run("status", "--json", check=False))
        return status

    def streams(self) -> bool:
        """Whether it has its stream from the controller."""
        return bool(self.status()["controller"]["phase"] == "streaming")

    def restart(self) -> None:
        """Run the daemon again; it must have ended. Returns at once: the controller may be away."""
        assert not self.process.running
        self.process = self.host.start(*_agentd(self.state_dir, self.config), "run")

    def wait_in_force(self, timeout: float = START_SECONDS, after: int = 0) -> int:
        """Wait until a map is in force; returns its revision. `after` as in `Process.wait_for_line`."""
        return int(self.process.wait_for_line(r"in force revision=(\d+)", timeout, after).group(1))


def _serve(host: Host, url: str, state_dir: Path, options: tuple[str, ...]) -> Process:
    listen = f"{host.address}:{PORT}"
    command = (_BIN / "wardmesh-controller", "serve", "--state-dir", state_dir, "--listen", listen, "--url", url)
    process = host.start(*command, *options)
    process.wait_for_line(r"ready https://", START_SECONDS)
    return process


def _agentd(state_dir: Path, config: Path) -> tuple[str | Path, ...]:
    # Its socket stays where it is by default: every host of the lab has a /run of its own.
    return (_BIN / "agentd", "--state-dir", state_dir, "--config", config)
