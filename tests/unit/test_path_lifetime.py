"""From what a NAT was found to remember to the pause between two keepalives."""

from agentd.paths.lifetime import LIFETIMES, keepalive, longest


def test_the_longest_silence_counts_that_all_shorter_ones_were_survived_with() -> None:
    assert longest([True] * len(LIFETIMES)) == LIFETIMES[-1]
    assert longest([False] * len(LIFETIMES)) == 0
    assert longest([True, True, False, True, False, False, False]) == LIFETIMES[1]


def test_keepalives_come_before_the_nat_forgets_and_before_the_peers_firewall_does() -> None:
    assert keepalive(30) == 24
    assert keepalive(120) < 100
    assert keepalive(LIFETIMES[-1]) == 100


def test_the_shortest_pause_is_bounded_and_the_usual_one_is_for_what_was_not_measured() -> None:
    assert keepalive(0) == 10
    assert keepalive(None) == 25
