"""Real daemons and a real controller: tunnels come up, stay up whatever the controller does, and go when told to."""

import ipaddress
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agentd.errors import AgentError
from agentd.local_api import Status, StatusRequest
from agentd.local_client import ask
from tests.lab import Host, Lab, Switch, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

serial = itertools.count(1)
LARGEST_RESIDENT = 80 * 1024  # KiB


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


@pytest.fixture(scope="module")
def shared() -> Iterator[Mesh]:
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(ALLOW_ALL)
        left, right = (Agent.join(lab.host(name, switch), controller.join_string()) for name in ("left", "right"))
        yield Mesh(lab, switch, controller, left, right)


@pytest.fixture
def mesh(shared: Mesh) -> Mesh:
    shared.heal()
    return shared


@pytest.fixture
def guest(shared: Mesh) -> Iterator[Host]:
    """A third host, which has not joined; what joined from it is gone afterwards."""
    host = shared.lab.host(f"guest{next(serial)}", shared.switch)
    yield host
    for process in host.processes:
        process.kill()
    host.run("ip", "link", "del", "wardmesh0", check=False)
    if host.name in shared.names():
        shared.delete(host.name)


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
    node = json.loads((agent.state_dir / "node.json").read_text())
    return next(address for address in node["addresses"] if (":" in address) == (family == 6))


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


@pytest.mark.parametrize("family", [4, 6])
def test_ping_and_tcp_go_through_the_tunnel(mesh: Mesh, family: int) -> None:
    address = mesh_address(mesh.right, family)
    mesh.left.host.run("ping", "-c", "3", "-W", "5", address)
    server = mesh.right.host.start(
        "nc", "-l", "-N", *(["-6"] if family == 6 else []), address, "7000", stdin="hello from the right\n"
    )
    eventually(lambda: ":7000" in mesh.right.host.run("ss", "-Hltn").stdout)
    heard = mesh.left.host.run("nc", "-N", "-w", "5", address, "7000").stdout
    assert heard == "hello from the right\n"
    assert server.wait() == 0
    (peer,) = status(mesh.left)["peers"]
    assert peer["handshake_age"] is not None
    assert peer["received"] > 0
    assert sum(status(mesh.left)["accepted"].values()) > 0
    assert "packets" in mesh.left.run("status")


def test_the_status_tells_what_is(mesh: Mesh) -> None:
    told = status(mesh.left)
    assert told["map"] == "current"
    assert told["in_force"] == told["desired"] == mesh.controller.node("left").in_force
    assert told["firewall"]
    assert told["controller"]["phase"] == "streaming"
    assert told["controller"]["error"] is None
    assert told["endpoints"][0] == f"{mesh.left.host.address}:51820"
    assert not any("100." in endpoint for endpoint in told["endpoints"])
    for word in ("left", "connected to https://", "in force", "right"):
        assert word in mesh.left.run("status")
    assert mesh.left.run("status", "--diff").strip() == "nothing: the kernel is as it should be"
    assert "right" in mesh.left.run("peers")


def test_what_is_denied_is_listed(mesh: Mesh) -> None:
    target = str(ipaddress.ip_network(status(mesh.left)["prefixes"][0])[-2])  # nobody's
    with mesh.left.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
        client.sendto(b"x", (target, 9))
    eventually(lambda: f"-> {target}  udp:9" in mesh.left.run("denied"), what="the denial")
    assert any(item["port"] == 9 for item in json.loads(mesh.left.run("denied", "--json"))["denied"])
    assert status(mesh.left)["denied"]["out"] >= 1
    # The controller hears of it soon, or, when it has just heard of another, a minute later.
    eventually(lambda: f"-> {target}  udp:9" in mesh.controller.wardmesh("audit", "denied"), 90, what="the audit")
    assert status(mesh.left)["notices"] == []


def test_whois_names_the_peer_and_the_host_itself(mesh: Mesh) -> None:
    found = json.loads(mesh.left.run("whois", mesh_address(mesh.right), "--json"))
    assert (found["name"], found["fqdn"], found["is_self"]) == ("right", "right.mesh.internal", False)
    assert found["node"] == mesh.controller.node("right").id
    assert json.loads(mesh.left.run("whois", mesh_address(mesh.left, 6), "--json"))["is_self"]
    refused = mesh.left.host.run(*command(mesh.left), "whois", "192.0.2.200", check=False)
    assert (refused.returncode, "nobody that this host may talk to" in refused.stderr) == (1, True)


def command(agent: Agent) -> list[str]:
    return [*agent.process.command[:-1]]


def test_the_tunnel_stays_while_the_controller_is_away(mesh: Mesh) -> None:
    mesh.controller.process.kill()
    eventually(lambda: status(mesh.left)["controller"]["phase"] != "streaming", what="the loss of the stream")
    assert mesh.reaches()
    told = status(mesh.left)
    assert told["map"] == "saved"
    assert "cannot be reached" in told["controller"]["error"] or "broke" in told["controller"]["error"]
    mesh.controller.restart()
    eventually(lambda: status(mesh.left)["map"] == "current", 90, what="the stream's return")


def test_a_host_that_boots_without_the_controller_has_its_tunnel_back(mesh: Mesh) -> None:
    mesh.controller.process.kill()
    mesh.left.process.kill()
    reboot(mesh.left)
    assert not mesh.reaches(1)
    mesh.left.restart()
    mesh.left.wait_in_force()
    eventually(mesh.reaches, 20, what="the tunnel")
    assert status(mesh.left)["map"] == "saved"


def reboot(agent: Agent) -> None:
    """What a reboot takes: the kernel's state, and processes. The lab's host keeps its cables."""
    link = agent.host.run("ip", "link", "del", "wardmesh0", check=False)
    assert link.returncode == 0, link.stderr
    agent.host.run("nft", "flush", "ruleset")


def test_a_stopped_daemon_leaves_the_tunnel(mesh: Mesh) -> None:
    assert mesh.reaches()
    assert mesh.left.process.stop() == 0
    assert mesh.reaches()
    mesh.left.restart()
    mesh.left.wait_in_force()
    assert mesh.reaches()


def test_an_interrupted_daemon_exits_with_130_and_no_traceback(mesh: Mesh) -> None:
    mesh.left.process.signal(signal.SIGINT)
    assert mesh.left.process.wait() == 130
    assert "Traceback" not in mesh.left.process.output


def test_a_damaged_map_is_set_aside_and_never_applied(mesh: Mesh) -> None:
    mesh.controller.process.kill()
    mesh.left.process.kill()
    saved = mesh.left.state_dir / "netmap.json"
    keys = (mesh.left.state_dir / "wireguard.key").read_bytes()
    damaged = bytearray(saved.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    saved.write_bytes(damaged)
    reboot(mesh.left)
    mesh.left.restart()
    mesh.left.process.wait_for_line("the saved map was damaged")
    eventually(lambda: answers(mesh.left))
    told = status(mesh.left)
    assert (told["map"], told["in_force"], told["peers"]) == ("none", None, [])
    (aside,) = mesh.left.state_dir.glob("netmap.json.damaged-*")
    assert aside.read_bytes() == bytes(damaged)
    assert str(aside) in told["notices"][0]
    mesh.controller.restart()
    mesh.left.wait_in_force()
    eventually(mesh.reaches, 20, what="the tunnel")
    assert (mesh.left.state_dir / "wireguard.key").read_bytes() == keys


def test_peers_have_names(mesh: Mesh) -> None:
    def address() -> str:
        return mesh.left.host.run("getent", "ahostsv4", "right.mesh.internal", check=False).stdout.partition(" ")[0]

    eventually(lambda: address() == mesh_address(mesh.right), 20, what="the peer's name")
    assert "127.0.0.1" in mesh.left.host.run("getent", "ahostsv4", "localhost").stdout


@pytest.mark.parametrize("daemon_runs", [True, False])
def test_leave_leaves_nothing(mesh: Mesh, guest: Host, daemon_runs: bool) -> None:
    before = footprint(guest)
    agent = Agent.join(guest, mesh.controller.join_string())
    assert footprint(guest) != before
    if not daemon_runs:
        agent.process.stop()
    agent.run("leave")
    if daemon_runs:
        assert agent.process.wait() == 0
        assert "administrator" not in agent.process.output
    assert footprint(guest) == before
    assert not agent.state_dir.exists()
    assert guest.name not in mesh.names()


def test_leave_without_the_controller_needs_force(mesh: Mesh) -> None:
    mesh.controller.process.kill()
    refused = mesh.left.host.run(*command(mesh.left), "leave", check=False)
    assert refused.returncode == 1
    assert "the controller was not told, so nothing was removed" in refused.stderr
    assert "--force" in refused.stderr
    assert mesh.reaches()
    forced = mesh.left.host.run(*command(mesh.left), "leave", "--force")
    assert "still lists this node" in forced.stderr
    assert mesh.left.process.wait() == 0
    assert not mesh.left.state_dir.exists()


def test_a_second_daemon_is_refused(mesh: Mesh, tmp_path: Path) -> None:
    same = mesh.left.host.run(*command(mesh.left), "run", check=False)
    assert (same.returncode, "another agentd" in same.stderr) == (1, True)
    copied = tmp_path / "copy"
    mesh.left.host.run("cp", "-a", mesh.left.state_dir, copied)
    for options, reason in (
        ([], "another agentd on this host owns the link wardmesh0"),
        (["--socket", "/run/other.sock"], "another agentd on this host owns the link wardmesh0"),
    ):
        agentd = mesh.left.process.command[0]
        second = mesh.left.host.run(agentd, "--state-dir", copied, *options, "run", check=False)
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert reason in second.stderr
    assert mesh.reaches()


def test_two_daemons_that_share_a_node_do_not_fight(mesh: Mesh, guest: Host) -> None:
    """A cloned machine: the controller keeps the newer connection, and the older waits for a person."""
    state = guest.directory / "agentd"
    guest.run("cp", "-a", mesh.left.state_dir, state)
    clone = guest.start(mesh.left.process.command[0], "--state-dir", state, "run")
    mesh.left.process.wait_for_line(r"closed the connection \(replaced\)")
    clone.wait_for_line(r"in force revision=")
    told = status(mesh.left)
    assert (told["controller"]["phase"], told["map"]) == ("waiting", "saved")
    clone.stop()


def test_a_taken_link_name_is_named(mesh: Mesh, guest: Host) -> None:
    guest.run("ip", "link", "add", "wardmesh0", "type", "dummy")
    state = guest.directory / "agentd"
    agentd = mesh.left.process.command[0]
    guest.run(agentd, "--state-dir", state, "join", "-", stdin=mesh.controller.join_string())
    process = guest.start(agentd, "--state-dir", state, "run")
    process.wait_for_line("the link name 'wardmesh0' is taken by a dummy link")
    assert "dummy" in guest.run("ip", "-d", "link", "show", "wardmesh0").stdout
    eventually(lambda: mesh.controller.node(guest.name).error is not None, what="the error, seen by the controller")
    guest.run("ip", "link", "del", "wardmesh0")
    process.wait_for_line("in force revision=", 30)
    process.stop()


def test_a_host_that_already_uses_the_meshs_prefix_does_not_join(mesh: Mesh, guest: Host) -> None:
    prefix = status(mesh.left)["prefixes"][0]
    guest.run("ip", "route", "add", prefix, "dev", "eth0")
    agentd = (mesh.left.process.command[0], "--state-dir", guest.directory / "agentd")
    refused = guest.run(*agentd, "join", "-", stdin=mesh.controller.join_string(), check=False)
    assert refused.returncode == 1
    assert f"already reaches {prefix} through eth0" in refused.stderr
    assert not (guest.directory / "agentd").exists()
    assert guest.name not in mesh.names()


def test_a_full_or_read_only_state_directory_costs_no_key(mesh: Mesh, guest: Host) -> None:
    state = guest.directory / "agentd"
    text = mesh.controller.join_string()
    join = (mesh.left.process.command[0], "--state-dir", state, "join", "-")
    state.mkdir()
    guest.run("mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "none", state)
    full = guest.run(*join, stdin=text, check=False)
    assert (full.returncode, full.stderr.count("\n")) == (1, 1)
    assert "the disk is full: free some space and try again" in full.stderr
    assert guest.run("ls", "-A", state).stdout == ""
    guest.run("mount", "-o", "remount,ro", state)
    fixed = guest.run(*join, stdin=text, check=False)
    assert (fixed.returncode, fixed.stderr.count("\n")) == (1, 1)
    assert "the file system is read-only: remount it, or give another --state-dir" in fixed.stderr
    guest.run("umount", state)
    assert guest.name not in mesh.names()
    guest.run(*join, stdin=text)


def test_a_daemon_without_the_capability_says_so_and_ends(mesh: Mesh, guest: Host) -> None:
    agentd = (mesh.left.process.command[0], "--state-dir", guest.directory / "agentd")
    guest.run(*agentd, "join", "-", stdin=mesh.controller.join_string())
    refused = guest.run("setpriv", "--bounding-set=-net_admin", *agentd, "run", check=False)
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "needs CAP_NET_ADMIN: run agentd as root or from its systemd unit" in refused.stderr


def test_systemd_is_told_when_the_tunnel_is_ready(mesh: Mesh, guest: Host) -> None:
    agentd = (mesh.left.process.command[0], "--state-dir", guest.directory / "agentd")
    guest.run(*agentd, "join", "-", stdin=mesh.controller.join_string())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.settimeout(60)
        systemd.bind(str(guest.directory / "notify"))
        process = guest.start(*agentd, "run", env={"NOTIFY_SOCKET": str(guest.directory / "notify")})
        assert systemd.recv(4096).startswith(b"READY=1\nSTATUS=")
        process.wait_for_line("in force revision=")
        process.stop()
        told = [b""]
        while told[-1] != b"STOPPING=1":
            told.append(systemd.recv(4096))
    assert any(b"STATUS=in force revision=" in line for line in told)


def test_a_removed_node_denies_everything_also_after_a_restart(mesh: Mesh) -> None:
    assert mesh.reaches()
    mesh.delete("left")
    mesh.left.process.wait_for_line("removed by an administrator")
    eventually(lambda: status(mesh.left)["map"] == "denied" and status(mesh.left)["peers"] == [])
    assert not mesh.reaches(1)
    mesh.controller.process.kill()
    mesh.left.process.stop()
    mesh.left.restart()
    mesh.left.wait_in_force()
    assert (status(mesh.left)["map"], status(mesh.left)["peers"]) == ("denied", [])


def test_a_node_that_was_removed_while_it_was_away_denies_when_it_is_back(mesh: Mesh) -> None:
    mesh.left.process.kill()
    mesh.delete("left")
    mesh.left.restart()
    mesh.left.process.wait_for_line("removed by an administrator")
    eventually(lambda: status(mesh.left)["map"] == "denied")


def test_a_disabled_node_denies_and_an_enabled_one_is_back(mesh: Mesh) -> None:
    mesh.controller.wardmesh("node", "disable", "left")
    eventually(lambda: status(mesh.left)["map"] == "denied", what="the denial")
    assert not mesh.reaches(1)
    mesh.controller.wardmesh("node", "enable", "left")
    eventually(lambda: status(mesh.left)["map"] == "current", 90, what="the return")
    eventually(mesh.reaches, 20, what="the tunnel")


def test_a_new_key_lets_traffic_go_on(mesh: Mesh) -> None:
    old = status(mesh.left)["public_key"]
    assert mesh.reaches()
    mesh.left.run("rotate-key")
    new = status(mesh.left)["public_key"]
    assert new != old
    eventually(lambda: mesh.controller.node("left").public_key == new)
    eventually(mesh.reaches, 30, what="the tunnel with the new key")
    assert status(mesh.right)["peers"][0]["public_key"] == new
    mesh.left.process.stop()
    mesh.left.restart()
    mesh.left.wait_in_force()
    assert status(mesh.left)["public_key"] == new


def test_a_key_is_not_replaced_while_nobody_could_learn_it(mesh: Mesh) -> None:
    mesh.controller.process.kill()
    eventually(lambda: status(mesh.left)["controller"]["phase"] != "streaming")
    refused = mesh.left.host.run(*command(mesh.left), "rotate-key", check=False)
    assert (refused.returncode, "the controller is away" in refused.stderr) == (1, True)
    assert mesh.reaches()


def test_what_somebody_removes_is_put_back(mesh: Mesh) -> None:
    mesh.left.host.run("nft", "delete", "table", "inet", "wardmesh")
    eventually(lambda: "table inet wardmesh" in mesh.left.host.run("nft", "list", "tables").stdout, 5)
    mesh.left.host.run("ip", "link", "del", "wardmesh0")
    eventually(mesh.reaches, 20, what="the tunnel")
    eventually(lambda: status(mesh.left)["drifts"] >= 2)


def test_a_new_address_is_told_to_the_controller(mesh: Mesh) -> None:
    port = mesh.left.host.readdress()
    eventually(lambda: f"{port.address}:51820" in mesh.controller.node("left").endpoints, what="the new endpoint")
    eventually(mesh.reaches, 30, what="the tunnel from the new address")


def test_nothing_secret_is_in_the_log_or_the_answers(mesh: Mesh) -> None:
    mesh.left.process.stop()
    config = mesh.left.config.read_text()
    mesh.left.config.write_text('log_level = "debug"\n' + config)
    mesh.left.restart()
    mesh.left.wait_in_force()
    mesh.left.run("rotate-key")
    said = mesh.left.process.output + mesh.left.run("status", "--json") + mesh.left.run("status", "--diff")
    said += Path(f"/proc/{mesh.left.process.pid}/cmdline").read_text()
    wireguard = (mesh.left.state_dir / "wireguard.key").read_text().splitlines()[0]
    identity = (mesh.left.state_dir / "identity.key").read_text().splitlines()[1]
    for secret in (wireguard, identity, "wmk_", "wmj1.", "PRIVATE"):
        assert secret not in said


def test_the_daemon_is_small_and_idle(mesh: Mesh) -> None:
    pid = mesh.left.process.pid
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert int(fields["VmRSS"].split()[0]) <= LARGEST_RESIDENT
    used, began = cpu_seconds(pid), time.monotonic()
    eventually(lambda: time.monotonic() - began > 10, 30)
    assert cpu_seconds(pid) - used <= 0.1


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
