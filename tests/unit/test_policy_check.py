"""Checking a policy: what people are told, and the document's own tests."""

import ipaddress
import itertools
import json
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy import check, compile_policy, parse
from controller.policy.model import Member, selects
from controller.policy.population import Population
from controller.policy.ports import covers, merge, overlap
from controller.policy.prefixes import PrefixTable
from controller.records import Fleet
from controller.wire.rest import PolicyReport

from .mesh_fleet import NOW, fleet, fleets, node

FLEET = fleet(
    [
        node(1, "agents"),
        node(2, "agents", "gpu"),
        node(3, "tools"),
        node(4, "tools", state="pending"),
        node(5),
    ]
)
GRANT = "grants: [{from: tag:agents, to: tag:tools, ip: [tcp:443, tcp:8000-8010, icmp]}]\n"


def report(text: str, among: Fleet = FLEET) -> PolicyReport:
    return check(text, among, now=NOW)


def codes(text: str, among: Fleet = FLEET) -> list[str]:
    return [finding.code for finding in report(text, among).findings]


def test_a_good_document_has_no_findings() -> None:
    assert report(GRANT) == PolicyReport(ok=True, grants=1)


def test_a_faulty_document_is_reported_not_raised() -> None:
    answer = report("grants: [{from: x, to: y, ip: [gre]}]")
    assert not answer.ok
    assert (answer.findings[0].line, answer.findings[0].column) == (1, 32)


@pytest.mark.parametrize(
    ("text", "code", "place", "words"),
    [
        ("grants: [{from: h11, to: h1, ip: icmp}]", "unknown-node", (1, 17), "did you mean 'h1'?"),
        ("groups: {ops: [node:nobody]}", "unknown-node", (1, 16), "no node 'nobody'"),
        ("hosts: {labs: 10.0.0.0/8}\ngrants: [{from: lab, to: h1, ip: icmp}]", "unknown-node", (2, 17), "'labs'"),
        ("tests: [{from: nobody, to: h1, deny: icmp}]", "unknown-node", (1, 16), "nobody"),
    ],
)
def test_unknown_names_are_errors(text: str, code: str, place: tuple[int, int], words: str) -> None:
    finding = report(text).findings[0]
    assert (finding.severity, finding.code, finding.line, finding.column) == ("error", code, *place)
    assert words in finding.message
    assert not report(text).ok


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("grants: [{from: tag:agnts, to: h1, ip: icmp}]", ["unreachable", "empty-selector"]),
        ("grants: [{from: [tag:x, tag:agents], to: h3, ip: icmp}]", ["empty-selector"]),
        ("grants: [{from: h1, to: h4, ip: icmp}]", ["unreachable", "empty-selector"]),
        ("grants: [{from: h1, to: h1, ip: icmp}]", ["unreachable"]),
        ("grants: [{from: h3, to: tag:tools, ip: icmp}]", ["unreachable"]),
        ("hosts: {lab: 10.0.0.0/8}\ngrants: [{from: h1, to: lab, ip: icmp}]", ["unreachable", "empty-selector"]),
        ("grants: [{from: '*', to: ['*'], ip: icmp}]", ["everyone"]),
        (GRANT.replace("icmp}]", "icmp, }, {from: tag:agents, to: h3, ip: icmp}]"), []),
        ("grants: [{from: h1, to: h2, ip: icmp}, {from: [h1], to: node:h2, ip: [icmp]}]", ["duplicate-grant"]),
        ("grants: [{from: h1, to: h2, ip: icmp, expires: 2020-01-01T00:00:00Z}]", ["expired"]),
        ("hosts: {h1: 100.64.0.2}\ngrants: [{from: h1, to: h3, ip: icmp}]", ["ambiguous"]),
        ("hosts: {h1: 100.64.0.2}\ngrants: [{from: host:h1, to: h3, ip: icmp}]", []),
    ],
)
def test_what_has_no_effect_or_too_much_is_a_warning(text: str, expected: list[str]) -> None:
    answer = report(text)
    assert [finding.code for finding in answer.findings] == expected
    assert answer.ok


def test_a_tag_that_nobody_carries_suggests_the_nearest() -> None:
    (_, first) = report("grants: [{from: tag:agent, to: h3, ip: icmp}]").findings
    assert "did you mean 'tag:agents'?" in first.message


@pytest.mark.parametrize(
    "test",
    [
        "{from: tag:agents, to: tag:tools, accept: [tcp:443, icmp, tcp:8001-8009]}",
        "{from: tag:agents, to: tag:tools, deny: [tcp:442, 'udp:*', tcp:444-7999, tcp:8011-65535]}",
        "{from: tag:tools, to: tag:agents, deny: ['*']}",
        "{from: h1, to: h2, deny: ['*']}",
        "{from: h5, to: '*', deny: ['*']}",
        "{from: [h1, tag:agents], to: h3, accept: tcp:443, deny: tcp:22}",
    ],
)
def test_a_document_whose_tests_hold_is_accepted(test: str) -> None:
    assert report(f"{GRANT}tests: [{test}]").ok


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ("{from: tag:agents, to: tag:tools, accept: [tcp:444]}", "tcp:444 from node 'h"),
        ("{from: tag:agents, to: tag:tools, accept: [tcp:8000-8011]}", "is denied"),
        ("{from: tag:agents, to: tag:tools, deny: [tcp:8010-9000]}", "passes, at least in part"),
        ("{from: tag:agents, to: tag:tools, deny: ['*']}", "the test says deny"),
        ("{from: tag:agents, to: tag:tools, deny: [icmp]}", "icmp"),
        ("{from: '*', to: tag:tools, accept: [tcp:443]}", "is denied"),
        ("{from: h5, to: h3, accept: [tcp:443]}", "from node 'h5' to node 'h3'"),
    ],
)
def test_a_document_whose_tests_fail_is_refused(test: str, words: str) -> None:
    answer = report(f"{GRANT}tests:\n  - {test}")
    assert not answer.ok
    assert answer.findings[0].code == "test-failed"
    assert answer.findings[0].line == 3
    assert words in answer.findings[0].message


def test_a_test_holds_for_nodes_that_join_later() -> None:
    """Both nodes with the tag may pass, but by name: a third one could not."""
    text = "grants: [{from: [h1, h2], to: tag:tools, ip: tcp:443}]\n"
    answer = report(text + "tests: [{from: tag:agents, to: tag:tools, accept: tcp:443}]")
    assert "any other node of tag:agents" in answer.findings[0].message


def test_tests_work_before_any_host_has_joined() -> None:
    answer = report(GRANT + "tests: [{from: tag:agents, to: tag:tools, accept: tcp:443, deny: tcp:22}]", fleet([]))
    assert answer.ok
    assert not report(GRANT + "tests: [{from: tag:agents, to: tag:tools, deny: tcp:443}]", fleet([])).ok


def test_an_expired_grant_does_not_help_a_test() -> None:
    expired = GRANT.replace("icmp]", "icmp], expires: 2020-01-01T00:00:00Z")
    assert "test-failed" in codes(expired + "tests: [{from: h1, to: h3, accept: tcp:443}]")


def test_a_node_is_not_tested_against_itself() -> None:
    text = "grants: [{from: h1, to: h2, ip: tcp:1}]\ntests: [{from: [h1], to: [h1, h2], accept: tcp:1}]"
    assert report(text).ok
    assert codes("tests: [{from: h1, to: h1, accept: tcp:1}]") == ["idle-test"]


def test_an_imagined_host_is_in_no_smaller_prefix() -> None:
    hosts = "hosts: {wide: 10.0.0.0/24, narrow: 10.0.0.0/28}\n"
    grants = "grants: [{from: narrow, to: tag:tools, ip: tcp:1}]\n"
    assert report(hosts + grants + "tests: [{from: wide, to: tag:tools, deny: tcp:1}]").ok


@given(fleets(), st.integers(0, 2**32))
def test_a_damaged_document_never_raises(among: Fleet, seed: int) -> None:
    chance = random.Random(seed)
    text = list(among.policy.text)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text))
        edit = chance.choice("{}[],:*&!'\"#\n\t-x0\u0430\\")
        text[at : at + chance.randint(0, 3)] = [edit] * chance.randint(0, 2)
    answer = check("".join(text), among)
    assert answer.ok or any(f.severity == "error" and f.message for f in answer.findings)


@given(fleets())
def test_a_check_is_the_same_each_time(among: Fleet) -> None:
    assert check(among.policy.text, among, now=NOW) == check(among.policy.text, among, now=NOW)


def test_a_thousand_nodes_and_three_hundred_grants_are_checked_and_compiled_within_a_second() -> None:
    nodes = [node(n, f"t{n % 50}", f"u{n % 7}") for n in range(1, 1001)]
    grants: list[dict[str, object]] = [
        {"from": [f"tag:t{n % 50}", f"h{n + 1}"], "to": [f"tag:u{n % 7}", "low"], "ip": [f"tcp:{n + 1}", "icmp"]}
        for n in range(300)
    ]
    tests: list[dict[str, object]] = [
        {"from": f"tag:t{n}", "to": f"tag:u{n % 7}", "accept": "icmp", "deny": "udp:53"} for n in range(50)
    ]
    services = {f"s{n}": {"on": f"tag:u{n % 7}", "mcp": {"upstream": "http://127.0.0.1:1/"}} for n in range(50)}
    grants[200:] = [
        {"from": [f"tag:t{n % 50}"], "to": [f"svc:s{n % 50}"], "mcp": {"tools": ["get_*"], "limits": {"get_*": "5/s"}}}
        for n in range(100)
    ]
    tests += [{"from": f"tag:t{n}", "to": f"svc:s{n}", "accept": {"tools": ["get_a"]}} for n in range(50)]
    sections = {"hosts": {"low": "100.64.0.0/26"}, "services": services, "grants": grants, "tests": tests}
    text = json.dumps(sections)
    among = fleet(nodes)
    elapsed = []
    for _ in range(3):
        started = time.perf_counter()
        answer = check(text, among)
        compile_policy(parse(text))
        elapsed.append(time.perf_counter() - started)
    assert answer.grants == 300
    assert min(elapsed) < 1.0


HOSTILE = {
    "wrong names": {"grants": [{"from": [f"nn{n}" for n in range(40_000)], "to": "*", "ip": "icmp"}]},
    "wrong tags": {"grants": [{"from": [f"tag:nn{n}" for n in range(40_000)], "to": "*", "ip": "icmp"}]},
    "wrong keys": {f"nn{n}": 1 for n in range(40_000)},
    "many tests": {"tests": [{"from": "*", "to": "*", "deny": "icmp"}] * 10_000},
    "many hosts": {
        "hosts": {f"x{n}": f"10.{n >> 8}.{n & 255}.0/24" for n in range(5000)},
        "tests": [{"from": [f"x{n}" for n in range(5000)], "to": [f"x{n}" for n in range(5000)], "deny": "icmp"}],
    },
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_no_document_within_the_limits_keeps_the_controller_busy(kind: str) -> None:
    """Seconds, not minutes: the bound is for a loaded machine."""
    among = fleet([node(n, f"t{n % 50}") for n in range(1, 1001)])
    started = time.perf_counter()
    answer = check(json.dumps(HOSTILE[kind]), among)
    assert time.perf_counter() - started < 15
    assert len(answer.findings) <= 201


@given(fleets())
def test_the_population_is_what_the_model_selects(among: Fleet) -> None:
    document = parse(among.policy.text)
    members = [Member(n.name, n.tags, n.addresses) for n in among.nodes.values()]
    population = Population(document, members)
    for grant in document.grants:
        for selector in (*grant.from_, *grant.to):
            assert population.matching(selector) == {m for m in members if selects(document, selector, m)}


prefixes4 = st.builds(
    lambda address, length: ipaddress.ip_network((address, length), strict=False),
    st.integers(0x0A000000, 0x0A00000F),
    st.integers(27, 32),
)


@given(st.lists(prefixes4, min_size=1, max_size=8, unique=True))
def test_a_free_address_is_the_first_that_no_smaller_prefix_holds(prefixes: list[ipaddress.IPv4Network]) -> None:
    table = PrefixTable({str(prefix): prefix for prefix in prefixes})
    for prefix in prefixes:
        inner = [other for other in prefixes if other != prefix and other.subnet_of(prefix)]
        free = [str(a) for a in prefix if not any(a in other for other in inner)]
        assert table.free_address(prefix) == (free[0] if free else None)
        held = {str(other) for other in prefixes if prefix.network_address in other}
        assert set(table.holding([str(prefix.network_address)])) == held


ranges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda r: (min(r), max(r))))


def members(spans: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> set[int]:
    return {port for low, high in spans for port in range(low, high + 1)}


@given(ranges, ranges)
def test_port_arithmetic_is_that_of_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    first, second = merge(one), merge(other)
    assert members(first) == members(one)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(first))
    assert covers(first, second) == (members(second) <= members(first))
    assert overlap(first, second) == bool(members(first) & members(second))
