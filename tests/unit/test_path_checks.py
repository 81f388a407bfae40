"""Two hosts' checks against each other over every kind of NAT and over bad networks, in simulated time."""

import heapq
import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from agentd.model import LocalAddress
from agentd.paths.checks import _TABLE, Checks, Event, State
from agentd.paths.choose import Chooser
from agentd.paths.pair import pair
from agentd.paths.prefer import Preference
from tests.kernel.maps import public_key

KINDS = ("public", "cone", "address", "port", "firewall", "symmetric")
REMEMBERS = 30.0  # seconds that a NAT does


@dataclass
class Site:
    """A host and what is before it. `kind`: how its NAT maps and filters (RFC 4787), or its firewall."""

    name: str
    number: int
    kind: str
    checks: Checks = field(init=False)
    mappings: dict[str, int] = field(default_factory=dict)  # "" or a destination -> port outside
    passed: dict[tuple[int, str], float] = field(default_factory=dict)  # (port outside, destination) -> last sent
    ports: Iterator[int] = field(default_factory=lambda: itertools.count(40000))

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """As when its agentd starts."""
        own = LocalAddress("eth0", self.inside.rpartition(":")[0], 24)
        self.checks = Checks(Preference(Chooser([own])))

    @property
    def translated(self) -> bool:
        return self.kind not in {"public", "firewall"}

    @property
    def outside(self) -> str:
        return f"203.0.113.{self.number}"

    @property
    def inside(self) -> str:
        return f"192.168.{self.number}.2:51820" if self.translated else f"{self.outside}:51820"

    def leave(self, to: str, now: float) -> str:
        """The source that the network sees of a packet to `to`."""
        if not self.translated:
            self.passed[51820, to] = now
            return self.inside
        key = to if self.kind == "symmetric" else ""
        port = self.mappings.setdefault(key, next(self.ports))
        self.passed[port, to] = now
        return f"{self.outside}:{port}"

    def lets_in(self, port: int, source: str, now: float) -> bool:
        """What its NAT or firewall does with a packet to that port outside."""
        if self.kind == "public":
            return port == 51820
        sent = {to: at for (own, to), at in self.passed.items() if own == port and now - at < REMEMBERS}
        if self.kind == "cone":
            return port in self.mappings.values()
        if self.kind == "address":
            return source.rpartition(":")[0] in {to.rpartition(":")[0] for to in sent}
        return source in sent

    def candidates(self, now: float) -> tuple[str, ...]:
        """What it tells of itself: where STUN sees it, and its own address."""
        return tuple(dict.fromkeys((self.leave("198.51.100.1:3478", now), self.inside)))


class World:
    """The network between two sites: packets take a while, some are lost, some come twice."""

    def __init__(self, left: str, right: str, *, seed: int = 1, loss: float = 0.0, delay: float = 0.02) -> None:
        self.random = random.Random(seed)
        self.sites = (Site("left", 1, left), Site("right", 2, right))
        self.loss, self.delay, self.now = loss, delay, 0.0
        self.flying: list[tuple[float, int, str, str, str, bytes]] = []
        self.sent: dict[str, list[float]] = {"left": [], "right": []}
        self.serial = itertools.count()

    def other(self, site: Site) -> Site:
        return self.sites[1] if site is self.sites[0] else self.sites[0]

    def meet(self, site: Site) -> None:
        """The site's map has the other."""
        site.checks.meet({self.other(site).name: self.other(site).candidates(self.now)}, self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            times = [site.checks.wake_at() for site in self.sites]
            times += [self.flying[0][0] if self.flying else None]
            following = min((at for at in times if at is not None), default=end)
            if following >= end:
                break
            self.now = max(self.now, following)
            while self.flying and self.flying[0][0] <= self.now:
                self.arrive(*heapq.heappop(self.flying)[2:])
            for site in self.sites:
                fresh = (self.random.randbytes(12) for _ in itertools.count())
                for probe in site.checks.due(fresh, self.now):
                    self.sent[site.name].append(self.now)
                    self.send(site, probe.endpoint, "asked", probe.transaction)
        self.now = end

    def send(self, site: Site, to: str, what: str, transaction: bytes) -> None:
        source = site.leave(to, self.now)
        for _ in range(2 if self.random.random() < self.loss else 1):
            if self.random.random() >= self.loss:
                at = self.now + self.delay * self.random.uniform(1, 2)
                heapq.heappush(self.flying, (at, next(self.serial), source, to, what, transaction))

    def arrive(self, source: str, to: str, what: str, transaction: bytes) -> None:
        address, _, port = to.rpartition(":")
        for site in self.sites:
            if address == site.outside and site.lets_in(int(port), source, self.now):
                other = self.other(site).name
                if what == "asked":
                    site.checks.asked(other, source, self.now)
                    self.send(site, source, "answered", transaction)
                else:
                    site.checks.answered(transaction, source, self.now)

    def connected(self) -> bool:
        return all(site.checks.chosen(self.other(site).name) is not None for site in self.sites)


def possible(left: str, right: str) -> bool:
    """What theory allows without a relay: a symmetric NAT meets only who answers to a port that nobody foretold."""
    hard = {"symmetric", "port", "firewall"}
    return not ("symmetric" in {left, right} and {left, right} <= hard)


@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("left", KINDS)
def test_a_pair_connects_within_seconds_exactly_where_theory_allows(left: str, right: str) -> None:
    world = World(left, right)
    for site in world.sites:
        world.meet(site)
    world.run(5)
    assert world.connected() == possible(left, right)


@pytest.mark.parametrize("seed", range(12))
def test_a_pair_connects_over_a_bad_network(seed: int) -> None:
    chance = random.Random(seed)
    left, right = chance.choice(KINDS), chance.choice(KINDS)
    world = World(left, right, seed=seed, loss=0.1, delay=chance.choice([0.01, 0.1, 0.4]))
    world.meet(world.sites[0])
    world.run(chance.uniform(0, 3))
    world.meet(world.sites[1])
    world.run(60)
    assert world.connected() == possible(left, right)


@pytest.mark.parametrize("kind", ["port", "firewall"])
def test_a_host_that_comes_hours_later_is_found_within_seconds(kind: str) -> None:
    world = World(kind, kind)
    world.meet(world.sites[0])
    world.run(7200)
    world.meet(world.sites[1])
    world.run(5)
    assert world.connected()


@pytest.mark.parametrize("kind", ["port", "address", "public"])
def test_a_restarted_agentd_finds_its_peer_again(kind: str) -> None:
    world = World(kind, "port")
    for site in world.sites:
        world.meet(site)
    world.run(100)
    world.sites[0].begin()
    world.meet(world.sites[0])
    world.run(5)
    assert world.connected()


def drive(checks: Checks, working: set[str], now: float, seconds: float) -> float:
    """Let time pass for one host, with a peer that answers at these endpoints at once; returns the time after."""
    fresh = (os.urandom(12) for _ in itertools.count())
    end = now + seconds
    while (wake := checks.wake_at()) is not None and max(wake, now) < end:
        now = max(now, wake)
        for probe in checks.due(fresh, now):
            if probe.endpoint in working:
                checks.answered(probe.transaction, probe.endpoint, now)
    return end


def test_a_path_that_dies_is_left_for_one_that_works() -> None:
    checks = Checks(Preference(Chooser([])))
    checks.meet({"n1": ("192.0.2.1:1", "192.0.2.2:1")}, 0)
    now = drive(checks, {"192.0.2.1:1", "192.0.2.2:1"}, 0, 10)
    assert checks.chosen("n1") == "192.0.2.1:1"
    drive(checks, {"192.0.2.2:1"}, now, 35)
    assert checks.chosen("n1") == "192.0.2.2:1"


def test_the_last_path_is_kept_when_nobody_answers_any_more() -> None:
    checks = Checks(Preference(Chooser([])))
    checks.meet({"n1": ("192.0.2.1:1", "192.0.2.2:1")}, 0)
    now = drive(checks, {"192.0.2.2:1"}, 0, 10)
    assert checks.chosen("n1") == "192.0.2.2:1"
    drive(checks, set(), now, 3600)
    assert checks.chosen("n1") == "192.0.2.2:1"


def test_a_path_that_the_map_does_not_have_any_more_is_not_chosen() -> None:
    checks = Checks(Preference(Chooser([])))
    checks.meet({"n1": ("192.0.2.1:1",)}, 0)
    now = drive(checks, {"192.0.2.1:1"}, 0, 10)
    checks.meet({"n1": ("192.0.2.2:1",)}, now)
    assert checks.chosen("n1") is None


def test_the_endpoint_that_looks_best_is_given_a_moment_before_another_is_chosen() -> None:
    checks = Checks(Preference(Chooser([])))
    checks.meet({"n1": ("192.0.2.1:1", "192.0.2.2:1")}, 0)
    fresh = (os.urandom(12) for _ in itertools.count())
    (first,), (second,) = checks.due(fresh, 0), checks.due(fresh, 0.02)
    checks.answered(second.transaction, second.endpoint, 0.100)
    assert checks.chosen("n1") is None
    checks.answered(first.transaction, first.endpoint, 0.101)
    assert checks.chosen("n1") == first.endpoint


def test_in_steady_state_five_hundred_peers_cost_less_than_five_packets_a_second() -> None:
    checks = Checks(Preference(Chooser([LocalAddress("eth0", "192.168.0.2", 24)])))
    peers = {f"n{n}": (f"203.0.113.{n % 250}:{1000 + n}", f"10.1.{n // 250}.{n % 250}:51820") for n in range(500)}
    checks.meet(peers, 0)
    fresh = (n.to_bytes(12, "big") for n in itertools.count())
    now, probes = 0.0, []
    answering = {endpoints[0] for node, endpoints in peers.items() if int(node[1:]) % 2}  # half are reached at once
    while now < 3600:
        wake = checks.wake_at()
        assert wake is not None
        now = max(now, wake)
        for probe in checks.due(fresh, now):
            probes.append(now)
            if probe.endpoint in answering:
                checks.answered(probe.transaction, probe.endpoint, now)
    steady = [at for at in probes if at > 1800]
    # Peers ask as often as they are asked: with the answers, twice the packets.
    assert len(steady) / 1800 * 2 < 5
    assert checks.chosen("n1") == peers["n1"][0]


def test_without_a_nat_a_path_that_works_is_left_in_peace() -> None:
    counts = []
    for behind_nat in (True, False):
        checks = Checks(Preference(Chooser([])))
        checks.behind_nat = behind_nat
        checks.meet({"n1": ("192.0.2.1:1",)}, 0)
        fresh, asked, now = (os.urandom(12) for _ in itertools.count()), 0, 0.0
        while (wake := checks.wake_at()) is not None and (now := max(wake, now)) < 1000:
            for probe in checks.due(fresh, now):
                asked += 1
                checks.answered(probe.transaction, probe.endpoint, now)
        counts.append(asked)
    assert counts[0] == 40
    assert counts[1] <= 11


def test_nothing_is_sent_while_there_are_no_peers() -> None:
    checks = Checks(Preference(Chooser([])))
    assert checks.wake_at() is None
    checks.meet({"n1": ("192.0.2.1:1",)}, 0)
    checks.meet({}, 1)
    assert checks.due(iter([b"x" * 12]), 2) == []


def test_an_answer_that_was_not_asked_for_or_comes_from_elsewhere_is_nothing() -> None:
    checks = Checks(Preference(Chooser([])))
    checks.meet({"n1": ("192.0.2.1:1",)}, 0)
    (probe,) = checks.due(iter([b"a" * 12]), 0)
    checks.answered(b"b" * 12, probe.endpoint, 0.1)
    checks.answered(probe.transaction, "192.0.2.9:1", 0.1)
    assert checks.chosen("n1") is None
    checks.answered(probe.transaction, probe.endpoint, 0.1)
    assert checks.chosen("n1") == probe.endpoint


def test_the_endpoint_in_use_is_not_left_for_one_that_is_hardly_better() -> None:
    preference = Preference(Chooser([LocalAddress("eth0", "192.168.0.2", 24)]))
    assert preference.best({"192.0.2.1:1": 0.020, "192.0.2.2:1": 0.019}, "192.0.2.1:1") == "192.0.2.1:1"
    assert preference.best({"192.0.2.1:1": 0.020, "192.0.2.2:1": 0.010}, "192.0.2.1:1") == "192.0.2.2:1"


def test_ipv6_and_the_same_network_are_preferred_to_what_is_as_fast() -> None:
    preference = Preference(Chooser([LocalAddress("eth0", "192.168.0.2", 24)]))
    assert preference.best({"192.0.2.1:1": 0.02, "[2001:db8::1]:1": 0.02}, None) == "[2001:db8::1]:1"
    assert preference.best({"[2001:db8::1]:1": 0.02, "192.168.0.7:1": 0.02}, None) == "192.168.0.7:1"


def test_strangers_questions_take_no_unbounded_memory() -> None:
    checks = Checks(Preference(Chooser([])))
    checks.meet({"n1": ("192.0.2.1:1",)}, 0)
    for port in range(1, 1000):
        checks.asked("n1", f"203.0.113.1:{port}", 0)
        checks.asked("unknown", f"203.0.113.1:{port}", 0)
    assert len(checks.views("n1")) <= 5
    assert checks.views("unknown") == ()


def test_the_table_knows_every_event_in_every_state() -> None:
    assert all(set(_TABLE[state]) == set(Event) for state in State)


def test_both_ends_derive_the_same_key_and_know_each_others_names() -> None:
    one, other, third = bytes(range(32)), bytes(range(1, 33)), bytes(range(2, 34))
    left, right = pair(one, public_key(other)), pair(other, public_key(one))
    assert (left.key, left.ours, left.theirs) == (right.key, right.theirs, right.ours)
    assert left.ours != left.theirs
    assert pair(one, public_key(third)).key != left.key
