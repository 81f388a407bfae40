"""A relay's kernel passes sealed packets on between hosts whom policy connects, and nothing else."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest
from cryptography.exceptions import InvalidTag

from controller.wire.netmap import Netmap
from controller.wire.relays import Relay, relay_prefix
from tests.kernel.maps import MESH, Member, netmap, with_relays
from tests.kernel.nodes import Node
from tests.kernel.noise import INITIATION, initiator
from tests.lab import Lab, eventually

_ALL_PROTOCOLS = 3  # ETH_P_ALL, linux/if_ether.h
_PAYLOAD = 48  # after the headers of IPv6 and UDP
DATA = b"\x04\x00\x00\x00"


def behind(relay: Member, member: Member) -> str:
    """The place of a member behind a relay, as an endpoint."""
    place = Relay(relay.name, "here", relay.address6, relay_prefix(MESH, relay.address6)).place((member.address6,))
    return f"[{place}]:51820"


class Relayed:
    """Hosts that only a relay can bring together: each behind a NAT that knows nobody else. And the relay."""

    def __init__(self, lab: Lab, *names: str) -> None:
        internet = lab.switch("internet")
        self.relay = Node(lab.host("relay", internet), 1, "kernel")
        self.relay.host.run("sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
        self.hosts = []
        for number, name in enumerate(names, 2):
            home = lab.switch(f"home-{name}")
            lab_host = lab.host(name, home)
            lab.nat(f"nat-{name}", inside=home, outside=internet, random_ports=True)
            self.hosts.append(Node(lab_host, number, "kernel"))
        self.members = [replace(host.member, endpoints=()) for host in self.hosts]

    def forward(self, *pairs: tuple[int, int]) -> None:
        """The relay's map: all hosts, and which pairs of them (by position) policy connects."""
        wanted = netmap(self.relay.member, *self.members, rules=())
        between = [(self.members[one], self.members[other]) for one, other in pairs]
        self.relay.apply(with_relays(wanted, self.relay.member, between=between))

    def map_of(self, position: int, *others: int) -> Netmap:
        """A host's map in which these others are found behind the relay."""
        peers = [
            replace(self.members[other], endpoints=(behind(self.relay.member, self.members[other]),))
            for other in others
        ]
        return with_relays(netmap(self.members[position], *peers), self.relay.member)

    def meet(self, *pairs: tuple[int, int]) -> None:
        """Each two have each other as peers, whatever the relay's map says."""
        for position, host in enumerate(self.hosts):
            others = [other for pair in pairs if position in pair for other in pair if other != position]
            host.apply(self.map_of(position, *others))

    def reaches(self, one: int, other: int, *, wait: float = 2) -> bool:
        host, member = self.hosts[one], self.members[other]
        return host.ping(member.address, wait=wait) and host.ping(member.address6, wait=wait)

    def connect(self) -> None:
        """Left and right alone, by policy and by their maps."""
        self.forward((0, 1))
        self.meet((0, 1))
        eventually(lambda: self.reaches(0, 1), 30, what="a ping through the relay")

    def end(self) -> None:
        for node in (*self.hosts, self.relay):
            node.end()


@pytest.fixture(scope="module")
def three() -> Iterator[Relayed]:
    with Lab() as lab, ExitStack() as ending:
        relayed = Relayed(lab, "left", "right", "other")
        ending.callback(relayed.end)
        yield relayed


def counted(relay: Node) -> dict[str, int]:
    listed = json.loads(relay.host.run("nft", "-j", "list", "counters", "table", "inet", "wardmesh").stdout)
    found = (item["counter"] for item in listed["nftables"] if "counter" in item)
    return {counter["name"]: counter["packets"] for counter in found}


def test_hosts_behind_symmetric_nats_reach_each_other_through_the_relays_kernel(three: Relayed) -> None:
    three.connect()
    assert three.reaches(1, 0)
    assert counted(three.relay)["relayed"] > 0
    assert three.relay.peer(three.members[0]).rx_bytes > 0
    assert three.hosts[0].plan() == []
    assert three.relay.plan() == []


def test_the_relay_passes_nothing_between_hosts_whom_policy_does_not_connect(three: Relayed) -> None:
    three.connect()
    three.meet((0, 1), (0, 2))  # the hosts believe otherwise
    before = counted(three.relay)["denied/forward"]
    assert not three.reaches(0, 2, wait=0.5)
    assert counted(three.relay)["denied/forward"] > before


def test_what_ends_in_policy_ends_at_the_relay_with_its_next_packet(three: Relayed) -> None:
    three.connect()
    three.forward()
    assert not three.reaches(0, 1, wait=0.5)
    three.forward((1, 0))
    eventually(lambda: three.reaches(0, 1), 30, what="a ping through the relay again")


def test_the_relay_passes_only_what_looks_like_wireguard_and_only_by_udp(three: Relayed) -> None:
    three.connect()
    left, right = three.hosts[:2]
    left.host.run("nft", "delete", "table", "inet", "wardmesh")  # a host that does not keep to what is agreed
    place = behind(three.relay.member, three.members[1]).partition("]")[0].strip("[")
    before = counted(three.relay)
    assert not left.ping(place, wait=0.5)
    with left.host.socket(10, 2) as sock:
        sock.sendto(b"\x05\x00\x00\x00 no message of WireGuard's", (place, 51820))
    eventually(lambda: counted(three.relay)["denied/forward"] >= before["denied/forward"] + 2, 10, what="both denied")
    assert counted(right)["denied/in"] == 0


def test_large_transfers_fit_into_the_tunnel_in_the_tunnel_without_fragments(three: Relayed) -> None:
    three.connect()
    left, right = three.hosts[:2]
    for address in (three.members[1].address, three.members[1].address6):
        header = 48 if ":" in address else 28
        assert left.ping(address, "-M", "do", "-s", str(1340 - header))
        assert not left.ping(address, "-M", "do", "-s", str(1341 - header), wait=0.5)
    routes = {str(route) for route in left.observe().routes}
    assert f"{three.members[1].address}/32 src {three.members[0].address} mtu 1340" in routes
    assert right.plan() == []


def test_the_relay_counts_by_pair(three: Relayed) -> None:
    three.connect()
    three.forward((0, 1), (0, 2))
    assert three.reaches(0, 1)
    listed = three.relay.host.run("nft", "list", "set", "inet", "wardmesh", "relayed").stdout
    places = [behind(three.relay.member, member).partition("]")[0].strip("[") for member in three.members]
    assert f"{places[0]} . {places[1]}" in listed
    assert f"{places[1]} . {places[0]}" in listed
    assert places[2] not in listed


def test_a_host_lets_no_packets_but_sealed_ones_through_at_its_place(three: Relayed) -> None:
    three.connect()
    left, right = three.hosts[:2]
    three.relay.host.run("nft", "delete", "table", "inet", "wardmesh")  # a relay that passes everything on
    left.host.run("nft", "delete", "table", "inet", "wardmesh")
    before = counted(right)["denied/in"]
    assert not left.ping(behind(three.relay.member, three.members[1]).partition("]")[0].strip("["), wait=0.5)
    assert counted(right)["denied/in"] > before


def test_the_relay_can_open_nothing_of_what_it_passes_on_with_all_its_keys(three: Relayed) -> None:
    three.connect()
    left, right = three.hosts[:2]
    three.meet()  # and forget each other's session
    with three.relay.host.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)) as tap:
        tap.bind(("wardmesh0", 0))  # behind the relay's own tunnels: all that it can see
        tap.settimeout(10)
        three.meet((0, 1))
        secret = b"a secret of the two"
        eventually(lambda: three.reaches(0, 1), 30, what="a ping through the relay")
        assert left.ping(three.members[1].address, "-p", secret[:16].hex(), "-s", "64")
        seen: list[bytes] = []
        while sum(packet[_PAYLOAD : _PAYLOAD + 4] == DATA for packet in seen) < 4:
            seen.append(tap.recv(65536))
    (first, *_) = [packet[_PAYLOAD:] for packet in seen if packet[_PAYLOAD : _PAYLOAD + 4] == INITIATION]
    assert initiator(first, right.member.private_key) == left.member.public_key
    with pytest.raises(InvalidTag):
        initiator(first, three.relay.member.private_key)
    assert all(secret[:16] not in packet for packet in seen)
