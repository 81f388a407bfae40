"""A service that moves between two hosts under the eyes of its callers, over both backends."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import pytest

from agentd.operations import PeerChange
from agentd.reconcile import Applied
from controller.wire.netmap import AddressSet, Netmap
from tests.kernel.maps import allow, netmap
from tests.kernel.nodes import BACKENDS, Node, on_one_switch
from tests.lab import eventually

SERVICE: Final = ("100.64.50.1", "fd77:7761:7264::50:1")
PORT: Final = 443
# include/uapi/linux/in.h, in6.h
IP_FREEBIND: Final = 15
IPV6_FREEBIND: Final = 78
Holder = Literal["first", "second"]


@dataclass
class Mesh:
    """A caller, and two hosts that may serve; `first` holds the service's addresses at the beginning."""

    caller: Node
    first: Node
    second: Node

    def map_of(self, node: Node, holder: Holder) -> Netmap:
        """What the controller sends `node` while `holder` has the service."""
        held = getattr(self, holder)
        members = [replace(one.member, held=SERVICE if one is held else ()) for one in (node, *self._others(node))]
        if node is self.caller:
            rules = [allow("out", protocol, PORT, peers=["svc:x"]) for protocol in ("tcp", "udp")]
            rules.append(allow("in", "udp", 9000))
        else:
            name = f"node:{self.caller.member.name}"
            rules = [allow("in", protocol, PORT, peers=[name], local=["svc:x"]) for protocol in ("tcp", "udp")]
            rules.append(allow("out", "udp", 9000, peers=[name]))
        wanted = netmap(*members, rules=rules)
        service = AddressSet(name="svc:x", addresses=frozenset(SERVICE))
        return wanted.model_copy(update={"sets": wanted.sets | {"svc:x": service}})

    def _others(self, node: Node) -> list[Node]:
        # Who may serve need not know the others who may.
        return [self.first, self.second] if node is self.caller else [self.caller]

    def move(self, holder: Holder, *nodes: Node) -> list[Applied]:
        """Tell these nodes, in this order, that `holder` has the service."""
        return [node.apply(self.map_of(node, holder)) for node in nodes]


@pytest.fixture(params=BACKENDS)
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    with on_one_switch(request.param, ("caller", "first", "second")) as nodes:
        mesh = Mesh(*nodes)
        mesh.move("first", *nodes)
        yield mesh


def bound(node: Node, address: str, kind: socket.SocketKind) -> socket.socket:
    """A socket bound to the service's address, whether the host holds it now or not, as the gateway's are."""
    six = ":" in address
    opened = node.host.socket(socket.AF_INET6 if six else socket.AF_INET, kind)
    opened.setsockopt(*((socket.IPPROTO_IPV6, IPV6_FREEBIND) if six else (socket.IPPROTO_IP, IP_FREEBIND)), 1)
    opened.bind((address, PORT))
    return opened


@contextmanager
def answering(node: Node, name: bytes) -> Iterator[None]:
    """UDP servers on the service's addresses that answer with a name."""
    ended = threading.Event()

    def serve(server: socket.socket) -> None:
        while not ended.is_set():
            try:
                _, caller = server.recvfrom(100)
                server.sendto(name, caller)
            except OSError:
                continue  # nobody asked, or the answer was refused: the address is not held

    with ExitStack() as stack:
        threads = []
        for address in SERVICE:
            server = stack.enter_context(bound(node, address, socket.SOCK_DGRAM))
            server.settimeout(0.1)
            threads.append(threading.Thread(target=serve, args=(server,)))
            threads[-1].start()
        try:
            yield
        finally:
            ended.set()
            for thread in threads:
                thread.join()


def who_answers(caller: Node, address: str) -> bytes | None:
    """The name of who answers for the service's address, None when nobody does."""
    with caller.host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(1)
        client.connect((address, PORT))
        return asked(client)


def answered_by(caller: Node, address: str, name: str) -> bool:
    return who_answers(caller, address) == name.encode()


@contextmanager
def both_answer(mesh: Mesh) -> Iterator[None]:
    with answering(mesh.first, b"first"), answering(mesh.second, b"second"):
        for address in SERVICE:
            eventually(partial(answered_by, mesh.caller, address, "first"))
        yield


def test_a_service_moves_to_the_other_host_and_back(mesh: Mesh) -> None:
    with both_answer(mesh):
        for holder in ("second", "first", "second"):
            mesh.move(holder, mesh.first, mesh.second, mesh.caller)
            for address in SERVICE:
                # The first packet to a host makes the tunnel, which may take a repetition.
                eventually(partial(answered_by, mesh.caller, address, holder))
        assert mesh.caller.plan() == mesh.first.plan() == mesh.second.plan() == []


def test_a_move_costs_a_caller_one_write_and_no_table(mesh: Mesh) -> None:
    (applied,) = mesh.move("second", mesh.caller)
    assert all(isinstance(operation, PeerChange) for operation in applied.operations)
    assert (applied.messages, applied.nft_transactions) == (1, 0)


def test_callers_that_heard_of_a_move_late_reach_nobody_by_their_old_map(mesh: Mesh) -> None:
    with both_answer(mesh):
        mesh.move("second", mesh.first, mesh.second)
        for address in SERVICE:
            assert who_answers(mesh.caller, address) is None
        mesh.move("second", mesh.caller)
        for address in SERVICE:
            eventually(partial(answered_by, mesh.caller, address, "second"))


def test_what_an_old_holder_says_from_the_address_does_not_reach_the_callers(mesh: Mesh) -> None:
    mesh.move("second", mesh.second, mesh.caller)
    with answering(mesh.second, b"second"), mesh.caller.host.socket(kind=socket.SOCK_DGRAM) as client:
        client.bind((mesh.caller.member.address, 9100))
        client.settimeout(1)
        client.connect((SERVICE[0], PORT))
        eventually(lambda: asked(client) == b"second")
        # It has not heard of the move, and is hostile: without a table, from the port of the caller's live flow.
        mesh.first.host.nft("delete table inet wardmesh")
        with bound(mesh.first, SERVICE[0], socket.SOCK_DGRAM) as thief:
            for _ in range(3):
                thief.sendto(b"stolen", (mesh.caller.member.address, 9100))
            assert asked(client) == b"second"


def asked(client: socket.socket) -> bytes | None:
    """What a connected client hears next; None when it is nothing."""
    client.send(b"who?")
    try:
        return client.recv(100)
    except (TimeoutError, ConnectionRefusedError):
        return None


def test_a_live_flow_ends_with_the_move_and_a_new_one_begins_at_the_new_holder(mesh: Mesh) -> None:
    for address in SERVICE:
        mesh.move("first", mesh.second, mesh.first, mesh.caller)
        with ExitStack() as stack:
            servers = [
                stack.enter_context(bound(node, address, socket.SOCK_STREAM)) for node in (mesh.first, mesh.second)
            ]
            for server in servers:
                server.listen()
                server.settimeout(10)
            old = connected(stack, mesh.caller, address)
            accepted = stack.enter_context(servers[0].accept()[0])
            old.sendall(b"before")
            assert accepted.recv(100) == b"before"
            mesh.move("second", mesh.first, mesh.second, mesh.caller)
            old.sendall(b"after")  # reaches the new holder, which knows of no such flow
            with pytest.raises(ConnectionResetError):
                old.recv(100)
            new = connected(stack, mesh.caller, address)
            reached = stack.enter_context(servers[1].accept()[0])
            new.sendall(b"again")
            assert reached.recv(100) == b"again"


def connected(stack: ExitStack, caller: Node, address: str) -> socket.socket:
    client = stack.enter_context(caller.host.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    client.settimeout(10)
    client.connect((address, PORT))
    return client


def test_a_host_that_holds_a_service_speaks_from_its_own_address(mesh: Mesh) -> None:
    for own, target in (
        (mesh.first.member.address, mesh.caller.member.address),
        (mesh.first.member.address6, mesh.caller.member.address6),
    ):
        family = socket.AF_INET6 if ":" in own else socket.AF_INET
        with (
            mesh.caller.host.socket(family, socket.SOCK_DGRAM) as server,
            mesh.first.host.socket(family, socket.SOCK_DGRAM) as client,
        ):
            server.settimeout(10)
            server.bind((target, 9000))
            client.sendto(b"hello", (target, 9000))
            assert server.recvfrom(100)[1][0] == own


def test_a_held_address_that_somebody_removes_is_back(mesh: Mesh) -> None:
    with mesh.first.watching() as reasons:

        def more_than(before: int) -> bool:
            return len(reasons) > before

        for address, length in zip(SERVICE, (32, 128), strict=True):
            before = len(reasons)
            mesh.first.host.run("ip", "address", "del", f"{address}/{length}", "dev", "wardmesh0")
            eventually(partial(more_than, before))
            assert f"add address {address}/{length} to be held" in reasons[-1]
        assert mesh.first.plan() == []
