"""Which relays a host chooses, how paths behind them are begun, left and come back to, in simulated time."""

import itertools
import math
import os

from agentd.model import LocalAddress
from agentd.paths.checks import Checks
from agentd.paths.choose import Chooser
from agentd.paths.prefer import Preference
from agentd.paths.relay_choice import RelayChoice
from agentd.paths.relay_use import RelayUse
from controller.wire.netmap import Netmap
from tests.kernel.maps import MESH, Member, netmap, with_relays
from tests.unit.path_load import packets_per_second

HOST, OTHER, NEAR, FAR = Member(1), Member(2), Member(8), Member(9)
DIRECT, RELAYED, SPARE = "192.0.2.1:51820", "[fd11::2]:51820", "[fd12::2]:51820"


def through(endpoint: str) -> float | None:
    return {RELAYED: 0.01, SPARE: 0.02}.get(endpoint)


PREFERENCE = Preference(Chooser([LocalAddress("eth0", "198.51.100.2", 24)]), through)


def checks_of(*endpoints: str) -> Checks:
    checks = Checks(PREFERENCE)
    checks.meet({"n2": endpoints}, 0)
    return checks


def drive(checks: Checks, rtts: dict[str, float], start: float, seconds: float) -> float:
    """Let time pass; these endpoints answer after so long. Returns the time after."""
    fresh = (os.urandom(12) for _ in itertools.count())
    now, end = start, start + seconds
    answers: list[tuple[float, bytes, str]] = []
    while True:
        wake = checks.wake_at()
        times = [at for at in (wake, min(answers)[0] if answers else None) if at is not None]
        now = max(now, min(times, default=end))
        if now >= end:
            return end
        for answer in sorted(answer for answer in answers if answer[0] <= now):
            answers.remove(answer)
            checks.answered(answer[1], answer[2], now)
        for probe in checks.due(fresh, now):
            if probe.endpoint in rtts:
                answers.append((now + rtts[probe.endpoint], probe.transaction, probe.endpoint))


def relayed_map(own: Member = HOST) -> Netmap:
    return with_relays(netmap(own, *(member for member in (HOST, OTHER) if member != own)), NEAR, FAR)


def use(own: Member = HOST, **answering: float) -> RelayUse:
    found = RelayUse(4500)
    found.adopt(relayed_map(own))
    found.look(answering.get)
    return found


def test_the_nearest_relay_is_home_and_the_next_the_spare() -> None:
    choice = RelayChoice()
    assert choice.update({"a": 0.05, "b": 0.01, "c": 0.03})
    assert choice.chosen == ("b", "c")


def test_a_home_is_left_only_for_one_that_is_clearly_nearer() -> None:
    choice = RelayChoice()
    choice.update({"a": 0.050, "b": 0.060})
    assert not choice.update({"a": 0.050, "b": 0.045})
    for rtt in (0.010, 0.011) * 20:
        choice.update({"a": 0.050, "b": rtt})
    assert choice.chosen == ("b", "a")


def test_one_slow_answer_moves_nobody() -> None:
    choice = RelayChoice()
    choice.update({"a": 0.020, "b": 0.030})
    assert not choice.update({"a": 0.060, "b": 0.030})
    assert choice.chosen == ("a", "b")


def test_the_spare_takes_the_place_of_a_home_that_does_not_answer_and_keeps_it() -> None:
    choice = RelayChoice()
    choice.update({"a": 0.01, "b": 0.02, "c": 0.03})
    assert choice.update({"b": 0.02, "c": 0.03})
    assert choice.chosen == ("b", "c")
    choice.update({"a": 0.012, "b": 0.02, "c": 0.03})
    assert choice.chosen == ("b", "a")
    choice.update({})
    assert choice.chosen == ()


def test_a_host_is_found_behind_the_relays_that_it_chose_the_nearest_first() -> None:
    found = use(n8=0.01, n9=0.02)
    near, far = found.relays.usable
    places = tuple(f"[{relay.place((HOST.address, HOST.address6))}]:4500" for relay in (near, far))
    assert found.places == places
    assert found.watched == {"n8": 1.0, "n9": 2.0}
    assert found.look({"n9": 0.02}.get) == (frozenset(), {"n8"})
    assert found.places == places[1:]
    assert [(view.node, view.rtt, view.chosen) for view in found.views()] == [("n9", 0.02, True), ("n8", None, False)]


def test_a_relay_is_found_behind_no_relay_and_looked_for_behind_none() -> None:
    assert use(NEAR, n9=0.02).places == ()
    found = use(n8=0.01)
    near = found.relays.usable[0]
    behind_near = f"[{near.place((FAR.address6,))}]:51820"
    relay = FAR.peer().model_copy(update={"endpoints": (DIRECT, behind_near)})
    assert found.ways(relay) == (DIRECT,)
    assert found.ways(OTHER.peer().model_copy(update={"endpoints": (DIRECT, behind_near)})) == (DIRECT, behind_near)


def test_a_relay_looks_for_nobody_but_other_relays() -> None:
    found = use(NEAR)
    assert found.ways(HOST.peer().model_copy(update={"endpoints": (DIRECT,)})) == ()
    assert found.ways(FAR.peer().model_copy(update={"endpoints": (DIRECT,)})) == (DIRECT,)


def test_before_anything_was_checked_a_peer_is_behind_the_nearest_relay_that_answers() -> None:
    assert PREFERENCE.first([DIRECT, SPARE, RELAYED]) == RELAYED
    away = Preference(Chooser([LocalAddress("eth0", "198.51.100.2", 24)]), {RELAYED: math.inf}.get)
    assert away.first([DIRECT, RELAYED]) == DIRECT
    assert away.first([RELAYED]) == RELAYED
    assert away.first([]) is None


def test_a_direct_path_is_taken_as_soon_as_it_answers_however_near_the_relay_is() -> None:
    checks = checks_of(DIRECT, RELAYED)
    drive(checks, {DIRECT: 0.2, RELAYED: 0.001}, 0, 0.15)
    assert checks.chosen("n2") == RELAYED
    drive(checks, {DIRECT: 0.2, RELAYED: 0.001}, 0.15, 1)
    assert checks.chosen("n2") == DIRECT


def test_nobody_waits_for_the_relays_answer_who_has_a_direct_one() -> None:
    checks = checks_of(DIRECT, RELAYED)
    drive(checks, {DIRECT: 0.02}, 0, 0.05)
    assert checks.chosen("n2") == DIRECT


def test_a_direct_path_that_dies_is_left_for_the_relay_and_taken_again_when_it_is_back() -> None:
    checks = checks_of(DIRECT, RELAYED)
    now = drive(checks, {DIRECT: 0.02, RELAYED: 0.03}, 0, 60)
    assert checks.chosen("n2") == DIRECT
    now = drive(checks, {RELAYED: 0.03}, now, 35)
    assert checks.chosen("n2") == RELAYED
    now = drive(checks, {DIRECT: 0.02, RELAYED: 0.03}, now, 65)
    assert checks.chosen("n2") == DIRECT


def test_a_relay_that_is_lost_is_left_for_the_spare_within_two_seconds() -> None:
    checks = checks_of(RELAYED, SPARE)
    now = drive(checks, {RELAYED: 0.02, SPARE: 0.03}, 0, 600)
    assert checks.chosen("n2") == RELAYED
    checks.suspect(RELAYED.__eq__, now)
    now = drive(checks, {SPARE: 0.03}, now, 2)
    assert checks.chosen("n2") == SPARE


def test_a_suspicion_changes_nothing_where_the_relay_goes_on_forwarding() -> None:
    checks = checks_of(RELAYED, SPARE)
    now = drive(checks, {RELAYED: 0.02, SPARE: 0.03}, 0, 600)
    checks.suspect(RELAYED.__eq__, now)
    drive(checks, {RELAYED: 0.02, SPARE: 0.03}, now, 60)
    assert checks.chosen("n2") == RELAYED


def test_a_relay_in_use_is_known_to_be_lost_within_three_seconds() -> None:
    checks = Checks(PREFERENCE)
    checks.watched = {"n8": 1.0}
    checks.meet({"n8": (DIRECT,)}, 0)
    now = drive(checks, {DIRECT: 0.02}, 0, 100)
    assert checks.answers("n8") is not None
    drive(checks, {}, now, 3)
    assert checks.answers("n8") is None


def test_five_hundred_peers_half_of_them_behind_relays_cost_less_than_five_packets_a_second() -> None:
    assert packets_per_second(500) < 5


def test_five_hundred_peers_that_all_only_receive_cost_no_more() -> None:
    # Each is suspected four times in half an hour.
    assert packets_per_second(500, doubts=500 * 4 / 1800) < 5


def test_places_do_not_meet_the_mesh() -> None:
    found = use()
    assert all(not relay.prefix.startswith(MESH.prefix6[:14]) for relay in found.relays.usable)
