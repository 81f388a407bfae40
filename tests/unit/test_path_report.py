"""What is said of paths: since when they are as they are, the worst first, bounded; and what the controller keeps."""

from datetime import UTC, datetime, timedelta
from typing import Any

from agentd.path_report import PathLog, Reached, is_news
from controller.paths import PathBook
from controller.wire.netcheck import MappedPort, NetcheckReport, RelayDistance
from controller.wire.paths import MOST_PATHS, PathReport
from controller.wire.stream import Paths

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=1)
FIRST = Reached("n1", "direct", "192.0.2.1:51820", 0.02, None)


def test_a_path_is_since_its_kind_and_endpoint_are_what_they_are() -> None:
    log = PathLog()
    (before,) = log.report([FIRST], NOW)
    (same,) = log.report([Reached("n1", "direct", "192.0.2.1:51820", 0.5, 1240)], LATER)
    (other,) = log.report([Reached("n1", "direct", "192.0.2.9:51820", 0.5, 1240)], LATER)
    assert (before.since, same.since, other.since) == (NOW, NOW, LATER)


def test_a_peer_that_was_away_from_the_map_begins_anew() -> None:
    log = PathLog()
    log.report([FIRST], NOW)
    log.report([], NOW)
    assert log.report([FIRST], LATER)[0].since == LATER


def test_other_round_trip_times_are_no_news_and_everything_else_is() -> None:
    log = PathLog()

    def said(*found: Reached) -> Paths:
        return Paths(paths=log.report(found, LATER))

    before = Paths(paths=log.report([FIRST], NOW))
    assert not is_news(before, said(Reached("n1", "direct", "192.0.2.1:51820", 0.9, None)))
    assert is_news(before, said(Reached("n1", "direct", "192.0.2.1:51820", 0.02, 1240)))
    assert is_news(before, said(Reached("n1", "none", None, None, None)))
    assert is_news(before, said())


def test_what_a_host_knows_of_its_network_is_news_when_more_than_distances_are_different() -> None:
    def said(**different: Any) -> Paths:
        usual: dict[str, Any] = {"nat": "none", "udp": "works", "mapping": MappedPort(state="off")}
        return Paths(paths=(), netcheck=NetcheckReport(**usual | different))

    def relays(rtt: float | None, *, chosen: bool = True) -> tuple[RelayDistance, ...]:
        return (RelayDistance(node="r", rtt=rtt, chosen=chosen),)

    assert is_news(Paths(paths=()), said())
    assert not is_news(said(), said())
    assert is_news(said(), said(nat="unknown"))
    assert not is_news(said(relays=relays(0.1)), said(relays=relays(0.2)))
    assert is_news(said(relays=relays(0.1)), said(relays=relays(None)))
    assert is_news(said(relays=relays(0.1)), said(relays=relays(0.1, chosen=False)))


def test_of_too_many_paths_those_that_do_not_work_and_the_slowest_are_told() -> None:
    many = [Reached(f"n{n}", "direct", "192.0.2.1:51820", n / 1000, None) for n in range(MOST_PATHS + 10)]
    told = PathLog().report([*many, Reached("gone", "none", None, None, None)], NOW)
    assert len(told) == MOST_PATHS
    assert [one.peer for one in told[:2]] == ["gone", f"n{MOST_PATHS + 9}"]


def test_the_controllers_book_is_bounded_and_forgets_who_spoke_longest_ago() -> None:
    book = PathBook(most=5)
    path = PathReport(peer="p", kind="none", since=NOW)
    for node in ("a", "b", "a", "c"):
        book.heard(node, (path, path))
    assert [one.node for one in book.paths(lambda _: True)] == ["a", "a", "c", "c"]
    book.heard("a", ())
    assert [one.node for one in book.paths(lambda _: True)] == ["c", "c"]


def test_what_hosts_know_of_their_networks_counts_towards_the_bound() -> None:
    book = PathBook(most=12)
    report = NetcheckReport(nat="none", udp="works", mapping=MappedPort(state="off"))
    for node in ("a", "b", "c"):
        book.heard(node, (), report)
    assert [book.netcheck(node) for node in ("a", "b", "c")] == [None, report, report]


def test_a_relay_that_a_host_says_it_chose_twice_has_one_user() -> None:
    twice = tuple(RelayDistance(node=node, rtt=0.1, chosen=True) for node in ("near", "near", "far"))
    book = PathBook()
    book.heard("a", (), NetcheckReport(nat="none", udp="works", mapping=MappedPort(state="off"), relays=twice))
    assert [node for node, _ in book.relays("a")] == ["near", "far"]
