"""STUN shares WireGuard's port: what the table does to agentd's probes, and to nothing else.

A plain socket has WireGuard's port here, so this runs on any kernel.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import pytest

from controller.wire.stun import Binding, encode
from tests.kernel.guarded import Guarded, both_families
from tests.kernel.maps import netmap

pytestmark = pytest.mark.host_kernel

WIREGUARD = 51820
PROBES = 51821
# The first bytes of a handshake and of data, with the cookie where a session's index is.
HANDSHAKE = bytes.fromhex("01000000 2112a442") + bytes(140)
DATA = bytes.fromhex("04000000 2112a442") + bytes(40)
STATEFUL = """
table inet distrust {
  chain input {
    type filter hook input priority filter; policy drop;
    ct state established accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    OPENED
  }
}
"""


@dataclass
class Sockets:
    """On the guarded host: WireGuard's and agentd's; on a stranger: one at a port of its own. And their addresses."""

    wireguard: socket.socket
    probes: socket.socket
    stranger: socket.socket
    guarded_at: str
    stranger_at: tuple[str, int]


@contextmanager
def sockets(guarded: Guarded, six: bool) -> Iterator[Sockets]:
    kind = socket.AF_INET6 if six else socket.AF_INET
    own, other = guarded.host.ports[1], guarded.stranger.ports[0]
    with ExitStack() as stack:
        made: list[socket.socket] = []
        for host, port in ((guarded.host, WIREGUARD), (guarded.host, PROBES), (guarded.stranger, 4000)):
            one = stack.enter_context(host.socket(kind, socket.SOCK_DGRAM))
            one.bind(("", port))
            one.settimeout(10)
            made.append(one)
        yield Sockets(
            wireguard=made[0],
            probes=made[1],
            stranger=made[2],
            guarded_at=own.address6 if six else own.address,
            stranger_at=(other.address6 if six else other.address, 4000),
        )


@pytest.fixture
def probing(guarded: Guarded) -> Iterator[Guarded]:
    """The guarded host with agentd's socket in its table."""
    before = guarded.link
    guarded.link = replace(before, probe_port=PROBES)
    guarded.apply(netmap(guarded.member))
    yield guarded
    guarded.link = before
    guarded.apply(netmap(guarded.member))
    guarded.host.run("nft", "delete", "table", "inet", "distrust", check=False)


def request() -> bytes:
    return encode(Binding("request", os.urandom(12)))


@both_families
def test_a_probe_leaves_from_wireguards_port_and_its_answer_comes_to_agentd(probing: Guarded, six: bool) -> None:
    with sockets(probing, six) as at:
        asked = Binding("request", os.urandom(12))
        at.probes.sendto(encode(asked), at.stranger_at)
        data, source = at.stranger.recvfrom(2048)
        assert (data, source[1]) == (encode(asked), WIREGUARD)
        answer = encode(Binding("answer", asked.transaction, mapped="192.0.2.1:9"))
        at.stranger.sendto(answer, source)
        data, source = at.probes.recvfrom(2048)
        assert (data, source[:2]) == (answer, at.stranger_at)


@both_families
def test_a_strangers_request_comes_to_agentd(probing: Guarded, six: bool) -> None:
    with sockets(probing, six) as at:
        sent = request()
        at.stranger.sendto(sent, (at.guarded_at, WIREGUARD))
        assert at.probes.recv(2048) == sent


@both_families
@pytest.mark.parametrize("message", [HANDSHAKE, DATA], ids=["handshake", "data"])
def test_what_is_wireguards_comes_to_wireguard_whatever_its_bytes(probing: Guarded, six: bool, message: bytes) -> None:
    with sockets(probing, six) as at:
        at.stranger.sendto(message, (at.guarded_at, WIREGUARD))
        assert at.wireguard.recv(2048) == message


@both_families
def test_what_is_no_stun_leaves_from_the_port_that_it_has(probing: Guarded, six: bool) -> None:
    with sockets(probing, six) as at:
        at.probes.sendto(b"no STUN, but long enough to be", at.stranger_at)
        assert at.stranger.recvfrom(2048)[1][1] == PROBES


@both_families
def test_a_stateful_firewall_takes_a_probe_and_its_answer_for_wireguards_flow(probing: Guarded, six: bool) -> None:
    probing.host.nft(STATEFUL.replace("OPENED", ""))
    with sockets(probing, six) as at:
        at.wireguard.sendto(HANDSHAKE, at.stranger_at)
        at.stranger.recv(2048)
        sent = request()
        at.stranger.sendto(sent, (at.guarded_at, WIREGUARD))
        assert at.probes.recv(2048) == sent


@both_families
def test_a_firewall_that_opens_wireguards_port_needs_to_open_no_other(probing: Guarded, six: bool) -> None:
    probing.host.nft(STATEFUL.replace("OPENED", f"udp dport {WIREGUARD} counter accept"))
    with sockets(probing, six) as at:
        sent = request()
        at.stranger.sendto(sent, (at.guarded_at, WIREGUARD))
        assert at.probes.recv(2048) == sent


def test_without_a_socket_of_agentds_the_table_rewrites_nothing(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member))
    with sockets(guarded, six=False) as at:
        sent = request()
        at.stranger.sendto(sent, (at.guarded_at, WIREGUARD))
        assert at.wireguard.recv(2048) == sent
