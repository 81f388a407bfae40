"""What our table does to packets, in the kernel. The mesh link is a cable here, so this runs on any kernel."""

import json
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial

import pytest

from controller.wire.netmap import AddressSet, Direction, Netmap, Protocol
from controller.wire.rules import Flow, allowing
from tests.kernel import packets
from tests.kernel.guarded import SENDER, Guarded, both_families, family, pairs, raw
from tests.kernel.maps import Member, allow, netmap
from tests.kernel.nodes import listening
from tests.lab import Host, eventually

pytestmark = pytest.mark.host_kernel
OTHER = Member(3)


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
        protocol: Protocol = rng.choice(["tcp", "udp", "icmp"])
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
        guarded.call(partial(guarded.firewall.replace, ruleset))
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


@both_families
@pytest.mark.parametrize("direction", ["in", "out"])
def test_echo_goes_the_way_that_the_rule_says_and_its_reply_comes_back(
    guarded: Guarded, direction: Direction, six: bool
) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow(direction, "icmp")]))
    theirs, own = pairs(guarded)[six]

    def answered(host: Host, target: str) -> bool:
        return host.run("ping", "-n", "-c1", "-W0.5", target, check=False).returncode == 0

    assert answered(guarded.sender, own) == (direction == "in")
    assert answered(guarded.host, theirs) == (direction == "out")


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_revocation_cuts_a_live_flow_at_the_next_packet(guarded: Guarded, direction: Direction) -> None:
    rules = [allow(direction, "tcp", 443), allow("in", "udp", 9)]
    guarded.apply(netmap(guarded.member, SENDER, rules=rules))

    def denied_since(name: str, before: int) -> bool:
        return guarded.counters()[name] > before

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
                eventually(partial(denied_since, name, denied))
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


@pytest.mark.parametrize("direction", ["in", "out"])
def test_icmp_errors_about_an_allowed_flow_pass(guarded: Guarded, direction: Direction) -> None:
    guarded.apply(netmap(guarded.member, SENDER, rules=[allow(direction, "udp", 9999)]))
    for theirs, own in pairs(guarded):
        host, target = (guarded.host, theirs) if direction == "out" else (guarded.sender, own)
        with host.socket(family(own), socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.connect((target, 9999))
            client.send(b"nobody listens there")
            with pytest.raises(ConnectionRefusedError):
                client.recv(100)


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


@both_families
def test_denied_packets_are_logged_at_a_limited_rate_per_peer(guarded: Guarded, six: bool) -> None:
    guarded.sends_as(OTHER)
    guarded.apply(netmap(guarded.member))
    guarded.host.machine.sysctl("net.ipv6.conf.all.forwarding" if six else "net.ipv4.ip_forward", 1)
    own = guarded.member.address6 if six else guarded.member.address
    port = guarded.host.ports[1]
    outside, stranger = (port.address6, guarded.stranger.address6) if six else (port.address, guarded.stranger.address)
    denied, forwarded, called, false = (
        (member.address6 if six else member.address) for member in (SENDER, OTHER, Member(50), Member(51))
    )
    mac = json.loads(guarded.host.run("ip", "-j", "link", "show", "wardmesh0").stdout)[0]["address"]
    guarded.sender.run("ip", "route", "add", stranger, "via", own)
    guarded.sender.run("ip", "neighbour", "replace", own, "lladdr", mac, "dev", "eth0", "nud", "permanent")
    for host, source, target in (
        (guarded.sender, denied, own),
        (guarded.sender, forwarded, stranger),
        (guarded.stranger, false, outside),
        (guarded.host, own, called),
    ):
        data = packets.udp(source, target, 4000, 54, b"?")
        with raw(host, 0, six=six, header=True) as outlet, suppress(PermissionError):
            outlet.sendto(packets.ip(source, target, socket.IPPROTO_UDP, data), (target, 0))

    def logged() -> str:
        return guarded.host.run("nft", "list", "set", "inet", "wardmesh", "logged6" if six else "logged4").stdout

    eventually(
        lambda: all(f"{address} limit rate 5/second" in logged() for address in (denied, forwarded, called, false))
    )
