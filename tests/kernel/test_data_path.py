"""Packets through the tunnel, over both backends: the scenarios of the kernel's own WireGuard selftest, netns.sh."""

import socket
import threading
from collections.abc import Iterator

import pytest

from agentd.operations import PeerChange
from tests.kernel.maps import Member, netmap
from tests.kernel.nodes import BACKENDS, Backend, Node, listening, on_one_switch, pair
from tests.lab import Host, eventually


@pytest.fixture(params=BACKENDS)
def nodes(request: pytest.FixtureRequest) -> Iterator[tuple[Node, Node]]:
    with pair(request.param) as two:
        yield two


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def exchange(client: Host, server: Host, address: str, payload: bytes) -> bytes:
    """Send over TCP and return what arrived."""
    with listening(server, address, 8000) as listener, client.socket(family(address)) as connection:
        connection.settimeout(10)
        connection.connect((address, 8000))

        def send() -> None:
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            received = b"".join(iter(lambda: accepted.recv(65536), b""))
        sender.join()
        return received


def test_hosts_reach_each_other_over_ipv4_and_ipv6(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    for target in (right.member.address, right.member.address6):
        assert left.ping(target)
    for target in (left.member.address, left.member.address6):
        assert right.ping(target)


def test_tcp_carries_a_megabyte_over_ipv4_and_ipv6(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    payload = bytes(range(256)) * 4096
    assert exchange(left.host, right.host, right.member.address, payload) == payload
    assert exchange(left.host, right.host, right.member.address6, payload) == payload


def test_packets_longer_than_the_tunnel_arrive_in_fragments(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address, "-s", "5000")
    assert left.ping(right.member.address6, "-s", "5000")


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_tunnel_runs_over_ipv6(backend: Backend) -> None:
    with pair(backend, over=6) as (left, right):
        assert left.ping(right.member.address)
        assert left.ping(right.member.address6)
        endpoint = left.peer(right).endpoint
        assert endpoint is not None
        assert endpoint.address == right.host.address6


def test_transfer_counters_are_exact(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)  # handshake and first keepalive are behind us

    def counters() -> tuple[int, int, int, int]:
        sent, received = left.peer(right), right.peer(left)
        return sent.tx_bytes, sent.rx_bytes, received.tx_bytes, received.rx_bytes

    eventually(lambda: counters()[0] == counters()[3] and counters()[1] == counters()[2])
    before = counters()
    left.host.run("ping", "-n", "-c", "10", "-i", "0.02", "-s", "1000", right.member.address)
    # IPv4 20 + ICMP 8 + 1000 bytes, padded to a multiple of 16, and 32 bytes of WireGuard's header and tag.
    length = 1040 + 32
    assert [after - old for after, old in zip(counters(), before, strict=True)] == [10 * length] * 4


def test_a_peer_is_followed_when_its_address_changes(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)
    with left.watching():
        new = left.host.readdress()
        eventually(lambda: left.ping(right.member.address, wait=1))
    endpoint = right.peer(left).endpoint
    assert endpoint is not None
    assert endpoint.address == new.address
    assert right.ping(left.member.address)
    assert right.plan() == []  # the map's old hint does not bring it back


def test_a_peer_is_followed_when_its_port_changes(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)
    left.restart(listen_port=4242)
    left.meet(right)
    assert left.ping(right.member.address)
    endpoint = right.peer(left).endpoint
    assert endpoint is not None
    assert endpoint.port == 4242
    assert right.ping(left.member.address)


def test_a_packet_from_an_address_of_another_peer_never_arrives(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    other = Member(3)
    right.meet(left, other)
    # The sender is hostile: it has no table of ours, and the other peer's address.
    left.host.nft("delete table inet wardmesh")
    left.host.run("ip", "address", "add", f"{other.address}/32", "dev", "wardmesh0")
    with right.host.socket(kind=socket.SOCK_DGRAM) as server, left.host.socket(kind=socket.SOCK_DGRAM) as thief:
        server.bind((right.member.address, 9000))
        server.settimeout(10)
        thief.bind((other.address, 0))
        for _ in range(3):
            thief.sendto(b"stolen", (right.member.address, 9000))
        with left.host.socket(kind=socket.SOCK_DGRAM) as honest:
            honest.bind((left.member.address, 0))
            honest.sendto(b"own", (right.member.address, 9000))
        assert server.recv(100) == b"own"


def test_traffic_continues_after_the_own_key_changed(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)
    left.rekey()
    assert left.observe().device is not None
    right.meet(left)
    assert left.ping(right.member.address)
    assert right.ping(left.member.address6)


def test_a_removed_peer_is_cut_off(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)
    right.meet()
    assert not left.ping(right.member.address, wait=0.5)
    right.meet(left)
    # The other side's session is of no use any more, and it finds that out after 15 s; this side shakes hands at once.
    assert right.ping(left.member.address)
    assert left.ping(right.member.address)


def test_traffic_goes_on_while_the_daemon_restarts(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)
    handshake = left.peer(right).last_handshake
    left.restart()
    assert left.ping(right.member.address)  # nothing has been applied yet
    left.meet(right)
    assert left.ping(right.member.address)
    assert left.peer(right).last_handshake == handshake


def test_route_and_source_address_follow_an_address_change(nodes: tuple[Node, Node]) -> None:
    left, right = nodes
    assert left.ping(right.member.address)
    moved = Member(77, left.member.private_key, left.member.endpoints)
    left.apply(netmap(moved, right.member))
    right.meet(moved)
    with right.host.socket(kind=socket.SOCK_DGRAM) as server, left.host.socket(kind=socket.SOCK_DGRAM) as client:
        server.bind((right.member.address, 9000))
        server.settimeout(10)
        client.sendto(b"hello", (right.member.address, 9000))
        assert server.recvfrom(100)[1][0] == moved.address
    addresses = left.host.run("ip", "address", "show", "dev", "wardmesh0").stdout
    assert moved.address in addresses
    assert f"{left.member.address}/32" not in addresses
    assert left.plan() == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handshake_that_came_too_early_is_begun_anew_when_the_other_is_there(backend: Backend) -> None:
    with on_one_switch(backend, "ab") as (left, right):
        left.meet(right)
        left.ping(right.member.address, wait=0.1)
        eventually(lambda: left.peer(right).tx_bytes > 0, 10, what="the beginning of a handshake")
        right.meet(left)
        left.late.add(right.member.name)
        began = [change.action for change in left.meet(right).operations if isinstance(change, PeerChange)]
        assert began == ["remove", "add", "change"]
        eventually(lambda: left.peer(right).last_handshake > 0, 4, what="a handshake")  # REKEY_TIMEOUT is 5 s
        assert left.plan() == []
