"""Paths are found over bad networks, and a TCP stream through the tunnel outlives every way of moving."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kernel.finders import Finder, finders, introduce, place
from tests.kernel.nodes import listening
from tests.lab import Lab, eventually

PORT = 7000


def test_paths_through_two_nats_are_found_while_packets_are_lost_late_reordered_and_doubled() -> None:
    with finders("port", "port") as (left, right):
        for finder in (left, right):
            finder.host.impair(delay_ms=50, jitter_ms=30, loss_percent=5, duplicate_percent=5)
        left.meet(right)
        right.meet(left)
        eventually(lambda: left.works_directly(right) and right.works_directly(left), 60, what="a path")
        eventually(lambda: left.reaches(right), 60, what="an answer through the tunnel")


@contextmanager
def stream(left: Finder, right: Finder) -> Iterator[Callable[[], None]]:
    """A TCP connection from left to right; yields what sends on it and waits until that has come.

    Outside of the tunnel it is IPv4, which is what the tests change.
    """
    right.be_at(f"{right.host.address}:51820")
    left.meet(right)
    right.meet(left)
    eventually(lambda: left.works_directly(right) and left.reaches(right), 60, what="a path")
    with listening(right.host, right.member.address, PORT) as server, left.host.socket() as client:
        client.settimeout(60)
        client.connect((right.member.address, PORT))
        connection, _ = server.accept()
        with connection:
            connection.settimeout(60)

            def carry() -> None:
                for sender, receiver in ((client, connection), (connection, client)):
                    sender.sendall(b"still here")
                    assert receiver.recv(10, socket.MSG_WAITALL) == b"still here"

            carry()
            yield carry


def test_a_stream_outlives_another_address_of_its_host() -> None:
    with finders("public", "firewall") as (left, right), stream(left, right) as carry:
        new = left.host.readdress()
        # As its agentd does by way of the controller: the other's firewall lets in only whom its host has asked.
        eventually(lambda: left.has_address(new.address), what="the host to notice")
        left.describe()
        right.meet(left)
        carry()
        assert any(each in right.heard_from(left) for each in (new.address, new.address6))


def test_a_stream_outlives_a_change_of_its_hosts_interface() -> None:
    with Lab() as lab:
        internet = lab.switch("internet")
        hosts = [lab.host(name, internet) for name in ("left", "right")]
        with introduce(lab, internet, *hosts) as (left, right), stream(left, right) as carry:
            new = lab.connect(left.host, internet)
            left.host.run("ip", "link", "set", "eth0", "down")
            carry()
            assert any(each in right.heard_from(left) for each in (new.address, new.address6))


def test_a_stream_outlives_another_public_address_of_its_hosts_nat() -> None:
    with Lab() as lab:
        internet = lab.switch("internet")
        hosts = [place(lab, internet, kind, name) for kind, name in (("port", "left"), ("public", "right"))]
        with introduce(lab, internet, *hosts) as (left, right), stream(left, right) as carry:
            new = lab.hosts["nat-left"].readdress(internet).address
            carry()
            assert new in right.heard_from(left)


def test_a_stream_outlives_a_nat_that_forgets_and_gives_another_port() -> None:
    with Lab() as lab:
        internet = lab.switch("internet")
        hosts = [place(lab, internet, kind, kind) for kind in ("port", "public")]
        with introduce(lab, internet, *hosts) as (left, right), stream(left, right) as carry:
            nat = lab.hosts["nat-port"]
            link = nat.port(internet).link
            nat.nft(
                "flush chain inet nat postrouting\n"
                f"add rule inet nat postrouting oifname {link} meta l4proto udp masquerade to :20000-30000\n"
            )
            # What was masqueraded as an address that goes is forgotten (nf_nat_masquerade.c).
            address = f"{nat.port(internet).address}/{internet.network.prefixlen}"
            for change in ("del", "add"):
                nat.run("ip", "address", change, address, "dev", link)
            carry()
            assert ":51820" not in right.heard_from(left)
