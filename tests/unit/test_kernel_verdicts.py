"""What is claimed of a packet through listed rules: certain, left open or unread, and never more than is known."""

import json
from collections.abc import Sequence
from typing import Any

import pytest

from agentd.kernel.conditions import Answer, Found, Open, Packet
from agentd.kernel.listing import ChainName, Listing, needs_text, parse_listing
from agentd.kernel.verdicts import Lookup, outcomes
from agentd.model import KernelError

TCP = Packet(
    six=False,
    protocol="tcp",
    fields={
        "meta iifname": "wardmesh0",
        "meta l4proto": "tcp",
        "ip saddr": "100.64.0.2",
        "th sport": Open(),
        "th dport": 8000,
        "ct state": "new",
        "meta mark": 0,
    },
)
FIELD = {
    "iifname": {"meta": {"key": "iifname"}},
    "port": {"payload": {"protocol": "tcp", "field": "dport"}},
    "udp port": {"payload": {"protocol": "udp", "field": "dport"}},
    "source port": {"payload": {"protocol": "tcp", "field": "sport"}},
    "source": {"payload": {"protocol": "ip", "field": "saddr"}},
    "source6": {"payload": {"protocol": "ip6", "field": "saddr"}},
    "state": {"ct": {"key": "state"}},
    "mark": {"&": [{"meta": {"key": "mark"}}, 255]},
    "cpu": {"meta": {"key": "cpu"}},
}


def when(field: str, right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": FIELD[field], "right": right}}


ACCEPT, DROP = {"accept": None}, {"drop": None}


def listing(*rules: list[Any], policy: str = "accept", **chains: list[list[Any]]) -> Listing:
    def of(chain: str, found: Sequence[list[Any]]) -> list[Any]:
        own = {"family": "ip", "table": "t", "chain": chain}
        return [{"rule": own | {"handle": number, "expr": expr}} for number, expr in enumerate(found)]

    declared = [{"chain": {"family": "ip", "table": "t", "name": name}} for name in chains]
    base = {"family": "ip", "table": "t", "name": "base", "type": "filter", "hook": "input", "prio": 0}
    items = [{"chain": base | {"policy": policy}}, *declared, *of("base", rules)]
    for name, found in chains.items():
        items += of(name, found)
    return parse_listing(json.dumps({"nftables": items}))


class Elements(Lookup):
    def find(self, family: str, table: str, name: str, key: Sequence[object]) -> Found | None:
        if name == "unreadable":
            raise LookupError(name)
        known: dict[tuple[object, ...], Found] = {("verdicts", 8000): ("jump", "other"), ("ports", 8000): ("", "")}
        return known.get((name, *key))


def ends(found: Listing, packet: Packet = TCP) -> set[tuple[str, Answer]]:
    base = found.chains[ChainName("ip", "t", "base")]
    return {(one.verdict, one.sure) for one in outcomes(found, base, packet, Elements())}


@pytest.mark.parametrize(
    "met",
    [
        when("iifname", "wardmesh0"),
        when("iifname", "ward*"),
        when("iifname", "eth0", "!="),
        when("port", 8000),
        when("port", {"range": [7000, 9000]}),
        when("port", {"set": [22, {"range": [8000, 8001]}]}),
        when("port", "@ports"),
        when("source", {"prefix": {"addr": "100.64.0.0", "len": 16}}),
        when("state", ["established", "new"], "in"),
        when("mark", 0),
        {"counter": {"packets": 1, "bytes": 60}},
        {"log": None},
    ],
)
def test_a_condition_that_is_met_ends_the_way(met: dict[str, Any]) -> None:
    assert ends(listing([met, DROP])) == {("drop", Answer.YES)}


@pytest.mark.parametrize(
    "unmet",
    [
        when("iifname", "eth0"),
        when("udp port", 8000),
        when("port", 8000, "!="),
        when("source6", {"prefix": {"addr": "::", "len": 0}}),
        when("source", {"prefix": {"addr": "10.0.0.0", "len": 8}}),
        when("state", ["established", "related"], "in"),
        when("mark", 1),
        when("port", "@others"),
    ],
)
def test_a_condition_that_is_not_met_changes_nothing(unmet: dict[str, Any]) -> None:
    assert ends(listing([unmet, DROP])) == {("accept", Answer.YES)}


@pytest.mark.parametrize("open_one", [when("source port", 8000), {"limit": {"rate": 3, "per": "second"}}])
def test_what_is_left_open_goes_both_ways(open_one: dict[str, Any]) -> None:
    assert ends(listing([open_one, DROP])) == {("drop", Answer.SOMETIMES), ("accept", Answer.SOMETIMES)}


@pytest.mark.parametrize("odd", [when("cpu", 1), {"xt": None}, when("port", "@unreadable")])
def test_what_cannot_be_read_is_not_guessed(odd: dict[str, Any]) -> None:
    assert ends(listing([odd, DROP])) == {("drop", Answer.UNREAD), ("accept", Answer.UNREAD)}


def test_some_surely_pass_where_an_open_condition_stands_beside_an_unread_one() -> None:
    found = ends(listing([when("cpu", 1), when("source port", 8000), DROP]))
    assert found == {("drop", Answer.UNREAD), ("accept", Answer.SOMETIMES)}


def test_an_unread_rule_that_decides_nothing_leaves_the_rest_certain() -> None:
    assert ends(listing([when("cpu", 1), {"jump": {"target": "other"}}], policy="drop", other=[[{"log": None}]])) == {
        ("drop", Answer.YES)
    }


def test_returns_jumps_and_gotos_lead_where_they_do_in_the_kernel() -> None:
    jump, goto, back = {"jump": {"target": "other"}}, {"goto": {"target": "other"}}, {"return": None}
    assert ends(listing([jump], [DROP], other=[[back], [ACCEPT]])) == {("drop", Answer.YES)}
    assert ends(listing([goto], [DROP], other=[[back], [ACCEPT]])) == {("accept", Answer.YES)}
    assert ends(listing([back], [DROP], policy="accept")) == {("accept", Answer.YES)}
    assert ends(listing([{"vmap": {"key": FIELD["port"], "data": "@verdicts"}}], other=[[DROP]])) == {
        ("drop", Answer.YES)
    }


def test_a_map_in_place_is_followed_to_the_first_that_fits() -> None:
    vmap = {"vmap": {"key": FIELD["state"], "data": {"set": [["established", ACCEPT], ["new", DROP]]}}}
    assert ends(listing([vmap])) == {("drop", Answer.YES)}


def test_rules_that_call_each_other_for_ever_end_unread() -> None:
    chains = {f"c{number}": [[{"jump": {"target": f"c{number + 1}"}}]] * 2 for number in range(40)}
    found = ends(listing([{"jump": {"target": "c0"}}], policy="drop", **chains))
    assert all(sure is Answer.UNREAD for _, sure in found)


XT = [{"xt": {"type": "match", "name": "conntrack"}}, {"counter": None}, ACCEPT]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ct state related,established counter packets 0 bytes 0 accept", {("drop", Answer.YES)}),
        ("ct state new,established counter packets 0 bytes 0 accept", {("accept", Answer.YES)}),
        ("ct state != established counter packets 0 bytes 0 accept", {("accept", Answer.YES)}),
        ("ct original saddr 192.0.2.1 counter accept", {("accept", Answer.UNREAD), ("drop", Answer.UNREAD)}),
    ],
)
def test_matches_of_iptables_are_read_from_nfts_words_for_them(text: str, expected: set[tuple[str, Answer]]) -> None:
    base = {"family": "ip", "table": "t", "name": "base", "hook": "input", "prio": 0, "policy": "drop"}
    rule = {"family": "ip", "table": "t", "chain": "base", "handle": 7, "expr": XT}
    listed = json.dumps({"nftables": [{"chain": base}, {"rule": rule}]})
    assert needs_text(listed)
    shown = f"table ip t {{ # handle 1\n\tchain base {{ # handle 2\n\t\t{text} # handle 7\n\t}}\n}}\n"
    assert ends(parse_listing(listed, shown)) == expected


@pytest.mark.parametrize("damaged", ["{", "[]", '{"other": 1}'])
def test_a_listing_that_cannot_be_read_is_an_error_in_words(damaged: str) -> None:
    with pytest.raises(KernelError, match="cannot be read"):
        parse_listing(damaged)
