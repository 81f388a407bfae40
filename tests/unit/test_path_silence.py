"""Who is suspected by what WireGuard counts alone, and what comes of it, in simulated time and over bad networks."""

import itertools
import math
import random
from collections.abc import Callable

import pytest

from agentd.model import LocalAddress
from agentd.paths.checks import Checks
from agentd.paths.choose import Chooser
from agentd.paths.prefer import Preference
from agentd.paths.silence import Counts, Silence

DIRECT, RELAYED = "192.0.2.1:51820", "[fd11::2]:51820"
PACKET = 128  # bytes, on the wire
KEEPALIVE = 32
REPLY_WITHIN = 10.0  # seconds: WireGuard's KEEPALIVE_TIMEOUT


class Counted:
    """A peer of one host, looked at each second; `sent` and `received` are what the host's WireGuard counts."""

    def __init__(self) -> None:
        self.silence = Silence()
        self.now = 0.0
        self.sent = self.received = 0
        self.elsewhere = False
        self.suspected: list[float] = []
        self.look()

    def look(self) -> None:
        if self.silence.look({"n2": Counts(self.sent, self.received, self.elsewhere)}, self.now):
            self.suspected.append(self.now)

    def each_second(self, seconds: float, *, sent: int = 0, received: int = 0) -> None:
        for _ in range(round(seconds)):
            self.now += 1
            self.sent, self.received = self.sent + sent, self.received + received
            self.look()


def test_a_peer_that_answers_nothing_is_suspected_within_two_seconds() -> None:
    counted = Counted()
    counted.each_second(60, sent=PACKET, received=PACKET)
    counted.each_second(10, sent=PACKET)
    assert counted.suspected[0] <= 62


def test_a_peer_that_answers_every_three_seconds_is_suspected_once_at_most() -> None:
    counted = Counted()
    for _ in range(100):
        counted.each_second(2, sent=PACKET)
        counted.each_second(1, received=PACKET)
    assert len(counted.suspected) <= 1


def test_keepalives_want_no_answer() -> None:
    counted = Counted()
    for _ in range(100):
        counted.each_second(1, sent=KEEPALIVE)
        counted.each_second(24)
    assert counted.suspected == []


def test_one_handshake_that_is_lost_is_no_reason_for_suspicion() -> None:
    counted = Counted()
    for _ in range(10):
        counted.each_second(1, sent=148)
        counted.each_second(4)
        counted.each_second(1, sent=148, received=92)
        counted.each_second(115)
    assert counted.suspected == []


def test_who_only_receives_is_suspected_less_and_less_and_soon_not_at_all() -> None:
    counted = Counted()
    for _ in range(160):  # not quite half an hour
        counted.each_second(REPLY_WITHIN, sent=PACKET)
        counted.each_second(1, sent=PACKET, received=KEEPALIVE)
    assert len(counted.suspected) <= 4


def test_who_answered_for_half_an_hour_is_suspected_as_soon_as_at_first() -> None:
    counted = Counted()
    counted.each_second(60, sent=PACKET)
    assert counted.suspected
    counted.each_second(1800, sent=PACKET, received=PACKET)
    begin = counted.now
    counted.suspected.clear()
    counted.each_second(10, sent=PACKET)
    assert counted.suspected[0] - begin <= 2


def test_a_peer_that_sends_by_way_of_a_relay_but_is_looked_for_directly_is_suspected() -> None:
    counted = Counted()
    counted.elsewhere = True
    counted.each_second(5, sent=PACKET, received=PACKET)
    assert counted.suspected


def test_a_peer_whose_counters_began_anew_is_not_suspected() -> None:
    counted = Counted()
    counted.each_second(5, sent=PACKET, received=PACKET)
    counted.sent = counted.received = 0
    counted.each_second(5)
    assert counted.suspected == []


def test_looks_are_seldom_where_nothing_is_sent_and_soon_again_where_something_is() -> None:
    counted = Counted()
    counted.each_second(20)
    assert counted.silence.pause(0) == 30
    counted.each_second(1, sent=PACKET)
    assert counted.silence.pause(0) == 1


def test_looks_take_no_more_than_a_hundredth_of_a_core() -> None:
    counted = Counted()
    counted.each_second(3, sent=PACKET)
    assert counted.silence.pause(0.05) >= 5


# --- with the checks --------------------------------------------------------------------------------------------------


class Host:
    """One host with its checks and one peer, over a direct path and one by way of a relay, both of which lose packets.

    `traffic` says, for a tenth of a second, how many packets go and how many of these the peer answers.
    """

    def __init__(
        self, seed: int, loss: float, traffic: Callable[[float], tuple[int, int]], *, looks: bool = True
    ) -> None:
        self.random, self.loss, self.traffic, self.looks = random.Random(seed), loss, traffic, looks
        own = LocalAddress("eth0", "198.51.100.2", 24)
        self.checks = Checks(Preference(Chooser([own]), {RELAYED: 0.01}.get))
        self.checks.behind_nat = False
        self.checks.meet({"n2": (DIRECT, RELAYED)}, 0)
        self.silence, self.counted = Silence(), Counts(0, 0)
        self.now, self.heard = 0.0, 0.0
        self.dead: set[str] = set()
        self.answers: list[tuple[float, bytes, str]] = []
        self.serial = itertools.count()
        self.asked, self.doubts = 0, 0
        self.chosen: list[str | None] = []

    def passes(self, endpoint: str) -> bool:
        """There and back."""
        return endpoint not in self.dead and all(self.random.random() >= self.loss for _ in range(2))

    def run(self, seconds: float) -> None:
        end, second = self.now + seconds, math.floor(self.now)
        while self.now < end:
            self.now += 0.1
            self.ask()
            self.carry()
            if self.looks and math.floor(self.now) > second:
                second = math.floor(self.now)
                for node in self.silence.look({"n2": self.counted}, self.now):
                    self.doubts += 1
                    self.checks.doubt(node, self.now)

    def ask(self) -> None:
        for at, transaction, endpoint in list(self.answers):
            if at <= self.now:
                self.answers.remove((at, transaction, endpoint))
                self.checks.answered(transaction, endpoint, self.now)
        for probe in self.checks.due((next(self.serial).to_bytes(12, "big") for _ in itertools.count()), self.now):
            self.asked += 1
            if self.passes(probe.endpoint):
                self.answers.append((self.now + 0.02, probe.transaction, probe.endpoint))
        if not self.chosen or self.chosen[-1] != self.checks.chosen("n2"):
            self.chosen.append(self.checks.chosen("n2"))

    def carry(self) -> None:
        sent, answered = self.traffic(self.now)
        chosen = self.checks.chosen("n2") or RELAYED
        back = sum(self.passes(chosen) for _ in range(answered)) * PACKET
        if sent > answered and self.now - self.heard >= REPLY_WITHIN and self.passes(chosen):
            back += KEEPALIVE
        if back:
            self.heard = self.now
        self.counted = Counts(self.counted.sent + sent * PACKET, self.counted.received + back)


def busy(now: float) -> tuple[int, int]:
    del now
    return 5, 5


def one_a_second(now: float) -> tuple[int, int]:
    return (1, 1) if round(now * 10) % 10 == 0 else (0, 0)


def one_way(now: float) -> tuple[int, int]:
    del now
    return 5, 0


def nothing(now: float) -> tuple[int, int]:
    del now
    return 0, 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("traffic", [busy, one_a_second])
def test_a_direct_path_that_dies_silently_is_left_for_the_relay_within_seconds(
    seed: int, traffic: Callable[[float], tuple[int, int]]
) -> None:
    host = Host(seed, 0.0, traffic)
    host.run(30 + seed)
    assert host.chosen[-1] == DIRECT
    host.dead.add(DIRECT)
    host.run(5)
    assert host.chosen[-1] == RELAYED
    host.dead.clear()
    host.run(70)
    assert host.chosen[-2:] == [RELAYED, DIRECT]


@pytest.mark.parametrize("loss", [0.05, 0.2])
@pytest.mark.parametrize("traffic", [busy, one_a_second, one_way])
def test_looks_make_no_path_go_to_and_fro_over_a_bad_network(
    loss: float, traffic: Callable[[float], tuple[int, int]]
) -> None:
    # Three questions in a row are lost now and then, and then a path is left for a second, by the regular checks too.
    changes = {True: 0, False: 0}
    for seed, looks in itertools.product(range(3), changes):
        host = Host(seed, loss, traffic, looks=looks)
        host.run(60)
        before = len(host.chosen)
        host.run(1800)
        changes[looks] += len(host.chosen) - before
        assert host.doubts <= 10
    assert changes[True] <= changes[False] + 4


def test_idle_peers_are_asked_no_more_often_than_without_looks() -> None:
    asked = []
    for looks in (True, False):
        host = Host(1, 0.0, nothing, looks=looks)
        host.run(3600)
        asked.append(host.asked)
    assert asked[0] == asked[1]


def test_a_path_on_which_one_direction_dies_is_left_by_both_hosts() -> None:
    """The one hears nothing of what it sends; the other hears it by way of a relay, and looks for it directly."""
    host = Host(1, 0.0, nothing)
    host.run(30)
    assert host.chosen[-1] == DIRECT
    host.dead.add(DIRECT)  # for its questions: the answers do not come
    for second in range(5):
        counts = Counts(host.counted.sent, host.counted.received + PACKET * (second + 1), elsewhere=True)
        for node in host.silence.look({"n2": counts}, host.now + second):
            host.checks.doubt(node, host.now + second)
    host.now += 5
    host.run(5)
    assert host.chosen[-1] == RELAYED
