"""What our table does to packets, in the kernel. The mesh link is a cable here, so this runs on any kernel."""

import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from controller.wire.netmap import AddressSet, Netmap
from controller.wire.rules import Flow, allowing
from tests.kernel import packets
from tests.kernel.guarded import SENDER, Guarded, guarded_host, raw
from tests.kernel.maps import Member, allow, everything, netmap
from tests.kernel.nodes import listening
from tests.lab import eventually

pytestmark = pytest.mark.host_kernel
OTHER = Member(3)


@pytest.fixture
def guarded() -> Iterator[Guarded]:
    with guarded_host() as host:
        yield host


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def pairs(guarded: Guarded) -> list[tuple[str, str]]:
    """(sender, guarded) addresses of both families."""
    return [(SENDER.address, guarded.member.address), (SENDER.address6, guarded.member.address6)]


# --- kernel and model agree -------------------------------------------------------------------------------------------

MEMBERS = [Member(number) for number in range(2, 8)]
BEACON = Member(200)  # its packets always pass: when they arrive, all before them have been judged
BEACON_RULES = [allow("in", "udp", 7, peers=["beacon"], grant="beacon")]
PORTS = [1, 22, 80, 443, 444, 8000, 65535]


def random_map(rng: random.Random, own: Member, now: int) -> Netmap:
    names = ["tag:a", "tag:b", "tag:c", "node:x"]
    sets = {
        name: AddressSet(
            name=name,
            addresses=frozenset(
                address
                for member in rng.sample(MEMBERS, rng.randint(0, 4))
                for address in rng.sample([member.address, member.address6], rng.randint(1, 2))
            ),
        )
        for name in names
    }
    sets["beacon"] = AddressSet(name="beacon", addresses=frozenset({BEACON.address, BEACON.address6}))
    rules = list(BEACON_RULES)
    for number in range(rng.randint(1, 8)):
        protocol = rng.choice(["tcp", "udp", "icmp"])
        ports = [sorted(rng.choices(PORTS, k=2)) if rng.random() < 0.4 else [rng.choice(PORTS)] for _ in range(2)]
        rules.append(
            allow(
                rng.choice(["in", "out"]),
                protocol,
                *((one[0], one[-1]) for one in ports if protocol != "icmp"),
                peers=rng.sample(names, rng.randint(1, 2)),
                grant=f"g{number}",
                expires=rng.choice([None, None, now - 1, now + 3600]),
            )
        )
    wanted = netmap(own)
    return wanted.model_copy(update={"sets": sets, "rules": {rule.id: rule for rule in rules}})


def send_all(guarded: Guarded, flows: list[Flow]) -> set[int]:
    """Send the first packet of each inbound flow; returns the numbers of those that passed."""
    own = {4: guarded.member.address, 6: guarded.member.address6}
    with ExitStack() as stack:
        outlets, inlets = {}, []
        for six in (False, True):
            icmp = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
            for protocol in (socket.IPPROTO_TCP, socket.IPPROTO_UDP, icmp):
                outlets[six, protocol] = stack.enter_context(raw(guarded.sender, protocol, six=six, header=True))
                inlet = stack.enter_context(raw(guarded.host, protocol, six=six))
                inlet.setblocking(False)
                inlets.append((six, protocol, inlet))
        for number, flow in enumerate([*flows, *_beacons()]):
            six = ":" in flow.peer
            to = own[6 if six else 4]
            if flow.protocol == "tcp":
                protocol, data = (
                    socket.IPPROTO_TCP,
                    packets.tcp_syn(flow.peer, to, 1024 + number, flow.port or 0, number),
                )
            elif flow.protocol == "udp":
                token = struct.pack(">I", number)
                protocol, data = socket.IPPROTO_UDP, packets.udp(flow.peer, to, 1024 + number, flow.port or 0, token)
            else:
                protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
                data = packets.echo(flow.peer, to, number)
            outlets[six, protocol].sendto(packets.ip(flow.peer, to, protocol, data), (to, 0))
        passed: set[int] = set()

        def beacons_are_in() -> bool:
            for six, protocol, inlet in inlets:
                passed.update(_tokens(inlet, protocol, six=six))
            return {len(flows), len(flows) + 1} <= passed

        eventually(beacons_are_in)
        beacons_are_in()  # what was behind a beacon in another socket
        return passed - {len(flows), len(flows) + 1}


def _tokens(inlet: socket.socket, protocol: int, *, six: bool) -> Iterator[int]:
    """The tokens of the packets that are queued."""
    while True:
        try:
            data = inlet.recv(2048)
        except BlockingIOError:
            return
        data = data if six else data[20:]
        at = 8 if protocol == socket.IPPROTO_UDP else 4
        if protocol in {socket.IPPROTO_TCP, socket.IPPROTO_UDP} or data[0] in {packets.ICMP_ECHO, packets.ICMPV6_ECHO}:
            yield int.from_bytes(data[at : at + 4], "big")


def _beacons() -> list[Flow]:
    return [Flow(direction="in", peer=one, protocol="udp", port=7) for one in (BEACON.address, BEACON.address6)]


def begins(guarded: Guarded, flow: Flow, number: int) -> bool:
    """True when the guarded host may send the first packet of an outbound flow."""
    six = ":" in flow.peer
    own = guarded.member.address6 if six else guarded.member.address
    if flow.protocol == "tcp":
        protocol, data = socket.IPPROTO_TCP, packets.tcp_syn(own, flow.peer, 1024 + number, flow.port or 0, number)
    elif flow.protocol == "udp":
        protocol, data = socket.IPPROTO_UDP, packets.udp(own, flow.peer, 1024 + number, flow.port or 0, b"")
    else:
        protocol = socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        data = packets.echo(own, flow.peer, number)
    with raw(guarded.host, protocol, six=six, header=True) as outlet:
        try:
            outlet.sendto(packets.ip(own, flow.peer, protocol, data), (flow.peer, 0))
        except PermissionError:
            return False
    return True


def test_kernel_and_model_agree_on_random_flows(guarded: Guarded) -> None:
    seed = int(os.environ.get("WARDMESH_SEED", random.randrange(1 << 32)))
    rng = random.Random(seed)
    guarded.sends_as(*MEMBERS, BEACON)
    now = int(time.time())
    for _ in range(12):
        wanted = random_map(rng, guarded.member, now)
        guarded.apply(wanted, now - 1000)  # the kernel itself has to see what has ended
        flows = [
            Flow(
                direction=rng.choice(["in", "out"]),
                peer=rng.choice([member.address, member.address6]),
                protocol=(protocol := rng.choice(["tcp", "udp", "icmp"])),
                port=None if protocol == "icmp" else rng.choice(PORTS),
            )
            for member in rng.choices(MEMBERS, k=60)
        ]
        inward = [flow for flow in flows if flow.direction == "in"]
        passed = send_all(guarded, inward)
        for number, flow in enumerate(inward):
            assert (number in passed) == bool(allowing(wanted, flow, now)), f"WARDMESH_SEED={seed} {flow}"
        for number, flow in enumerate(flow for flow in flows if flow.direction == "out"):
            verdict = begins(guarded, flow, 10_000 + number)
            assert verdict == bool(allowing(wanted, flow, now)), f"WARDMESH_SEED={seed} {flow}"


def test_a_change_ends_at_the_same_table_as_a_replacement(guarded: Guarded) -> None:
    seed = int(os.environ.get("WARDMESH_SEED", random.randrange(1 << 32)))
    rng = random.Random(seed)
    for _ in range(15):
        wanted = random_map(rng, guarded.member, 0)
        guarded.apply(wanted)
        changed = guarded.listing()
        ruleset = guarded.ruleset(wanted, 0)
        guarded.call(lambda ruleset=ruleset: guarded.firewall.replace(ruleset))
        assert changed == guarded.listing(), f"WARDMESH_SEED={seed}"


def test_any_name_of_the_policy_can_be_a_name_in_the_table(guarded: Guarded) -> None:
    names = [
        "tag:web",
        "*",
        "log",
        "fwd",
        "Ünï©ode ; drop",
        'quote"',
        "a/b",
        "n" * 300,
        "n" * 299 + "m",
        "_",
        "-",
        "grants[0]",
    ]
    own = frozenset({SENDER.address, SENDER.address6})
    sets = {name: AddressSet(name=name, addresses=own) for name in names}
    rules = [allow("in", "udp", 1000 + n, peers=[name], grant=name) for n, name in enumerate(names)]
    rules.append(allow("in", "udp", (2000, 2100), peers=names, grant="all of them"))
    wanted = netmap(guarded.member)
    guarded.apply(wanted.model_copy(update={"sets": sets, "rules": {rule.id: rule for rule in rules}}))
    for n, name in enumerate(names):
        guarded.apply(
            wanted.model_copy(update={"sets": {name: sets[name]}, "rules": {rule.id: rule for rule in rules}})
        )
        flow = Flow(direction="in", peer=SENDER.address, protocol="udp", port=1000 + n)
        with raw(guarded.host, socket.IPPROTO_UDP) as inlet, raw(guarded.sender, 0, header=True) as outlet:
            data = packets.udp(SENDER.address, guarded.member.address, 4000, flow.port or 0, name.encode())
            outlet.sendto(packets.ip(SENDER.address, guarded.member.address, 17, data), (guarded.member.address, 0))
            assert inlet.recv(1000)[28:] == name.encode()


# --- flows ------------------------------------------------------------------------------------------------------------


def test_replies_of_a_flow_that_this_host_began_come_back_and_nothing_else(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("out", "tcp", 443)]))
    for theirs, own in pairs(guarded):
        with listening(guarded.sender, theirs, 443) as server, guarded.host.socket(family(own)) as client:
            client.settimeout(5)
            client.connect((theirs, 443))
            accepted, _ = server.accept()
            with accepted:
                accepted.sendall(b"answer")
                assert client.recv(100) == b"answer"
        with listening(guarded.host, own, 443), guarded.sender.socket(family(own)) as intruder:
            intruder.settimeout(0.5)
            with pytest.raises(TimeoutError):
                intruder.connect((own, 443))


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_revocation_cuts_a_live_flow_at_the_next_packet(guarded: Guarded, direction: str) -> None:
    rules = [allow(direction, "tcp", 443), allow("in", "udp", 9)]
    guarded.apply(netmap(guarded.member, SENDER, rules=rules))
    for theirs, own in pairs(guarded):
        inward = direction == "in"
        server_host, server, client_host = (
            (guarded.host, own, guarded.sender) if inward else (guarded.sender, theirs, guarded.host)
        )
        with listening(server_host, server, 443) as listener, client_host.socket(family(own)) as client:
            client.settimeout(5)
            client.connect((server, 443))
            accepted, _ = listener.accept()
            with accepted:
                client.sendall(b"before")
                assert accepted.recv(100) == b"before"
                guarded.apply(netmap(guarded.member, SENDER, rules=rules[1:]))
                name = "denied/in" if inward else "denied/out"
                denied = guarded.counters()[name]
                client.sendall(b"after")
                eventually(lambda name=name, denied=denied: guarded.counters()[name] > denied)
                accepted.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    accepted.recv(100)
                # Given back, the flow goes on where it was: TCP repeats what was lost.
                guarded.apply(netmap(guarded.member, SENDER, rules=rules))
                accepted.settimeout(10)
                assert accepted.recv(100) == b"after"


def test_a_member_that_leaves_the_set_is_cut_and_the_others_are_not(guarded: Guarded) -> None:
    guarded.sends_as(OTHER)
    rules = [allow("in", "udp", 53)]
    guarded.apply(netmap(guarded.member, SENDER, OTHER, rules=rules))
    guarded.apply(netmap(guarded.member, OTHER, rules=rules))
    with guarded.host.socket(kind=socket.SOCK_DGRAM) as server:
        server.bind((guarded.member.address, 53))
        server.settimeout(10)
        for member in (SENDER, OTHER):
            with guarded.sender.socket(kind=socket.SOCK_DGRAM) as client:
                client.bind((member.address, 0))
                client.sendto(member.name.encode(), (guarded.member.address, 53))
        assert server.recv(100) == OTHER.name.encode()


def test_the_kernel_ends_a_rule_by_itself_and_with_it_the_live_flow(guarded: Guarded) -> None:
    expires = int(time.time()) + 3
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("in", "tcp", 443, expires=expires)]), time.time())
    with listening(guarded.host, guarded.member.address, 443) as listener, guarded.sender.socket() as client:
        client.settimeout(5)
        client.connect((guarded.member.address, 443))
        accepted, _ = listener.accept()
        with accepted:
            client.sendall(b"before")
            assert accepted.recv(100) == b"before"
            assert time.time() < expires, "the machine is too slow for this test"
            eventually(lambda: time.time() > expires)
            client.sendall(b"after")
            accepted.settimeout(0.5)
            with pytest.raises(TimeoutError):
                accepted.recv(100)
    assert guarded.counters()["denied/in"] > 0


def test_icmp_errors_about_an_allowed_flow_pass(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow("out", "udp", 9999)]))
    for theirs, own in pairs(guarded):
        with guarded.host.socket(family(own), socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((theirs, 9999))
            client.send(b"nobody listens there")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)


# --- what is no TCP or UDP --------------------------------------------------------------------------------------------

ODD = {"sctp": 132, "dccp": 33, "udplite": 136, "gre": 47, "esp": 50, "ah": 51}


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
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


def test_a_lone_fragment_whose_bytes_look_like_ports_does_not_pass(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    theirs, own = SENDER.address, guarded.member.address
    with raw(guarded.sender, 0, header=True) as outlet, raw(guarded.host, socket.IPPROTO_UDP) as inlet:
        data = packets.udp(theirs, own, 4000, 443, b"fragment")
        outlet.sendto(packets.ip(theirs, own, socket.IPPROTO_UDP, data, fragment=100), (own, 0))
        whole = packets.udp(theirs, own, 4000, 443, b"whole")
        outlet.sendto(packets.ip(theirs, own, socket.IPPROTO_UDP, whole), (own, 0))
        assert inlet.recv(100)[28:] == b"whole"


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


@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
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


def test_a_packet_to_the_mesh_does_not_leave_by_another_link(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    guarded.host.run("ip", "link", "set", "wardmesh0", "down")  # as when the tunnel is away
    guarded.host.run("ip", "route", "add", "100.64.0.0/16", "via", guarded.stranger.address)
    with guarded.host.socket(kind=socket.SOCK_DGRAM) as client, pytest.raises(PermissionError):
        client.sendto(b"in clear", (SENDER.address, 443))
    assert guarded.counters()["denied/leaked"] == 1


def test_an_address_of_the_host_that_is_not_the_meshs_is_out_of_reach(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    outside = guarded.host.ports[1].address
    guarded.sender.run("ip", "route", "add", outside, "via", guarded.member.address)
    with guarded.host.socket(kind=socket.SOCK_DGRAM) as server, guarded.sender.socket(kind=socket.SOCK_DGRAM) as client:
        server.bind(("0.0.0.0", 443))
        server.settimeout(10)
        client.sendto(b"around the policy", (outside, 443))
        client.sendto(b"straight", (guarded.member.address, 443))
        assert server.recv(100) == b"straight"


def test_nothing_is_forwarded_into_or_out_of_the_mesh(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=everything()))
    guarded.host.machine.sysctl("net.ipv4.ip_forward", 1)
    guarded.sender.run("ip", "route", "add", guarded.stranger.address, "via", guarded.member.address)
    before = guarded.counters()["denied/forward"]
    with guarded.sender.socket(kind=socket.SOCK_DGRAM) as client:
        client.sendto(b"through", (guarded.stranger.address, 443))
    eventually(lambda: guarded.counters()["denied/forward"] == before + 1)


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


# --- counting ---------------------------------------------------------------------------------------------------------


def test_packets_are_counted_by_grant_and_counts_survive_a_change(guarded: Guarded) -> None:
    rules = [allow("in", "udp", 53, grant="dns"), allow("in", "udp", 123, grant="time")]
    guarded.apply(netmap(guarded.member, SENDER, rules=rules))
    with guarded.sender.socket(kind=socket.SOCK_DGRAM) as client, guarded.host.socket(kind=socket.SOCK_DGRAM) as server:
        server.bind((guarded.member.address, 53))
        for _ in range(5):
            client.sendto(b"?", (guarded.member.address, 53))
        client.sendto(b"?", (guarded.member.address, 54))
        eventually(lambda: guarded.counters()["denied/in"] == 1)
    assert (guarded.counters()["grant/dns"], guarded.counters()["grant/time"]) == (5, 0)
    guarded.apply(netmap(guarded.member, SENDER, OTHER, rules=[*rules, allow("in", "tcp", 443, grant="web")]))
    assert guarded.counters()["grant/dns"] == 5


def test_denied_packets_are_logged_at_a_limited_rate_per_peer(guarded: Guarded) -> None:
    guarded.apply(netmap(guarded.member, SENDER))
    with guarded.sender.socket(kind=socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (guarded.member.address, 54))
    guarded.apply(netmap(guarded.member))
    with guarded.sender.socket(kind=socket.SOCK_DGRAM) as client:
        client.sendto(b"?", (guarded.member.address, 54))
    listed = eventually(
        lambda: (
            SENDER.address in (text := guarded.host.run("nft", "list", "set", "inet", "wardmesh", "logged4").stdout)
            and text
        )
    )
    assert "limit rate 5/second" in listed
