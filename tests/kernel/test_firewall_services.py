"""What our table does to packets for a service's addresses, held or not, and to those of the host's own beside them.

The mesh link is a cable here, so this runs on any kernel.
"""

import socket
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Final

import pytest

from controller.wire.netmap import AddressSet, Netmap, Rule
from tests.kernel import packets
from tests.kernel.guarded import SENDER, Guarded, both_families, family, pairs, raw
from tests.kernel.maps import Member, allow, netmap
from tests.kernel.nodes import listening
from tests.lab import Host, eventually

pytestmark = pytest.mark.host_kernel
SERVICE: Final = ("100.64.50.1", "fd77:7761:7264::50:1")
OTHER_SERVICE: Final = ("100.64.50.2", "fd77:7761:7264::50:2")
SERVICES: Final = {"svc:x": SERVICE, "svc:y": OTHER_SERVICE}


def serving(guarded: Guarded, *rules: Rule, held: Iterable[str] = SERVICE) -> Netmap:
    """A map of the guarded host with both services; it has their addresses on its link, whatever the map says."""
    guarded.has(*SERVICE, *OTHER_SERVICE)
    wanted = netmap(guarded.member, SENDER, rules=rules)
    sets = {name: AddressSet(name=name, addresses=frozenset(addresses)) for name, addresses in SERVICES.items()}
    node = wanted.node.model_copy(update={"held": tuple(held)})
    return wanted.model_copy(update={"node": node, "sets": wanted.sets | sets})


def answers(client: Host, server: Host, address: str, port: int) -> bool:
    """True when a byte goes there and back over TCP."""
    with listening(server, address, port) as listener, client.socket(family(address)) as connection:
        connection.settimeout(0.5)
        try:
            connection.connect((address, port))
        except TimeoutError:
            return False
        connection.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            connection.sendall(b"?")
            assert accepted.recv(1) == b"?"
            accepted.sendall(b"!")
            return connection.recv(1) == b"!"


@pytest.mark.parametrize("ports", [443, (440, 450)], ids=["port", "range"])
def test_a_rule_for_a_service_opens_its_held_addresses_and_no_other(
    guarded: Guarded, ports: int | tuple[int, int]
) -> None:
    guarded.apply(serving(guarded, allow("in", "tcp", ports, local=["svc:x"]), held=SERVICE + OTHER_SERVICE))
    for address in SERVICE:
        assert answers(guarded.sender, guarded.host, address, 443)
        assert not answers(guarded.sender, guarded.host, address, 22)
    for address in (*OTHER_SERVICE, guarded.member.address, guarded.member.address6):
        assert not answers(guarded.sender, guarded.host, address, 443)


def test_a_rule_for_the_host_opens_no_services_address(guarded: Guarded) -> None:
    guarded.apply(serving(guarded, allow("in", "tcp", 443), allow("in", "icmp")))
    for address in SERVICE:
        assert not answers(guarded.sender, guarded.host, address, 443)
        assert not echoes(guarded.sender, address)
    for _, own in pairs(guarded):
        assert answers(guarded.sender, guarded.host, own, 443)
        assert echoes(guarded.sender, own)


def test_an_address_that_is_not_held_is_closed_whatever_the_rules_say(guarded: Guarded) -> None:
    guarded.apply(serving(guarded, allow("in", "tcp", 443, local=["svc:x"]), allow("in", "tcp", 443), held=()))
    before = guarded.counters()["denied/in"]
    for address in SERVICE:
        assert not answers(guarded.sender, guarded.host, address, 443)
    assert guarded.counters()["denied/in"] > before


def test_a_host_opens_nothing_from_a_services_address(guarded: Guarded) -> None:
    guarded.apply(serving(guarded, allow("out", "udp"), allow("in", "udp", local=["svc:x"])))
    for (theirs, own), address in zip(pairs(guarded), SERVICE, strict=True):
        for source in (address, own):
            with guarded.host.socket(family(address), socket.SOCK_DGRAM) as client:
                client.bind((source, 0))
                with nullcontext() if source == own else pytest.raises(PermissionError):
                    client.sendto(b"?", (theirs, 443))


def echoes(client: Host, address: str) -> bool:
    return client.run("ping", "-n", "-c1", "-W0.5", address, check=False).returncode == 0


def test_a_service_answers_echo_where_a_rule_says_so(guarded: Guarded) -> None:
    guarded.apply(serving(guarded, allow("in", "icmp", local=["svc:x"]), held=SERVICE + OTHER_SERVICE))
    for address in SERVICE:
        assert echoes(guarded.sender, address)
    for address in (*OTHER_SERVICE, guarded.member.address, guarded.member.address6):
        assert not echoes(guarded.sender, address)


@both_families
def test_icmp_errors_about_a_services_flow_pass_both_ways(guarded: Guarded, six: bool) -> None:
    guarded.apply(serving(guarded, allow("in", "udp", 443, local=["svc:x"])))
    address, theirs = SERVICE[six], pairs(guarded)[six][0]
    with guarded.sender.socket(family(address), socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind((theirs, 4000))
        client.connect((address, 443))
        client.send(b"nobody listens there")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)
        with guarded.host.socket(family(address), socket.SOCK_DGRAM) as server:
            server.settimeout(5)
            server.bind((address, 443))
            client.send(b"hello")
            assert server.recv(100) == b"hello"
            client.close()
            server.connect((theirs, 4000))
            server.send(b"the caller has gone")
            with pytest.raises(ConnectionRefusedError):
                server.recv(100)


@both_families
def test_no_other_protocol_reaches_a_service(guarded: Guarded, six: bool) -> None:
    rules = [allow("in", protocol, local=["svc:x"]) for protocol in ("tcp", "udp", "icmp")]
    guarded.apply(serving(guarded, *rules))
    address, theirs = SERVICE[six], pairs(guarded)[six][0]
    datagram = packets.udp(theirs, address, 4000, 443, b"payload")
    with raw(guarded.sender, 0, six=six, header=True) as outlet:
        sent = 0
        for number in (4, 33, 41, 47, 50, 51, 132, 136):
            outlet.sendto(packets.ip(theirs, address, number, datagram), (address, 0))
            sent += 1
        if six:
            chain = packets.extension(socket.IPPROTO_UDP)
            outlet.sendto(packets.ip(theirs, address, 60, chain + datagram), (address, 0))
            sent += 1
    eventually(lambda: guarded.counters()["denied/in"] == sent)
    assert not any(count for name, count in guarded.counters().items() if name.startswith("grant/"))


@both_families
def test_a_service_that_moves_away_takes_its_live_flows_with_it(guarded: Guarded, six: bool) -> None:
    rules = [allow("in", "tcp", 443, local=["svc:x"], grant="web"), allow("in", "tcp", 22, grant="shell")]
    guarded.apply(serving(guarded, *rules))
    address, own = SERVICE[six], pairs(guarded)[six][1]
    with (
        listening(guarded.host, address, 443) as served,
        listening(guarded.host, own, 22) as kept,
        guarded.sender.socket(family(address)) as client,
        guarded.sender.socket(family(address)) as shell,
    ):
        for connection, target in ((client, (address, 443)), (shell, (own, 22))):
            connection.settimeout(5)
            connection.connect(target)
        (flow, _), (other, _) = served.accept(), kept.accept()
        with flow, other:
            counted = guarded.counters()["grant/web"]
            assert counted > 0
            guarded.apply(serving(guarded, *rules, held=()))
            denied = guarded.counters()
            client.sendall(b"after the move")
            eventually(lambda: guarded.counters()["denied/in"] > denied["denied/in"])
            flow.settimeout(0.3)
            with pytest.raises(TimeoutError):
                flow.recv(100)
            # The other way, too: nothing more is said from the address.
            flow.sendall(b"still here")
            eventually(lambda: guarded.counters()["denied/out"] > denied["denied/out"])
            assert guarded.counters()["grant/web"] == counted  # kept over the change, and nothing passed since
            shell.sendall(b"unaffected")
            assert other.recv(100) == b"unaffected"


def test_a_move_is_one_transaction_of_elements(guarded: Guarded) -> None:
    rules = [allow("in", "tcp", 443, local=["svc:x"]), allow("in", "tcp", 22)]
    guarded.apply(serving(guarded, *rules, held=()))
    before, transactions = guarded.listing(), guarded.firewall.transactions
    guarded.apply(serving(guarded, *rules))
    guarded.apply(serving(guarded, *rules, held=()))
    assert guarded.firewall.transactions - transactions == 2
    assert guarded.listing() == before


@both_families
def test_a_services_address_on_another_link_is_a_false_one(guarded: Guarded, six: bool) -> None:
    guarded.apply(serving(guarded, allow("in", "udp", 443, local=["svc:x"])))
    address = SERVICE[six]
    port = guarded.host.ports[1]
    gateway, stranger = (port.address6, guarded.stranger.address6) if six else (port.address, guarded.stranger.address)
    guarded.stranger.run("ip", "route", "add", address, "via", gateway)
    before = guarded.counters()["denied/spoofed"]
    with guarded.stranger.socket(family(address), socket.SOCK_DGRAM) as client:
        client.bind((stranger, 0))
        client.sendto(b"around the tunnel", (address, 443))
        eventually(lambda: guarded.counters()["denied/spoofed"] > before)


def test_a_host_reaches_what_a_peer_serves_without_reaching_the_peer(guarded: Guarded) -> None:
    far = ("100.64.60.1", "fd77:7761:7264::60:1")
    guarded.sends_as(Member(0, address=far[0], address6=far[1]))
    wanted = netmap(guarded.member, SENDER, rules=[allow("out", "tcp", 443, peers=["svc:far"])])
    service = AddressSet(name="svc:far", addresses=frozenset(far))
    guarded.apply(wanted.model_copy(update={"sets": wanted.sets | {"svc:far": service}}))
    for address, (theirs, _) in zip(far, pairs(guarded), strict=True):
        assert answers(guarded.host, guarded.sender, address, 443)
        assert not answers(guarded.host, guarded.sender, theirs, 443)
