"""What agentd tells systemd-resolved, under agentd's unit and polkit's rule: all three are the real ones."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.agentd_sandbox import CHECKOUT
from tests.kernel.resolved_host import TOOLS
from tests.lab import Host, Lab, eventually
from tests.lab.processes import Process

UNITS = CHECKOUT / "deploy" / "systemd"
RULES = UNITS / "wardmesh.polkit.rules"
UID = 64322
LINK = "wardmesh0"
SLOW = 60.0

pytestmark = pytest.mark.host_kernel  # nothing of it is the kernel's


class Machine:
    """A host with systemd-resolved and a link for the mesh; `rules`: what polkit is told."""

    def __init__(self, host: Host, rules: Path) -> None:
        self.host = host
        host.run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "other0")
        for link in ("other0", LINK):
            host.run("ip", "link", "set", link, "up")
        host.run("ip", "address", "add", "100.80.0.1/32", "dev", LINK)
        self._state = host.directory / "state"
        self._state.mkdir()
        self._daemons = host.start(sys.executable, "-m", "tests.kernel.resolved_host", str(UID), rules)
        self._daemons.wait_for_line("^ready$", SLOW)

    def inside(self, *command: str | Path) -> tuple[str | Path, ...]:
        """The command where systemd-resolved's files are."""
        return "nsenter", "-t", str(self._daemons.pid), "-m", *command

    def resolvectl(self, *arguments: str, user: int = 0) -> tuple[int, str]:
        who = ("setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups")
        done = self.host.run(*self.inside(*who, TOOLS / "resolvectl", *arguments), check=False)
        return done.returncode, done.stdout + done.stderr

    def agentd(self) -> Process:
        """agentd's part in names, confined as its unit says."""
        confined = (
            sys.executable,
            "-m",
            "tests.kernel.agentd_sandbox",
            UNITS / "agentd.service",
            self._state,
            str(UID),
        )
        naming = (sys.executable, "-m", "tests.kernel.naming", LINK, "/run/wardmesh/agentd.sock")
        path = f"{TOOLS}:{os.environ['PATH']}"
        return self.host.start(*self.inside(*confined, *naming), env={"PATH": path}, cwd=CHECKOUT)

    def lookup(self, name: str) -> str:
        return self.host.run(
            "dig", "-r", "@127.0.0.53", "+short", "+time=5", "+tries=1", name, check=False
        ).stdout.strip()


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def host(lab: Lab) -> Host:
    return lab.host("named", lab.switch("net"))


def test_agentd_has_its_link_asked_by_the_rule_alone_and_takes_it_back(lab: Lab) -> None:
    machine = Machine(host(lab), RULES)
    agentd = machine.agentd()
    agentd.wait_for_line(r"systemd-resolved asks 127.0.0.1:5354 about mesh.internal", SLOW)
    eventually(lambda: machine.lookup("github.mesh.internal") == "100.80.1.1", SLOW)
    _, shown = machine.resolvectl("status", LINK)
    assert "DNS Servers: 127.0.0.1:5354" in shown
    assert "DNS Domain: ~mesh.internal" in shown
    assert "-DefaultRoute" in shown
    for refused in (("dns", LINK, "192.0.2.1"), ("domain", LINK, "~."), ("revert", LINK)):
        code, said = machine.resolvectl(*refused, user=65534)
        assert (code, "authentication required" in said) == (1, True), said
    code, said = machine.resolvectl("llmnr", LINK, "yes", user=UID)
    assert code == 1, f"agentd's user may do what it does not need: {said}"
    assert agentd.stop() == 0
    assert "5354" not in machine.resolvectl("status", LINK)[1]


def test_without_the_rule_agentd_says_which_one_is_missing(lab: Lab, tmp_path: Path) -> None:
    agentd = Machine(host(lab), tmp_path / "none").agentd()
    agentd.wait_for_line(r"authentication required.*wardmesh\.polkit\.rules", SLOW)
