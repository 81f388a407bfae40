"""Compiling: roles agree with the reference model, and rules keep their identity."""

from hypothesis import given

from controller.policy import compile_policy, parse
from controller.policy.model import Member, Packet, may_pass, selects
from controller.records import Fleet
from controller.wire.netmap import ALL_PORTS

from .mesh_fleet import NOW, fleets

ALICE = Member("alice", frozenset({"tag:agents"}), ("100.64.0.1", "fd00::1"))
BOB = Member("bob", frozenset({"tag:tools"}), ("100.64.0.2", "fd00::2"))
TEXT = "grants: [{from: tag:agents, to: bob, ip: [tcp:443, tcp:444, icmp]}]"


def test_a_grant_becomes_out_rules_at_its_source_and_in_rules_at_its_destination() -> None:
    policy = compile_policy(parse(TEXT))
    source = policy.view(policy.role("alice", ALICE.tags, ALICE.addresses))
    destination = policy.view(policy.role("bob", BOB.tags, BOB.addresses))
    assert {(r.direction, r.protocol, r.ports, r.peers) for r in source.rules.values()} == {
        ("out", "tcp", ((443, 444),), ("node:bob",)),
        ("out", "icmp", (), ("node:bob",)),
    }
    assert {r.direction for r in destination.rules.values()} == {"in"}
    assert destination.sets == {"tag:agents"}


def test_a_node_that_no_grant_names_enforces_nothing_and_needs_nothing() -> None:
    policy = compile_policy(parse(TEXT))
    view = policy.view(policy.role("carol", ["tag:other"], ["100.64.0.3"]))
    assert (dict(view.rules), view.sets) == ({}, frozenset())


def test_star_stands_for_three_protocols_and_no_other() -> None:
    policy = compile_policy(parse("grants: [{from: '*', to: bob, ip: '*'}]"))
    view = policy.view(policy.role("alice", [], []))
    assert {(r.protocol, r.ports) for r in view.rules.values()} == {
        ("tcp", (ALL_PORTS,)),
        ("udp", (ALL_PORTS,)),
        ("icmp", ()),
    }


def test_beside_star_other_selectors_need_no_set() -> None:
    policy = compile_policy(parse("grants: [{from: [tag:agents, '*'], to: bob, ip: icmp}]"))
    inbound = [r for r in policy.view(policy.role("bob", [], [])).rules.values() if r.direction == "in"]
    assert [r.peers for r in inbound] == [("*",)]


def test_rules_keep_their_ids_when_the_policy_around_them_changes() -> None:
    before = compile_policy(parse(TEXT))
    after = compile_policy(
        parse(
            "hosts: {lab: 10.0.0.0/8}\n"
            "grants:\n"
            "  - {from: lab, to: '*', ip: udp:53}\n"
            "  - {from: [tag:agents], to: [node:bob], ip: [tcp:443-444, icmp], expires: 2090-01-01T00:00:00Z}"
        )
    )
    old, new = (policy.view(policy.role("alice", ALICE.tags, ALICE.addresses)).rules for policy in (before, after))
    assert old.keys() <= new.keys()
    assert all(new[key].model_copy(update={"expires": None}) == rule for key, rule in old.items())


@given(fleets())
def test_roles_are_what_the_model_selects(fleet: Fleet) -> None:
    document = parse(fleet.policy.text)
    policy = compile_policy(document)
    used = {}
    for grant in document.grants:
        for side in (grant.from_, grant.to):
            # Beside a star, the other selectors of a side are dropped.
            used.update({s.key: s for s in side if s.kind == "any" or all(o.kind != "any" for o in side)})
    for node in fleet.nodes.values():
        member = Member(node.name, node.tags, node.addresses)
        expected = {key for key, selector in used.items() if selects(document, selector, member)}
        assert policy.role(node.name, node.tags, node.addresses) == expected


def test_the_model_denies_what_is_not_named() -> None:
    document = parse(TEXT)
    both = [ALICE, BOB]

    def passes(source: str, destination: str, protocol: str, port: int | None = None) -> bool:
        return may_pass(document, both, Packet(source, destination, protocol, port), NOW)

    assert passes("100.64.0.1", "100.64.0.2", "tcp", 443)
    assert passes("fd00::1", "fd00::2", "icmp")
    assert not passes("100.64.0.2", "100.64.0.1", "tcp", 443)
    assert not passes("100.64.0.1", "100.64.0.2", "tcp", 445)
    assert not passes("100.64.0.1", "100.64.0.2", "udp", 443)
    assert not passes("100.64.0.1", "100.64.0.2", "gre")
    assert not passes("100.64.0.9", "100.64.0.2", "tcp", 443)
    assert passes("100.64.0.1", "100.64.0.1", "gre")


def test_a_prefix_selects_a_node_with_all_of_its_addresses() -> None:
    document = parse("hosts: {lab: 100.64.0.1}\ngrants: [{from: lab, to: bob, ip: tcp:443}]")
    assert may_pass(document, [ALICE, BOB], Packet("fd00::1", "fd00::2", "tcp", 443), NOW)


def test_star_never_lets_a_tunnel_pass() -> None:
    document = parse("grants: [{from: '*', to: '*', ip: '*'}]")
    for protocol in ("gre", "ipip", "ipv6", "sctp", "esp"):
        assert not may_pass(document, [ALICE, BOB], Packet("100.64.0.1", "100.64.0.2", protocol, 443), NOW)
