"""What a new document changes for hosts, held against the reference model."""

from hypothesis import given
from hypothesis import strategies as st

from controller.policy import Document, parse
from controller.policy.difference import MOST, difference
from controller.policy.model import Member, Packet, may_pass
from controller.policy.ports import ALL_PORTS, Ports, format_ports, merge, parse_ports, without
from controller.records import Fleet

from .mesh_fleet import NOW, fleets

ALICE = Member("alice", frozenset({"tag:agents"}), ("100.64.0.1",))
BOB = Member("bob", frozenset({"tag:tools"}), ("100.64.0.2",))
CAROL = Member("carol", frozenset({"tag:tools"}), ("100.64.0.3",))


def changes(old: str, new: str, *members: Member) -> list[tuple[str, str, tuple[str, ...], tuple[str, ...]]]:
    found = difference(parse(old), parse(new), members or (ALICE, BOB, CAROL), NOW)
    return [(one.source, one.destination, one.gained, one.lost) for one in found.changes]


def test_a_new_grant_is_what_its_pairs_gain() -> None:
    new = "grants: [{from: tag:agents, to: tag:tools, ip: [tcp:443, icmp]}]"
    assert changes("", new) == [
        ("alice", "bob", ("icmp", "tcp:443"), ()),
        ("alice", "carol", ("icmp", "tcp:443"), ()),
    ]
    assert changes(new, "") == [("alice", "bob", (), ("icmp", "tcp:443")), ("alice", "carol", (), ("icmp", "tcp:443"))]


def test_only_what_no_other_grant_covers_is_lost() -> None:
    old = "grants: [{from: alice, to: bob, ip: 'tcp:1-100'}, {from: tag:agents, to: bob, ip: 'tcp:50-60'}]"
    new = "grants: [{from: tag:agents, to: bob, ip: 'tcp:50-60'}]"
    assert changes(old, new) == [("alice", "bob", (), ("tcp:1-49", "tcp:61-100"))]


def test_the_same_access_in_other_words_is_no_change() -> None:
    old = "grants: [{from: tag:agents, to: [bob, carol], ip: 'tcp:1-100'}]"
    new = "grants: [{from: alice, to: tag:tools, ip: ['tcp:1-50', 'tcp:51-100']}]"
    assert changes(old, new) == []


def test_a_group_that_means_somebody_else_is_a_change_of_the_same_grant() -> None:
    text = "groups: {{g: [{}]}}\ngrants: [{{from: group:g, to: carol, ip: tcp:1}}]"
    assert changes(text.format("alice"), text.format("bob")) == [
        ("alice", "carol", (), ("tcp:1",)),
        ("bob", "carol", ("tcp:1",), ()),
    ]


def test_an_expired_grant_changes_nothing() -> None:
    assert changes("", "grants: [{from: alice, to: bob, ip: tcp:1, expires: 2001-01-01T00:00:00Z}]") == []


SERVED = "services: {s: {on: tag:tools, mcp: {upstream: 'http://h/'}}}\n"


def test_a_service_is_one_destination_whoever_serves_it() -> None:
    new = SERVED + "grants: [{from: tag:agents, to: svc:s, mcp: {tools: [a, 'b*'], resources: 'file:///**'}}]"
    entries = ("tcp:80", "tcp:443", "resource file:///**", "tool a", "tool b*")
    assert changes("", new) == [("alice", "svc:s", entries, ())]
    assert changes(new, SERVED) == [("alice", "svc:s", (), entries)]


def test_another_argument_rule_is_a_change_of_the_tool() -> None:
    text = SERVED + "grants: [{from: alice, to: svc:s, mcp: {tools: [a, b], args: {a: {p: {under: /x}}}}}]"
    assert changes(text, text.replace("/x", "/y")) == [
        ("alice", "svc:s", ("tool a (p under /y)",), ("tool a (p under /x)",))
    ]


def test_conditions_of_a_tool_are_told_in_words() -> None:
    mcp = (
        "{tools: [a, 'b*'], deny_tools: bad, limits: {a: 5/10s, 'b*': 9/m},"
        " args: {a: {p: {pattern: 'x+', optional: true}, q: {one_of: [1, x], range: {max: 3}, each: true}}}}"
    )
    ((_, _, gained, _),) = changes(SERVED, f"{SERVED}grants: [{{from: alice, to: svc:s, mcp: {mcp}}}]")
    many = "p matches 'x+', if given for a; each of q is one of 1, 'x' and is from any to 3 for a"
    assert gained[2:] == (
        "tool a (p matches 'x+', if given; each of q is one of 1, 'x' and is from any to 3; 5/10s)",
        f"tool b* (not bad; {many}; 5/10s for a; 9/60s)",
    )


def test_more_changes_than_are_listed_are_counted() -> None:
    crowd = [Member(f"n{number}", frozenset(), (f"100.64.1.{number}",)) for number in range(40)]
    found = difference(parse(""), parse("grants: [{from: '*', to: '*', ip: icmp}]"), crowd, NOW)
    assert (found.pairs, len(found.changes)) == (40 * 39, MOST)


@given(fleets(), fleets(), st.sampled_from([("tcp", 1), ("tcp", 443), ("udp", 53), ("tcp", 8000), ("icmp", None)]))
def test_what_is_said_to_change_is_what_the_model_decides_otherwise(
    fleet: Fleet, other: Fleet, flow: tuple[str, int | None]
) -> None:
    old, new = parse(fleet.policy.text), parse(other.policy.text)
    members = [Member(n.name, n.tags, n.addresses) for n in fleet.nodes.values() if n.state == "active"]
    found = {(one.source, one.destination): one for one in difference(old, new, members, NOW).changes}

    def passes(document: Document, source: Member, destination: Member) -> bool:
        return may_pass(document, members, Packet(source.addresses[0], destination.addresses[0], *flow), NOW)

    for source in members:
        for destination in members:
            if source is destination:
                continue
            had, has = passes(old, source, destination), passes(new, source, destination)
            change = found.get((source.name, destination.name))
            gained, lost = (change.gained, change.lost) if change else ((), ())
            assert covered(gained, *flow) == (has and not had)
            assert covered(lost, *flow) == (had and not has)


def covered(entries: tuple[str, ...], protocol: str, port: int | None) -> bool:
    for entry in entries:
        kind, _, ports = entry.partition(":")
        if kind == protocol and (port is None or parse_ports(ports)[0] <= port <= parse_ports(ports)[1]):
            return True
    return False


port = st.integers(1, 20)
port_ranges = st.lists(st.tuples(port, port).map(lambda pair: (min(pair), max(pair)))).map(merge)


@given(port_ranges, port_ranges)
def test_ports_without_others_are_the_difference_of_sets(one: Ports, other: Ports) -> None:
    def spread(ranges: Ports) -> set[int]:
        return {number for low, high in ranges for number in range(low, high + 1)}

    left = without(one, other)
    assert spread(left) == spread(one) - spread(other)
    assert merge(left) == left


@given(st.one_of(st.just(ALL_PORTS), st.tuples(port, port).map(lambda pair: (min(pair), max(pair)))))
def test_ports_are_written_as_they_are_read(ports: tuple[int, int]) -> None:
    assert parse_ports(format_ports(ports)) == ports
