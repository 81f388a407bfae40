"""A mesh with a service: two hosts that serve it through their gateways, one that may call it, one that may not.

tools1's gateway is agentd's child; tools2's is a process of its own, as the systemd unit's is.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from controller.wire.call_records import CallEntry
from controller.wire.services import MeshService, ServiceMove
from tests.lab import Host, Lab, Switch, eventually
from tests.lab.mesh import Agent, Controller
from tests.lab.processes import Process

__all__ = ["TLS_URL", "URL", "Caller", "Tools", "World", "lines"]

URL: Final = "http://github.mesh.internal/mcp"
TLS_URL: Final = "https://github.mesh.internal/mcp"
SLOW: Final = 60.0  # seconds that anything may take in a guest with one CPU, on a machine that has other things to do
CLIENT: Final = (sys.executable, "-m", "tests.kernel.gateway_client")
GATEWAY: Final = Path(sys.executable).parent / "wardmesh-gateway"


def lines(output: str) -> list[dict[str, Any]]:
    """What a client printed, without the progress of its calls."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return [line for line in found if "progress" not in line]


@dataclass(eq=False)
class Tools:
    """A host with an MCP server of its own, that may serve it to the mesh."""

    agent: Agent
    server: Process
    gateway: Process | None = None  # None: agentd's child

    @classmethod
    def start(cls, host: Host, controller: Controller, *, own_gateway: bool) -> Self:
        settings = {} if own_gateway else {"gateway": "nobody"}
        agent = Agent.join(host, controller.join_string("tag:tools"), **settings)
        tools = cls(agent, _server(host))
        if own_gateway:
            tools.start_gateway()
        return tools

    @property
    def name(self) -> str:
        return self.agent.host.name

    def start_server(self) -> None:
        self.server = _server(self.agent.host)

    def start_gateway(self) -> None:
        state = self.agent.host.directory / "gateway"
        self.gateway = self.agent.host.start(GATEWAY, "--state-dir", state)

    def die(self) -> None:
        """As a host does that loses power: nothing says goodbye."""
        self.agent.host.unplug()
        self.agent.process.kill()
        if self.gateway is not None:
            self.gateway.kill()

    def revive(self) -> None:
        self.agent.host.plug()
        self.agent.restart()
        if self.gateway is not None:
            self.start_gateway()

    def gateway_process(self) -> int:
        """The process id of its gateway; raises AssertionError while there is none."""
        gateway = self.agent.status()["gateway"]
        assert gateway is not None
        assert len(gateway["processes"]) == 1
        return int(gateway["processes"][0])


def _server(host: Host) -> Process:
    return host.start(sys.executable, "-m", "tests.kernel.gateway_server")


@dataclass(eq=False)
class Caller:
    """A host with a client."""

    agent: Agent

    @staticmethod
    def command(*steps: str, mode: str = "auto", again: bool = False, url: str = URL) -> tuple[str, ...]:
        return (*CLIENT, "--mode", mode, *(("--again",) if again else ()), url, *steps)

    def start(self, *steps: str, mode: str = "auto", again: bool = False) -> Process:
        return self.agent.host.start(*self.command(*steps, mode=mode, again=again))

    def call_over_tls(self, *steps: str, ca: Path | None) -> list[dict[str, Any]]:
        """As `call`, by the service's https URL, trusting `ca` alone; None: whom this machine trusts."""
        env = {} if ca is None else {"SSL_CERT_FILE": str(ca)}
        return lines(self.agent.host.run(*self.command(*steps, url=TLS_URL), env=env, timeout=SLOW).stdout)

    def call(self, *steps: str, mode: str = "auto") -> list[dict[str, Any]]:
        """What became of each step, after the protocol version. Raises AssertionError when the client failed."""
        return lines(self.agent.host.run(*self.command(*steps, mode=mode), timeout=SLOW).stdout)


@dataclass(eq=False)
class World:
    """All of it. Starting it is what a test costs most: tests share it, and leave it whole."""

    lab: Lab
    switch: Switch
    controller: Controller
    tools: tuple[Tools, Tools]
    caller: Caller
    outsider: Caller
    policy: str

    @classmethod
    @contextmanager
    def with_policy(cls, policy: str) -> Iterator[Self]:
        with Lab() as lab:
            switch = lab.switch("net")
            controller = Controller.start(lab.host("controller", switch))
            controller.put_policy(policy)
            first, second = (
                Tools.start(lab.host(name, switch), controller, own_gateway=name == "tools2")
                for name in ("tools1", "tools2")
            )
            agents = [
                Agent.join(lab.host(name, switch), controller.join_string(tag))
                for name, tag in (("caller", "tag:agents"), ("outsider", "tag:visitors"))
            ]
            world = cls(lab, switch, controller, (first, second), Caller(agents[0]), Caller(agents[1]), policy)
            world.wait_whole()
            yield world

    def service(self) -> MeshService:
        return self.controller.ask(lambda client: client.service("github"))

    def wait_whole(self) -> None:
        """Wait until both hosts could serve, and the caller gets an answer from the one that does."""
        eventually(self._is_whole, SLOW, interval=0.3, what="two hosts that could serve, and one that does")
        eventually(lambda: self.answers("add"), SLOW, interval=0.5, what="a call by name")

    def _is_whole(self) -> bool:
        service = self.service()
        return service.healthy and all(host.healthy for host in service.hosts) and len(service.hosts) == 2

    def can_serve(self, tools: Tools) -> bool:
        """True when the host could answer calls, as the controller heard from it."""
        return any(host.healthy for host in self.service().hosts if host.name == tools.name)

    def answers(self, tool: str) -> bool:
        ran = self.caller.agent.host.run(*CLIENT, URL, f'{tool} {{"a": 1, "b": 2}}', check=False, timeout=SLOW)
        return ran.returncode == 0

    def is_held_by(self, tools: Tools) -> bool:
        return self.holder() is tools

    def holder(self) -> Tools:
        """Who holds the service, as the controller says."""
        name = self.service().holder
        return next(tools for tools in self.tools if tools.name == name)

    def other(self) -> Tools:
        """Who does not."""
        return next(tools for tools in self.tools if tools is not self.holder())

    def move(self, to: Tools) -> None:
        self.controller.ask(lambda client: client.move_service("github", ServiceMove(node=to.name)))

    def put_policy(self, text: str) -> None:
        self.controller.put_policy(text)

    def calls(self, caller: str, **filters: str) -> list[CallEntry]:
        """What is on record of a node's calls, newest first."""
        filters["caller"] = self.controller.node(caller).id
        return self.controller.ask(lambda client: list(client.calls(filters)))

    def recorded(self, what: Callable[[CallEntry], bool], caller: str = "caller", **filters: str) -> list[CallEntry]:
        """Wait until such records are with the controller."""
        return eventually(
            lambda: [entry for entry in self.calls(caller, **filters) if what(entry)],
            SLOW,
            interval=0.3,
            what="records of calls",
        )
