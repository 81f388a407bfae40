"""The daemon under what its systemd unit allows, read from the unit: its capabilities, no root, a read-only system."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.agentd_sandbox import CHECKOUT, Unit
from tests.lab import Host, Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller
from tests.lab.processes import Process

UNIT = CHECKOUT / "deploy" / "systemd" / "agentd.service"
BIN = Path(sys.executable).parent
UID = 64321  # of nobody; systemd would take the user's from sysusers
NET_ADMIN, NET_BIND_SERVICE = 1 << 12, 1 << 10


class Service:
    """`agentd` on a host as the unit runs it."""

    def __init__(self, host: Host, join_string: str) -> None:
        self.host = host
        self._state = host.directory / "state"
        self._state.mkdir(mode=0o700)
        # As on a real host: root joins, in a directory that systemd-tmpfiles gave to the service's user.
        host.run("chown", f"{UID}:{UID}", self._state)
        host.run(BIN / "agentd", "--state-dir", self._state, "join", "-", "--name", host.name, stdin=join_string)
        (command,) = [value.split() for value in [Unit(UNIT).text("ExecStart")]]
        self.process = self.start(BIN / command[0], *command[1:])

    def start(self, *command: str | Path) -> Process:
        """Start something else under the same restrictions."""
        return self.host.start(
            sys.executable, "-m", "tests.kernel.agentd_sandbox", UNIT, self._state, str(UID), *command
        )

    def shell(self, script: str) -> tuple[int, str]:
        """Run a script under the same restrictions."""
        process = self.start("sh", "-c", script)
        return process.wait(), process.output

    def facts(self) -> dict[str, str]:
        """/proc/PID/status of the daemon."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.fixture
def pair() -> Iterator[tuple[Service, Agent]]:
    """A confined daemon and an ordinary one that may talk to each other."""
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(ALLOW_ALL)
        other = Agent.join(lab.host("other", switch), controller.join_string())
        yield Service(lab.host("confined", switch), controller.join_string()), other


def check(pair: tuple[Service, Agent]) -> None:
    """Everything works, and nothing but what is needed is possible."""
    service, other = pair
    service.process.wait_for_line(r"in force revision=", 60)
    facts = service.facts()
    assert facts["Uid"].split() == [str(UID)] * 4
    assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {NET_ADMIN | NET_BIND_SERVICE}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    address = other.status()["addresses"][0]
    eventually(lambda: service.host.run("ping", "-c1", "-W2", address, check=False).returncode == 0, 30)
    service.host.run("nft", "delete", "table", "inet", "wardmesh")
    eventually(lambda: "inet wardmesh" in service.host.run("nft", "list", "tables").stdout, 10)
    for attempt in (
        "touch /etc/x",
        "touch /usr/x",
        f"touch {CHECKOUT}/x",
        "ls /proc/sys/kernel",
        "mount -t tmpfs none /mnt",
        "unshare --net true",
        "kill -0 1",
        "python3 -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'",
        "python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'",
    ):
        code, output = service.shell(attempt)
        assert code != 0, f"{attempt} was possible: {output}"
    asked = service.host.run(BIN / "agentd", "status", check=False)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    assert service.process.stop() == 0
    assert service.host.run("ping", "-c1", "-W2", address, check=False).returncode == 0


def test_the_daemon_works_under_its_unit(pair: tuple[Service, Agent]) -> None:
    check(pair)
    assert pair[1].status()["backend"] == "kernel"


@pytest.mark.host_kernel
def test_the_daemon_works_under_its_unit_without_wireguard_in_the_kernel(pair: tuple[Service, Agent]) -> None:
    """wireguard-go is started by the confined daemon, and inherits what confines it."""
    check(pair)


@pytest.mark.host_kernel
def test_the_sandbox_is_no_wider_than_the_unit() -> None:
    """What the sandbox does not do is left to systemd; a new option in the unit must be looked at here."""
    done = {
        "AmbientCapabilities",
        "CapabilityBoundingSet",
        "ExecStart",
        "Group",
        "MemoryDenyWriteExecute",
        "NoNewPrivileges",
        "PrivateMounts",
        "PrivateTmp",
        "ProcSubset",
        "ProtectHome",
        "ProtectProc",
        "ProtectSystem",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RuntimeDirectory",
        "RuntimeDirectoryMode",
        "StateDirectory",
        "StateDirectoryMode",
        "SystemCallErrorNumber",
        "SystemCallFilter",
        "UMask",
        "User",
    }
    # Cgroups, and what takes away only what the system calls and the capabilities above take away already.
    left = {
        "ConfigurationDirectory",
        "DeviceAllow",
        "DevicePolicy",
        "KillMode",
        "LockPersonality",
        "NotifyAccess",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "RemoveIPC",
        "Restart",
        "RestartSec",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "RuntimeDirectoryPreserve",
        "SystemCallArchitectures",
        "Type",
    }
    lines = UNIT.read_text().partition("[Service]")[2].partition("\n[")[0].splitlines()
    assert {line.partition("=")[0] for line in lines if line and not line.startswith("#")} == done | left


@pytest.mark.host_kernel
def test_systemd_is_asked_which_system_calls_the_unit_allows() -> None:
    allowed = Unit(UNIT).system_calls()
    assert {"openat", "socket", "execve"} <= allowed
    assert not {"mount", "setuid", "bpf", "ptrace", "init_module", "reboot"} & allowed
    assert subprocess.run(["systemd-analyze", "--version"], check=True, capture_output=True).stdout
