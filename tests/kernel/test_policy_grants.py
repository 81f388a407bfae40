"""Temporary grants on real hosts: live flows end with them, also while the controller is away."""

import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

import pytest

from controller.wire.grants import GrantCreate, GrantPatch, TemporaryGrant
from tests.lab import Host, Lab, eventually
from tests.lab.mesh import Agent, Controller

PORT: Final = 7000
SECONDS: Final = 60  # the guest is slow


@dataclass
class Mesh:
    """Two hosts under a policy that allows nothing, and a server on the right one that echoes."""

    controller: Controller
    left: Agent
    right: Agent
    address: str

    def grant(self, ttl: int) -> TemporaryGrant:
        wanted = GrantCreate(from_=("left",), to=("right",), ip=(f"tcp:{PORT}",), ttl=ttl, reason="for a test")
        return self.controller.ask(lambda client: client.create_grant(wanted))

    def flow(self) -> socket.socket:
        """A connection from left to right that works."""
        opened = eventually(self._connected, SECONDS, what="a connection that the grant allows")
        assert opened is not None
        return opened

    def _connected(self) -> socket.socket | None:
        opened = self.left.host.socket(socket.AF_INET, socket.SOCK_STREAM)
        opened.settimeout(2)
        try:
            opened.connect((self.address, PORT))
        except OSError:
            opened.close()
            return None
        return opened

    def rules(self) -> list[int]:
        """How many rules each host has in force."""
        return [agent.status()["rules"] for agent in (self.left, self.right)]

    def peers(self) -> list[int]:
        """How many peers each host has in force."""
        return [len(agent.status()["peers"]) for agent in (self.left, self.right)]

    def is_refused(self) -> bool:
        """True when no new connection comes about."""
        opened = self._connected()
        if opened is not None:
            opened.close()
        return opened is None


def passes(flow: socket.socket) -> bool:
    """True when a byte comes back within some seconds, for which also a slow machine needs a reason."""
    flow.settimeout(5)
    try:
        flow.sendall(b"x")
        return bool(flow.recv(4096))
    except OSError:
        return False


def stops(flow: socket.socket, until: float) -> float:
    """Use the flow until it stops, and return when its last byte came back (seconds since the epoch)."""
    answered = 0.0
    while passes(flow):
        answered = time.time()
        assert answered < until, "the flow outlives its grant"
    return answered


class _Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(4096):
            self.request.sendall(data)


class _EchoServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False  # a flow that was cut never says goodbye


@contextmanager
def echo(host: Host, address: str) -> Iterator[None]:
    """A server on the host that sends back what it gets."""
    server = host.call(lambda: _EchoServer((address, PORT), _Echo))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Lab() as lab:
        net = lab.switch("net")
        controller = Controller.start(lab.host("controller", net))
        left, right = (Agent.join(lab.host(name, net), controller.join_string()) for name in ("left", "right"))
        address = controller.node("right").addresses[0]
        with echo(right.host, address):
            yield Mesh(controller, left, right, address)


def test_a_temporary_grant_that_is_revoked_cuts_the_live_flow(mesh: Mesh) -> None:
    assert mesh.is_refused()
    granted = mesh.grant(3600)
    with closing(mesh.flow()) as flow:
        assert passes(flow)
        mesh.controller.ask(lambda client: client.revoke_grant(granted.id))
        stops(flow, time.time() + SECONDS)
        assert mesh.is_refused()


def test_an_extended_temporary_grant_outlives_its_first_end(mesh: Mesh) -> None:
    granted = mesh.grant(20)
    with closing(mesh.flow()) as flow:
        mesh.controller.ask(lambda client: client.extend_grant(granted.id, GrantPatch(ttl=3600)))
        while time.time() < granted.expires.timestamp() + 1:
            assert passes(flow)
        assert passes(flow)
        assert not mesh.is_refused()
        mesh.controller.ask(lambda client: client.revoke_grant(granted.id))
        stops(flow, time.time() + SECONDS)


def test_a_temporary_grant_ends_with_its_live_flow_while_the_controller_is_dead(mesh: Mesh) -> None:
    granted = mesh.grant(20)
    end = granted.expires.timestamp()
    with closing(mesh.flow()) as flow:
        mesh.controller.process.kill()
        assert passes(flow)
        last = stops(flow, end + 1)  # what was on its way at the end may arrive after it
        assert time.time() >= end
        assert last > 0
    assert mesh.is_refused()
    eventually(lambda: mesh.rules() == [0, 0], SECONDS, what="both hosts drop the rules of the ended grant")

    # A host that starts again takes its saved map, and not what has ended in it.
    mesh.left.process.stop()
    mesh.left.restart()
    mesh.left.wait_in_force()
    assert mesh.is_refused()
    assert mesh.rules() == [0, 0]

    mesh.controller.restart()
    shown = mesh.controller.ask(lambda client: client.grant(granted.id)).value
    assert (shown.state, shown.revoked) == ("ended", None)
    # Nobody was there to say so when it ended: each host still has the other as a peer, and now loses it.
    eventually(lambda: mesh.peers() == [0, 0], SECONDS, what="hosts that no grant connects are no peers")
