"""Real daemons and a real controller: tunnels come up, stay up whatever the controller does, and go when told to."""

import ipaddress
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.kernel.daemons import Mesh, answers, command, mesh_address, reboot, status
from tests.lab import eventually

LARGEST_RESIDENT = 80 * 1024  # KiB


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
