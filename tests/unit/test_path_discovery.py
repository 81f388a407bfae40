"""What a host concludes from the answers of STUN servers, in simulated time."""

import itertools

import pytest

from agentd.paths.discovery import Discovery

SERVERS = ("198.51.100.1:3478", "198.51.100.1:3479")
OWN = ("192.168.0.2:51820",)


def drive(discovery: Discovery, answers: dict[str, str], seconds: float, now: float = 0.0) -> int:
    """Let time pass, with servers that answer so at once; returns the number of questions."""
    fresh = (n.to_bytes(12, "big") for n in itertools.count(int(now * 1000)))
    end, asked = now + seconds, 0
    while (wake := discovery.wake_at()) is not None and max(wake, now) < end:
        now = max(now, wake)
        for question in discovery.due(fresh, now):
            asked += 1
            if question.server in answers:
                assert discovery.answered(question.transaction, question.server, answers[question.server], now)
    return asked


@pytest.mark.parametrize(
    ("first", "second", "nat", "reflexive"),
    [
        (OWN[0], OWN[0], "none", ()),
        ("203.0.113.1:4000", "203.0.113.1:4000", "endpoint-independent", ("203.0.113.1:4000",)),
        ("203.0.113.1:4000", "203.0.113.1:4001", "endpoint-dependent", ("203.0.113.1:4000",)),
    ],
)
def test_two_answers_tell_the_kind_of_nat(first: str, second: str, nat: str, reflexive: tuple[str, ...]) -> None:
    discovery = Discovery()
    discovery.ask_all(SERVERS, OWN, 0)
    drive(discovery, dict(zip(SERVERS, (first, second), strict=True)), 1)
    assert (discovery.nat, discovery.reflexive) == (nat, reflexive)


@pytest.mark.parametrize(
    ("server", "own", "seen", "translated"),
    [
        (SERVERS[0], OWN[0], OWN[0], False),
        (SERVERS[0], OWN[0], "203.0.113.1:4000", True),
        ("[2001:db8::1]:3478", "[2001:db8::2]:51820", "[2001:db8::9]:4000", False),
    ],
    ids=["public", "behind a NAT", "behind a NAT for IPv6 alone"],
)
def test_only_a_nat_for_ipv4_has_a_router_to_ask_for_a_port(server: str, own: str, seen: str, translated: bool) -> None:
    discovery = Discovery()
    discovery.ask_all([server], [own], 0)
    assert not discovery.is_four_translated
    drive(discovery, {server: seen}, 1)
    assert discovery.is_four_translated is translated


def test_behind_a_nat_the_mapping_is_kept_and_without_one_nobody_is_bothered() -> None:
    behind, direct = Discovery(), Discovery()
    for discovery in (behind, direct):
        discovery.ask_all(SERVERS, OWN, 0)
    assert 280 <= drive(behind, dict.fromkeys(SERVERS, "203.0.113.1:4000"), 3600) <= 290
    assert drive(direct, dict.fromkeys(SERVERS, OWN[0]), 3600) == 2


def test_servers_that_do_not_answer_are_asked_a_few_times_and_then_seldom() -> None:
    discovery = Discovery()
    discovery.ask_all(SERVERS, OWN, 0)
    assert drive(discovery, {}, 200) == 8
    assert (discovery.nat, discovery.reflexive) == ("unknown", ())
    assert drive(discovery, dict.fromkeys(SERVERS, OWN[0]), 400, now=200) == 2
    assert discovery.nat == "none"


def test_one_answer_of_two_says_where_but_not_what_kind() -> None:
    discovery = Discovery()
    discovery.ask_all(SERVERS, OWN, 0)
    drive(discovery, {SERVERS[0]: "203.0.113.1:4000"}, 5)
    assert (discovery.nat, discovery.reflexive) == ("unknown", ("203.0.113.1:4000",))


def test_what_was_learned_at_other_addresses_is_forgotten() -> None:
    discovery = Discovery()
    discovery.ask_all(SERVERS, OWN, 0)
    drive(discovery, dict.fromkeys(SERVERS, "203.0.113.1:4000"), 1)
    discovery.ask_all(SERVERS, OWN, 1)
    assert discovery.reflexive == ("203.0.113.1:4000",)
    discovery.ask_all(SERVERS, ("192.168.7.2:51820",), 2)
    assert discovery.reflexive == ()


def test_an_answer_from_elsewhere_or_to_another_question_is_none_of_ours() -> None:
    discovery = Discovery()
    discovery.ask_all(SERVERS[:1], OWN, 0)
    (question,) = discovery.due(iter([b"a" * 12]), 0)
    assert not discovery.answered(question.transaction, SERVERS[1], "203.0.113.1:1", 0)
    assert not discovery.answered(b"b" * 12, SERVERS[0], "203.0.113.1:1", 0)
    assert not discovery.answered(question.transaction, SERVERS[0], None, 0)
    assert discovery.answered(question.transaction, SERVERS[0], "203.0.113.1:1", 0)


@pytest.mark.parametrize(
    ("forwarded", "offered"),
    [
        ("203.0.113.1:51820", ("203.0.113.1:4000", "203.0.113.1:51820")),
        ("203.0.113.1:4000", ("203.0.113.1:4000",)),
        ("192.168.1.9:51820", ("203.0.113.1:4000",)),
    ],
    ids=["another port", "the same port", "inside of a further NAT"],
)
def test_a_routers_port_is_offered_where_the_servers_see_that_router(forwarded: str, offered: tuple[str, ...]) -> None:
    discovery = Discovery()
    discovery.ask_all(SERVERS, OWN, 0)
    drive(discovery, dict.fromkeys(SERVERS, "203.0.113.1:4000"), 1)
    discovery.forwarded = forwarded
    assert discovery.reflexive == offered
