"""Relays in user space, as real programs on the lab's hosts: coturn with its clients, and the plainest forwarder.

Knows nothing of what is sent through them.
"""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.lab import Host, eventually

__all__ = ["Coturn", "Endpoints", "forwarder", "installed"]

PATIENCE: Final = 30.0  # seconds
INSTALL: Final = Path(__file__).with_name("install")
TURN: Final = 3478
CONFIGURATION: Final = """
lt-cred-mech
user={account}:{account}
realm={account}
listening-ip={address}
relay-ip={address}
listening-port={port}
no-tls
no-dtls
no-cli
verbose
log-file=stdout
userdb={directory}/turn.db
pidfile={directory}/turn.pid
"""
ACCOUNT: Final = "bench"  # turn_client.go has it too
# What the left host's WireGuard sends to, in order to reach the right host, and the right host's for the left one.
Endpoints = tuple[str, str]


def installed() -> Path:
    """Where the programs are; they are installed and built if need be, which needs the network."""
    done = subprocess.run((INSTALL,), check=True, stdout=subprocess.PIPE, text=True)
    return Path(done.stdout.strip())


def forwarder(relay: Host, left: Host, right: Host, port: int) -> Endpoints:
    """Start the forwarder between the WireGuards at `port` of two hosts."""
    relay.start(installed() / "forwarder", "7000", left.address, "7001", right.address, str(port))
    return f"{relay.address}:7000", f"{relay.address}:7001"


class Coturn:
    """A coturn, and TURN clients in user space before the WireGuards at `port` of other hosts."""

    def __init__(self, relay: Host, port: int) -> None:
        self.relay = relay
        self.port = port
        self.client = installed() / "turn_client"
        configuration = relay.directory / "turnserver.conf"
        configuration.write_text(
            CONFIGURATION.format(account=ACCOUNT, address=relay.address, port=TURN, directory=relay.directory)
        )
        self.server = relay.start("turnserver", "-c", configuration)
        eventually(self._listens, PATIENCE, what="coturn, listening")

    def _listens(self) -> bool:
        return bool(self.relay.run("ss", "-Hlun", f"sport = :{TURN}").stdout)

    @contextmanager
    def one_client(self, left: Host, right: Host) -> Iterator[Endpoints]:
        """An address that coturn relays for the left host; the right host's WireGuard sends to it by itself."""
        with self._allocated(left) as (endpoint, relayed, talk_to):
            talk_to(f"{right.address}:{self.port}")
            yield endpoint, relayed

    @contextmanager
    def two_clients(self, left: Host, right: Host) -> Iterator[Endpoints]:
        """An address for each host, and a client on each: both talk to nothing but coturn's own port."""
        with (
            self._allocated(left) as (of_left, left_relayed, left_talks_to),
            self._allocated(right) as (of_right, right_relayed, right_talks_to),
        ):
            left_talks_to(right_relayed)
            right_talks_to(left_relayed)
            yield of_left, of_right

    @contextmanager
    def _allocated(self, host: Host) -> Iterator[tuple[str, str, Callable[[str], object]]]:
        """The endpoint that is the host's client, the address that is relayed for it, and how to tell it its peer."""
        peer = host.directory / "peer"
        os.mkfifo(peer)
        client = host.start(self.client, f"{self.relay.address}:{TURN}", f"127.0.0.1:{self.port}", peer)
        try:
            relayed = client.wait_for_line(r"^relayed (\S+)$")[1]
            yield client.wait_for_line(r"^endpoint (\S+)$")[1], relayed, peer.write_text
        finally:
            client.stop()
            peer.unlink()

    def channels_bound(self) -> int:
        """How many channels clients have bound (RFC 8656 section 12) so far.

        What a client sends through one are no Send indications, which cost more.
        """
        return self.server.output.count("CHANNEL_BIND processed, success")
