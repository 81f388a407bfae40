"""Packets that must not pass whatever the rules say: no TCP or UDP, false addresses, other ways into the host.

The mesh link is a cable here, so this runs on any kernel.
"""

import socket
import struct
from functools import partial

import pytest

from tests.kernel import packets
from tests.kernel.guarded import SENDER, Guarded, both_families, family, pairs, raw
from tests.kernel.maps import MESH, allow, everything, netmap
from tests.kernel.nodes import listening
from tests.lab import eventually

pytestmark = pytest.mark.host_kernel

# --- what is no TCP or UDP --------------------------------------------------------------------------------------------

ODD = {"sctp": 132, "dccp": 33, "udplite": 136, "gre": 47, "esp": 50, "ah": 51}


@both_families
def test_no_other_protocol_passes_a_port_rule(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = pairs(guarded)[six]
    numbers = {**ODD, "tunnel4": 4, "tunnel6": 41}
    before = guarded.counters()
    with raw(guarded.sender, 0, six=six, header=True) as outlet:
        for number in numbers.values():
            # The bytes where TCP and UDP have their ports are those of an allowed flow.
            data = packets.udp(theirs, own, 4000, 443, b"payload")
            outlet.sendto(packets.ip(theirs, own, number, data), (own, 0))
    eventually(lambda: guarded.counters()["denied/in"] - before["denied/in"] >= len(numbers))
    after = guarded.counters()
    assert {name: after[name] for name in after if name.startswith("grant/")} == {
        name: before[name] for name in before if name.startswith("grant/")
    }


@pytest.mark.parametrize("header", [0, 60, 43], ids=["hop-by-hop", "destination options", "routing"])
def test_no_packet_with_an_extension_header_passes(guarded: Guarded, header: int) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = SENDER.address6, guarded.member.address6
    chain = packets.extension(socket.IPPROTO_UDP)
    if header == 43:  # type 253 is for experiments (RFC 3692), none left: a host skips it (RFC 8200 section 4.4)
        chain = bytes((socket.IPPROTO_UDP, 0, 253, 0, 0, 0, 0, 0))
    with (
        raw(guarded.sender, 0, six=True, header=True) as outlet,
        guarded.host.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server,
    ):
        server.bind((own, 443))
        server.settimeout(10)
        hidden = packets.udp(theirs, own, 4000, 443, b"hidden")
        outlet.sendto(packets.ip(theirs, own, header, chain + hidden), (own, 0))
        plain = packets.udp(theirs, own, 4000, 443, b"plain")
        outlet.sendto(packets.ip(theirs, own, socket.IPPROTO_UDP, plain), (own, 0))
        assert server.recv(100) == b"plain"
    assert guarded.counters()["denied/in"] >= 1


def test_a_datagram_in_fragments_is_judged_whole(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("in", "udp", 443)]))
    for theirs, own in pairs(guarded):
        with (
            guarded.host.socket(family(own), socket.SOCK_DGRAM) as server,
            guarded.sender.socket(family(own), socket.SOCK_DGRAM) as client,
        ):
            server.bind((own, 443))
            server.settimeout(10)
            client.bind((theirs, 0))
            client.sendto(b"f" * 5000, (own, 444))
            client.sendto(b"t" * 5000, (own, 443))
            assert server.recv(6000) == b"t" * 5000


@both_families
def test_a_lone_fragment_whose_bytes_look_like_ports_does_not_pass(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = pairs(guarded)[six]
    udp = socket.IPPROTO_UDP
    with raw(guarded.sender, 0, six=six, header=True) as outlet, raw(guarded.host, udp, six=six) as inlet:
        data = packets.udp(theirs, own, 4000, 443, b"fragment")
        if six:
            lone = packets.ip(theirs, own, 44, packets.lone_fragment(udp, 7) + data)
        else:
            lone = packets.ip(theirs, own, udp, data, fragment=100)
        outlet.sendto(lone, (own, 0))
        whole = packets.udp(theirs, own, 4000, 443, b"whole")
        outlet.sendto(packets.ip(theirs, own, udp, whole), (own, 0))
        assert inlet.recv(100).endswith(b"whole")


@both_families
def test_an_icmp_error_about_a_flow_that_never_was_does_not_pass(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = pairs(guarded)[six]
    never = packets.ip(own, theirs, socket.IPPROTO_UDP, packets.udp(own, theirs, 4000, 443, b"never sent"))
    protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
    before = guarded.counters()["denied/in"]
    with raw(guarded.sender, 0, six=six, header=True) as outlet:
        outlet.sendto(packets.ip(theirs, own, protocol, packets.unreachable(theirs, own, never)), (own, 0))
    eventually(lambda: guarded.counters()["denied/in"] == before + 1)


def test_icmp_rules_are_for_echo_alone(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("in", "icmp")]))
    theirs, own = SENDER.address, guarded.member.address
    with raw(guarded.sender, 0, header=True) as outlet, raw(guarded.host, socket.IPPROTO_ICMP) as inlet:
        for kind in (5, 13, 17, 9):  # redirect, timestamp, address mask, router advertisement
            data = struct.pack(">BBHI", kind, 0, 0, 1)
            data = data[:2] + struct.pack(">H", packets.checksum(data)) + data[4:]
            outlet.sendto(packets.ip(theirs, own, socket.IPPROTO_ICMP, data), (own, 0))
        outlet.sendto(packets.ip(theirs, own, socket.IPPROTO_ICMP, packets.echo(theirs, own, 7)), (own, 0))
        assert inlet.recv(100)[20] == packets.ICMP_ECHO


# --- false addresses, other links -------------------------------------------------------------------------------------


@both_families
@pytest.mark.parametrize("case", ["mesh source", "mesh destination"])
def test_a_mesh_address_on_another_link_is_dropped(guarded: Guarded, case: str, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    outside = guarded.host.ports[1]
    own = (
        (guarded.member.address6 if six else guarded.member.address)
        if case == "mesh destination"
        else (outside.address6 if six else outside.address)
    )
    stranger = guarded.stranger.address6 if six else guarded.stranger.address
    theirs = (SENDER.address6 if six else SENDER.address) if case == "mesh source" else stranger
    gateway = outside.address6 if six else outside.address
    guarded.stranger.run("ip", "route", "add", "fd77:7761:7264::/48" if six else "100.64.0.0/16", "via", gateway)
    before = guarded.counters()["denied/spoofed"]
    with (
        guarded.host.socket(family(own), socket.SOCK_DGRAM) as server,
        raw(guarded.stranger, 0, six=six, header=True) as outlet,
    ):
        server.bind((own, 443))
        server.settimeout(10)
        packet = packets.ip(theirs, own, socket.IPPROTO_UDP, packets.udp(theirs, own, 4000, 443, b"false"))
        outlet.sendto(packet, (own, 0))
        eventually(lambda: guarded.counters()["denied/spoofed"] > before)
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(100)


@both_families
def test_a_packet_to_the_mesh_does_not_leave_by_another_link(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    guarded.host.run("ip", "link", "set", "wardmesh0", "down")  # as when the tunnel is away
    prefix, gateway = (MESH.prefix6, guarded.stranger.address6) if six else (MESH.prefix4, guarded.stranger.address)
    guarded.host.run("ip", "route", "add", prefix, "via", gateway)
    theirs = SENDER.address6 if six else SENDER.address
    with guarded.host.socket(family(theirs), socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
        client.sendto(b"in clear", (theirs, 443))
    assert guarded.counters()["denied/leaked"] == 1


@both_families
def test_another_tables_rewriting_does_not_send_a_packet_to_the_mesh_by_another_link(
    guarded: Guarded, six: bool
) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    guarded.host.machine.sysctl("net.ipv6.conf.all.forwarding" if six else "net.ipv4.ip_forward", 1)
    port = guarded.host.ports[1]
    own, stranger, theirs, prefix, word = (
        (port.address6, guarded.stranger.address6, f"[{SENDER.address6}]", MESH.prefix6, "ip6")
        if six
        else (port.address, guarded.stranger.address, SENDER.address, MESH.prefix4, "ip")
    )
    guarded.host.run("ip", "link", "set", "wardmesh0", "down")
    guarded.host.run("ip", "route", "add", prefix, "via", stranger)
    guarded.host.nft(
        f"""
        table inet containers {{
          chain prerouting {{
            type nat hook prerouting priority dstnat
            udp dport 443 dnat {word} to {theirs}:443
          }}
        }}
        """
    )
    with guarded.stranger.socket(family(own), socket.SOCK_DGRAM) as client:
        client.sendto(b"in clear", (own, 443))
    eventually(lambda: guarded.counters()["denied/leaked"] == 1)


@both_families
def test_an_address_of_the_host_that_is_not_the_meshs_is_out_of_reach(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = pairs(guarded)[six]
    port = guarded.host.ports[1]
    outside = port.address6 if six else port.address
    guarded.sender.run("ip", "route", "add", outside, "via", own)
    with (
        guarded.host.socket(family(own), socket.SOCK_DGRAM) as server,
        guarded.sender.socket(family(own), socket.SOCK_DGRAM) as client,
    ):
        server.bind(("::" if six else "0.0.0.0", 443))
        server.settimeout(10)
        client.bind((theirs, 0))
        client.sendto(b"around the policy", (outside, 443))
        client.sendto(b"straight", (own, 443))
        assert server.recv(100) == b"straight"


@both_families
def test_only_the_mesh_address_of_the_host_sends_into_the_mesh(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = pairs(guarded)[six]
    port = guarded.host.ports[1]
    with guarded.host.socket(family(own), socket.SOCK_DGRAM) as client:
        client.bind((port.address6 if six else port.address, 0))
        with pytest.raises(PermissionError):
            client.sendto(b"as another", (theirs, 443))
    with guarded.host.socket(family(own), socket.SOCK_DGRAM) as client:
        client.bind((own, 0))
        client.sendto(b"as itself", (theirs, 443))


@both_families
def test_nothing_is_forwarded_into_or_out_of_the_mesh(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = pairs(guarded)[six]
    port = guarded.host.ports[1]
    own_outside, stranger = (
        (port.address6, guarded.stranger.address6) if six else (port.address, guarded.stranger.address)
    )
    beyond = "2001:db8:ffff::1" if six else "203.0.113.254"
    guarded.host.machine.sysctl("net.ipv6.conf.all.forwarding" if six else "net.ipv4.ip_forward", 1)
    guarded.host.run("ip", "route", "add", beyond, "via", theirs)
    guarded.sender.run("ip", "route", "add", stranger, "via", own)
    guarded.stranger.run("ip", "route", "add", beyond, "via", own_outside)

    def dropped(packets: int) -> bool:
        return guarded.counters()["denied/forward"] == packets

    for count, (host, target) in enumerate(((guarded.sender, stranger), (guarded.stranger, beyond)), 1):
        with host.socket(family(own), socket.SOCK_DGRAM) as client:
            client.sendto(b"through", (target, 443))
        eventually(partial(dropped, count))


@both_families
def test_what_a_link_says_to_all_is_dropped_in_silence(guarded: Guarded, six: bool) -> None:
    guarded.apply(netmap(guarded.member, SENDER))
    _, own = pairs(guarded)[six]
    with guarded.host.socket(family(own), socket.SOCK_DGRAM) as client:
        client.bind((own, 0))
        index = guarded.host.call(lambda: socket.if_nametoindex("wardmesh0"))
        if six:
            client.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        else:
            client.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", b"", b"", index))
        before = guarded.counters()["denied/out"]
        with pytest.raises(PermissionError):
            client.sendto(b"hello, all", ("ff02::1" if six else "224.0.0.1", 5353))
    assert guarded.counters()["denied/out"] == before


def test_loopback_and_the_own_address_are_unaffected(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member))
    for address in ("127.0.0.1", "::1", guarded.member.address, guarded.member.address6):
        with listening(guarded.host, address, 8000) as server, guarded.host.socket(family(address)) as client:
            client.settimeout(5)
            client.connect((address, 8000))
            server.accept()[0].close()


def test_other_links_are_unaffected(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member))
    port = guarded.host.ports[1]
    for address in (port.address, port.address6):
        with listening(guarded.host, address, 8000) as server, guarded.stranger.socket(family(address)) as client:
            client.settimeout(5)
            client.connect((address, 8000))
            server.accept()[0].close()
