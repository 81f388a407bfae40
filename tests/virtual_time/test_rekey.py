"""A kernel tunnel over an hour: WireGuard makes new session keys every two minutes and loses no packet over it."""

import subprocess

from tests.lab import Host, Lab, eventually

# Rekey-After-Time of the WireGuard paper, section 6.1; the initiator makes a new session with the next packet.
REKEY_SECONDS = 120
PORT = 51820


def wireguard(host: Host, address: str, key: str) -> None:
    host.run("ip", "link", "add", "wg0", "type", "wireguard")
    host.run("wg", "set", "wg0", "listen-port", str(PORT), "private-key", "/dev/stdin", stdin=key)
    host.run("ip", "address", "add", f"{address}/32", "dev", "wg0")
    host.run("ip", "link", "set", "wg0", "up")


def peer(host: Host, other: Host, address: str, key: str) -> None:
    public = subprocess.run(["wg", "pubkey"], input=key, text=True, capture_output=True, check=True).stdout.strip()
    host.run("wg", "set", "wg0", "peer", public, "allowed-ips", f"{address}/32", "endpoint", f"{other.address}:{PORT}")
    host.run("ip", "route", "add", f"{address}/32", "dev", "wg0")


def last_handshake(host: Host) -> int:
    return int(host.run("wg", "show", "wg0", "latest-handshakes").stdout.split()[1])


def test_an_hour_of_traffic_makes_a_session_every_two_minutes_and_loses_nothing() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        a, b = lab.host("a", net), lab.host("b", net)
        keys = [subprocess.run(["wg", "genkey"], text=True, capture_output=True, check=True).stdout for _ in "ab"]
        wireguard(a, "198.51.100.1", keys[0])
        wireguard(b, "198.51.100.2", keys[1])
        peer(a, b, "198.51.100.2", keys[1])
        peer(b, a, "198.51.100.1", keys[0])

        handshakes = set()
        ping = a.start("ping", "-n", "-i", "10", "-c", "360", "198.51.100.2")

        def finished() -> bool:
            handshakes.add(last_handshake(a))
            return not ping.running

        eventually(finished, timeout=3700, interval=5)
        assert " 360 received, 0% packet loss" in ping.output
        sessions = len(handshakes - {0})
        assert 3600 / (REKEY_SECONDS + 10) - 1 <= sessions <= 3600 / REKEY_SECONDS + 1
