"""The kernel's verdict is the document's: random policies for random fleets, random packets, and no disagreement.

From the text to the table nothing is replaced: parse, compile, the node's map, the ruleset, nftables. Only the mesh
link is a cable, so that packets can be sent which no honest WireGuard peer would send; this runs on any kernel.
WARDMESH_PACKETS sets how many packets are sent, WARDMESH_SEED repeats a run.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest
import yaml

from controller.mesh.state import MeshState
from controller.policy import Document, parse
from controller.policy.model import Held, Packet, may_pass, selects
from controller.policy.model import Member as Node
from controller.records import Fleet, NodeRecord, PolicyRecord
from controller.wire.netmap import AddressSet, Netmap, Protocol, Rule
from controller.wire.rest import NodeState
from controller.wire.rules import Flow, allowing
from tests.kernel.guarded import GUARDED, Guarded
from tests.kernel.maps import MESH, Member, allow
from tests.kernel.traffic import BEACON, BEACON_RULE, ODD, Probe, verdicts

pytestmark = [pytest.mark.host_kernel, pytest.mark.fresh_input]

PACKETS: Final = int(os.environ.get("WARDMESH_PACKETS", "6000"))
PER_DOCUMENT: Final = 150
OTHERS: Final = [Member(number) for number in range(2, 9)]
STRANGERS: Final = ["100.64.77.7", "fd77:7761:7264::7:7", "198.51.100.7", "2001:db8::7"]  # no node's
STATES: Final[tuple[NodeState, ...]] = ("active", "active", "active", "active", "active", "pending", "disabled")
TAGS: Final = ["tag:a", "tag:b", "tag:c", "tag:d"]
PORTS: Final = [1, 22, 53, 80, 443, 444, 8000, 8001, 65535]


# What the document can say of services is little (a port of TCP); rules could say more, so there are services of both.
DOCUMENTED: Final = {  # the guarded host and others may serve these, one of them at a time
    "alpha": ("100.64.70.1", "fd77:7761:7264::70:1"),
    "beta": ("100.64.70.2", "fd77:7761:7264::70:2"),
}
ELSEWHERE: Final = {"gamma": ("100.64.70.3", "fd77:7761:7264::70:3")}  # the others alone may serve it
SERVED: Final = {  # rules alone know these; an address is held or not
    "svc:one": ("100.64.50.1", "fd77:7761:7264::50:1"),
    "svc:two": ("100.64.50.2", "fd77:7761:7264::50:2"),
    "svc:off": ("100.64.50.3", "fd77:7761:7264::50:3"),
}
CALLED: Final = {"svc:far": ("100.64.60.1", "fd77:7761:7264::60:1")}  # one of the others serves it


def random_fleet(rng: random.Random, text: str) -> Fleet:
    """The guarded host and seven others; some wait for approval, some are disabled."""
    nodes = {}
    for member in (GUARDED, *OTHERS):
        nodes[member.name] = NodeRecord(
            id=member.name,
            name=member.name,
            kind="agent",
            state="active" if member is GUARDED else rng.choice(STATES),
            tags=frozenset(rng.sample(TAGS, rng.randint(0, 2))),
            addresses=(member.address, member.address6),
            public_key=member.public_key,
        )
    return Fleet(revision=1, mesh=MESH, nodes=nodes, policy=PolicyRecord(1, text))


def random_document(rng: random.Random, now: int) -> str:
    hosts = {
        "low": f"100.64.0.0/{rng.randint(28, 30)}",
        "one": rng.choice(OTHERS).address,
        "six": f"fd77:7761:7264::/{rng.randint(124, 127)}",
        "nobody": "100.64.200.0/24",
    }
    names = [*TAGS, *(f"node:{member.name}" for member in (GUARDED, *OTHERS)), *(f"host:{name}" for name in hosts)]
    groups = {name: rng.sample(names, rng.randint(1, 3)) for name in ("red", "blue")}
    selectors = [*names, "group:red", "group:blue", *["node:n1"] * 4, "*"]

    def entry() -> str:
        if rng.random() < 0.2:
            return rng.choice(["icmp", "*", "tcp:*", "udp:*"])
        low, high = sorted(rng.choices(PORTS, k=2))
        return f"{rng.choice(['tcp', 'udp'])}:{low}" + (f"-{high}" if rng.random() < 0.4 and high > low else "")

    mine, others = [*TAGS, "node:n1", "node:n2", "group:red"], [f"node:{member.name}" for member in OTHERS]
    services: dict[str, Any] = {name: {"on": rng.sample(mine, rng.randint(2, 5))} for name in DOCUMENTED}
    services |= {name: {"on": rng.sample(others, rng.randint(1, 3))} for name in ELSEWHERE}
    for service in services.values():
        service["http"] = {"upstream": "http://127.0.0.1:8000"}
    services["db"] = {"on": rng.sample(mine, rng.randint(1, 2)), "port": 443}
    grants: list[dict[str, Any]] = []
    for _ in range(rng.randint(0, 12)):
        grant: dict[str, Any] = {
            "from": rng.sample(selectors, rng.randint(1, 2)),
            "to": rng.sample(selectors, rng.randint(1, 2)),
            "ip": sorted({entry() for _ in range(rng.randint(1, 3))}),
        }
        if rng.random() < 0.4:
            del grant["ip"]
            grant["from"] = rng.sample(selectors, rng.randint(3, 8))
            grant["to"] = [f"svc:{name}" for name in rng.sample([*services], rng.randint(1, 3))]
        if rng.random() < 0.3:
            ends = now + rng.choice([-5, 3600])
            grant["expires"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ends))
        grants.append(grant)
    return yaml.safe_dump({"hosts": hosts, "groups": groups, "services": services, "grants": grants})


@dataclass(frozen=True)
class World:
    """A document, the nodes that it is about, and who holds its services."""

    text: str
    document: Document
    fleet: Fleet
    nodes: list[Node]
    services: dict[str, Held]

    def may_pass(self, source: str, destination: str, probe: Probe, now: float) -> bool:
        packet = Packet(source, destination, probe.protocol, probe.port)
        return may_pass(self.document, self.nodes, packet, now, self.services)


def random_world(rng: random.Random, now: int) -> World:
    text = random_document(rng, now)
    document, fleet = parse(text), random_fleet(rng, text)
    nodes = [Node(node.name, node.tags, node.addresses) for node in fleet.nodes.values() if node.state == "active"]
    services = {}
    for name, addresses in (DOCUMENTED | ELSEWHERE).items():
        on = document.services[name].on
        able = [node.name for node in nodes if any(selects(document, selector, node) for selector in on)]
        likely = [GUARDED.name] * 4 if GUARDED.name in able else []
        services[name] = Held(addresses, rng.choice([*able, *likely, None]))
    return World(text, document, fleet, nodes, services)


def map_of_the_guarded(world: World, now: float) -> Netmap:
    """What the controller would send it, and the beacon, which is not the policy's."""
    found = MeshState(world.fleet, now).netmap(GUARDED.name)
    assert found is not None
    sets = {"beacon": AddressSet(name="beacon", addresses=frozenset({BEACON.address, BEACON.address6}))}
    for name, held in world.services.items():
        sets[f"svc:{name}"] = AddressSet(name=f"svc:{name}", addresses=frozenset(held.addresses))
    mine = [held for held in world.services.values() if held.holder == GUARDED.name]
    node = found.node.model_copy(update={"held": tuple(address for held in mine for address in held.addresses)})
    rules = found.rules | {BEACON_RULE.id: BEACON_RULE}
    return found.model_copy(update={"node": node, "sets": found.sets | sets, "rules": rules})


def with_more_services(rng: random.Random, plain: Netmap, now: int) -> Netmap:
    """The map with services that the document does not know: some held, with callers of their own, some called."""
    callers = {
        f"tag:callers{number}": frozenset(
            address for member in rng.sample(OTHERS, rng.randint(0, 6)) for address in (member.address, member.address6)
        )
        for number in range(3)
    }
    services = {name: frozenset(addresses) for name, addresses in (SERVED | CALLED).items()}
    sets = {name: AddressSet(name=name, addresses=addresses) for name, addresses in (callers | services).items()}
    held = [address for addresses in SERVED.values() for address in addresses if rng.random() < 0.7]
    rules = [random_rule(rng, f"service{number}", list(callers), now) for number in range(rng.randint(1, 16))]
    node = plain.node.model_copy(update={"held": (*plain.node.held, *held)})
    return plain.model_copy(
        update={"node": node, "sets": plain.sets | sets, "rules": plain.rules | {rule.id: rule for rule in rules}}
    )


def random_rule(rng: random.Random, grant: str, callers: list[str], now: int) -> Rule:
    outward = rng.random() < 0.2
    protocol: Protocol = rng.choice(["tcp", "tcp", "udp", "icmp"])
    low, high = sorted(rng.choices(PORTS, k=2))
    ports: tuple[int | tuple[int, int], ...] = (rng.choice(PORTS), (low, high))[: rng.randint(1, 2)]
    return allow(
        "out" if outward else "in",
        protocol,
        *(ports if protocol != "icmp" else ()),
        peers=list(CALLED) if outward else rng.sample(callers, rng.randint(1, 2)),
        grant=grant,
        expires=rng.choice([None, None, now - 5, now + 3600]),
        local=() if outward else rng.sample(list(SERVED), rng.randint(1, 2)),
    )


def random_probe(rng: random.Random, world: World) -> Probe:
    inward = rng.random() < 0.6
    protocol = rng.choice(["tcp", "udp", "icmp"]) if rng.random() < 0.85 else rng.choice(list(ODD))
    member = rng.choice(OTHERS)
    peer = member.address6 if protocol == "hopopt" else rng.choice([member.address, member.address6])
    if inward and rng.random() < 0.1:
        peer = rng.choice([one for one in STRANGERS if protocol != "hopopt" or ":" in one])
    port = None if protocol == "icmp" else rng.choice(PORTS)
    local = None
    if rng.random() < 0.4:  # to a service of the guarded host, or from it, which should be nobody's doing
        local = rng.choice([*SERVED.values(), *DOCUMENTED.values()])[":" in peer]
        if local in DOCUMENTED["alpha"] + DOCUMENTED["beta"] and protocol in {"tcp", "udp"} and rng.random() < 0.8:
            protocol, port = "tcp", 80  # the gateway's
    elif rng.random() < 0.2:
        six, gamma = ":" in peer, world.services["gamma"]
        peer = CALLED["svc:far"][six]
        # Its callers let packets to it leave, whoever holds it; the model asks both ends.
        if gamma.holder is not None and rng.random() < 0.6:
            peer, port = gamma.addresses[six], 80 if protocol == "tcp" else port
    fragmented = protocol == "udp" and inward and ":" not in peer and rng.random() < 0.3
    return Probe(inward, peer, protocol, port, fragmented, local)


def expected(world: World, wanted: Netmap, probe: Probe, now: float) -> bool:
    """What the document says of the packet; of services that it does not know, what the rules mean."""
    if any(one in addresses for addresses in (SERVED | CALLED).values() for one in (probe.local, probe.peer)):
        if probe.protocol in ODD:
            return False
        direction = "in" if probe.inward else "out"
        flow = {"direction": direction, "peer": probe.peer, "protocol": probe.protocol, "port": probe.port}
        return bool(allowing(wanted, Flow.model_validate(flow | {"local": probe.local}), now))
    if any(probe.local in held.addresses and held.holder != GUARDED.name for held in world.services.values()):
        return False  # for whoever holds it: by this host's table it must not pass
    own = probe.local or (GUARDED.address6 if probe.six else GUARDED.address)
    source, destination = (probe.peer, own) if probe.inward else (own, probe.peer)
    return world.may_pass(source, destination, probe, now)


def rounds(rng: random.Random, now: int) -> Iterator[tuple[World, list[Probe]]]:
    for start in range(0, PACKETS, PER_DOCUMENT):
        world = random_world(rng, now)
        yield world, [random_probe(rng, world) for _ in range(min(PER_DOCUMENT, PACKETS - start))]


@pytest.mark.timeout(60 + PACKETS // 20)
def test_the_kernel_decides_as_the_document_says(guarded: Guarded) -> None:
    seed = int(os.environ.get("WARDMESH_SEED", random.randrange(1 << 32)))
    print(f"WARDMESH_SEED={seed} WARDMESH_PACKETS={PACKETS}")
    rng, now = random.Random(seed), int(time.time())
    elsewhere = [Member(0, address=four, address6=six) for four, six in (CALLED | ELSEWHERE).values()]
    guarded.sends_as(*OTHERS, BEACON, *elsewhere)
    guarded.has(*(address for addresses in (SERVED | DOCUMENTED).values() for address in addresses))
    verdicts_of: Counter[tuple[str, bool]] = Counter()  # by what the packet was about, and whether it passed
    for world, probes in rounds(rng, now):
        wanted = with_more_services(rng, map_of_the_guarded(world, now), now)
        guarded.apply(wanted, now)
        for probe, verdict in zip(probes, verdicts(guarded, probes), strict=True):
            agreed = verdict == expected(world, wanted, probe, now)
            assert agreed, f"WARDMESH_SEED={seed} {probe} passed: {verdict}\n{world.text}\n{wanted.model_dump_json()}"
            verdicts_of[about(probe), verdict] += 1
    print(", ".join(f"{kind} {'passed' if passed else 'denied'}: {n}" for (kind, passed), n in verdicts_of.items()))
    assert verdicts_of.total() == PACKETS
    # A run in which nothing passes, or everything, would prove nothing.
    scarcest = min(verdicts_of[kind, passed] for kind in (*ABOUT, HOSTS) for passed in (True, False))
    assert scarcest > PACKETS // 1500, verdicts_of


ABOUT: Final = {
    "a service of the document": DOCUMENTED,
    "a service of the rules": SERVED,
    "another's": ELSEWHERE | CALLED,
}
HOSTS: Final = "hosts alone"


def about(probe: Probe) -> str:
    for kind, services in ABOUT.items():
        if any(one in addresses for addresses in services.values() for one in (probe.local, probe.peer)):
            return kind
    return HOSTS


def test_every_probe_arrives_where_there_is_no_table(guarded: Guarded) -> None:
    guarded.sends_as(*OTHERS, BEACON)
    member = OTHERS[0]
    probes = [
        Probe(inward, peer, protocol, None if protocol == "icmp" else 443)
        for inward in (True, False)
        for peer in (member.address, member.address6)
        for protocol in ("tcp", "udp", "icmp", *ODD)
        if protocol != "hopopt" or ":" in peer
    ]
    probes.append(Probe(True, member.address, "udp", 443, fragmented=True))
    assert all(verdicts(guarded, probes))
