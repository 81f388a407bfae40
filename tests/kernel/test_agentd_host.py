"""A real daemon and its host: it leaves nothing behind, shares nothing, and says in one sentence what it lacks."""

import socket
from pathlib import Path

import httpx
import pytest

from tests.kernel.daemons import Mesh, command, footprint, status
from tests.lab import Host, eventually
from tests.lab.mesh import Agent


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


def test_metrics_are_told_where_the_configuration_says_and_cost_little(mesh: Mesh) -> None:
    config = mesh.left.config.read_text()
    mesh.left.process.stop()
    mesh.left.config.write_text('metrics = "127.0.0.1:9586"\n' + config)
    mesh.left.restart()
    mesh.left.wait_in_force()
    eventually(mesh.is_whole, 60, what="two hosts that see each other")
    assert mesh.reaches(5)
    with mesh.left.host.enter():
        answer = httpx.get("http://127.0.0.1:9586/metrics").raise_for_status()
    told = status(mesh.left)
    found = dict(line.rsplit(" ", 1) for line in answer.text.splitlines() if not line.startswith("#"))
    assert float(found["wardmesh_agentd_revision_in_force"]) == told["in_force"]
    assert float(found["wardmesh_agentd_connected"]) == 1
    assert float(found['wardmesh_agentd_peers{handshake="3m"}']) == 1
    assert float(found["wardmesh_agentd_accepted_packets_total"]) > 0
    assert float(found['wardmesh_agentd_applies_total{outcome="done"}']) >= 1
    assert not [secret for secret in ("right", told["public_key"], told["peers"][0]["id"]) if secret in answer.text]
    resident = Path(f"/proc/{mesh.left.process.pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    assert int(resident) <= 80 * 1024  # KiB
    mesh.left.process.stop()
    mesh.left.config.write_text(config)
    mesh.left.restart()
    mesh.left.wait_in_force()
