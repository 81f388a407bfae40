"""Temporary grants in the mesh: they stand beside any document, concern their own nodes, and end by themselves."""

import json
from dataclasses import replace

import pytest
from pydantic import JsonValue

from controller.mesh.state import MeshState
from controller.policy import parse
from controller.policy.temporary import beside, read_grant
from controller.records import Change, PolicyRecord, TemporaryGrant
from controller.wire.netmap import Netmap, fold

from .mesh_fleet import NOW, fleet, node, place, temporary

POLICY = """
groups: {ops: [tag:agents]}
grants: [{from: tag:agents, to: tag:tools, ip: tcp:443}]
"""
NODES = [node(1, "agents"), node(2, "agents"), node(3, "tools"), node(4), node(5)]
CREATED = Change(2, grants={"t1": temporary(1, "node:h4", "node:h5", "tcp:22", NOW + 60)})


def state(*grants: TemporaryGrant) -> MeshState:
    return MeshState(fleet(NODES, POLICY, grants=grants), NOW)


def netmap(of: MeshState, node_id: str) -> Netmap:
    found = of.netmap(node_id)
    assert found is not None
    return found


def rules(of: MeshState, node_id: str) -> dict[str, int | None]:
    return {rule.id: rule.expires for rule in netmap(of, node_id).rules.values()}


def test_a_new_one_touches_its_nodes_alone_and_its_rules_carry_id_and_expiry() -> None:
    mesh = state()
    assert mesh.apply(CREATED, NOW).keys() == {"n4", "n5"}
    assert rules(mesh, "n4") == {"t1.out.tcp": int(NOW) + 60}
    assert rules(mesh, "n5") == {"t1.in.tcp": int(NOW) + 60}
    assert mesh.next_expiry == NOW + 60


def test_an_extension_is_the_same_rules_with_a_later_end() -> None:
    mesh = state()
    mesh.apply(CREATED, NOW)
    before = netmap(mesh, "n4")
    affected = mesh.apply(Change(3, grants={"t1": temporary(1, "node:h4", "node:h5", "tcp:22", NOW + 600)}), NOW)
    assert affected.keys() == {"n4", "n5"}
    delta = mesh.delta("n4", affected["n4"], 2)
    assert delta is not None
    assert [(rule.id, rule.expires) for rule in delta.rules] == [("t1.out.tcp", int(NOW) + 600)]
    assert (delta.peers, delta.sets, delta.rules_removed) == ((), (), ())
    assert fold(before, delta) == netmap(mesh, "n4")
    assert mesh.next_expiry == NOW + 600


def test_one_that_is_revoked_leaves_the_maps_with_its_peers() -> None:
    mesh = state(temporary(1, "node:h4", "node:h5"))
    assert netmap(mesh, "n4").peers.keys() == {"n5"}
    assert mesh.apply(Change(2, grants={"t1": None}), NOW).keys() == {"n4", "n5"}
    assert (netmap(mesh, "n4").peers, netmap(mesh, "n4").rules) == ({}, {})
    assert mesh.next_expiry is None


def test_one_that_ends_leaves_the_maps_without_a_change() -> None:
    mesh = state(temporary(1, "node:h4", "node:h5", expires=NOW + 10))
    assert mesh.expire(NOW + 9) == {}
    assert mesh.expire(NOW + 10).keys() == {"n4", "n5"}
    assert netmap(mesh, "n4").peers == {}
    assert mesh.temporary("t1") is None


def test_one_that_ended_while_the_controller_was_away_is_in_nobodys_map() -> None:
    mesh = state(temporary(1, "node:h4", "node:h5", expires=NOW - 1))
    assert netmap(mesh, "n4").rules == {}
    assert mesh.next_expiry is None


def test_a_new_policy_keeps_them() -> None:
    mesh = state(temporary(1, "node:h4", "node:h5"))
    affected = mesh.apply(Change(2, policy=PolicyRecord(2, "grants: []")), NOW)
    assert affected.keys() == {"n1", "n2", "n3"}
    assert rules(mesh, "n4").keys() == {"t1.out.tcp"}


def test_one_whose_group_a_new_policy_forgets_allows_nothing_until_the_group_is_back() -> None:
    mesh = state(temporary(1, "group:ops", "node:h5"), temporary(2, "node:h4", "node:h5"))
    assert mesh.idleness("t1") is None
    affected = mesh.apply(Change(2, policy=PolicyRecord(2, POLICY.replace("ops", "opz"))), NOW)
    assert affected.keys() == {"n1", "n2", "n5"}
    assert "there is no group 'ops' (did you mean 'opz'?)" in (mesh.idleness("t1") or "")
    assert mesh.idleness("t2") is None
    assert rules(mesh, "n5").keys() == {"t2.in.tcp"}
    mesh.apply(Change(3, policy=PolicyRecord(3, POLICY)), NOW)
    assert mesh.idleness("t1") is None
    assert rules(mesh, "n5").keys() == {"t1.in.tcp", "t2.in.tcp"}


def test_one_whose_node_left_says_that_nobody_matches() -> None:
    mesh = state(temporary(1, "node:h4", "node:h5"))
    mesh.apply(Change(2, {"n5": None}), NOW)
    assert mesh.idleness("t1") == "nobody matches 'to' now: node:h5"


def test_a_policy_that_cannot_be_read_leaves_them_in_force() -> None:
    mesh = MeshState(fleet(NODES, "grants: nonsense", grants=[temporary(1, "node:h4", "node:h5")]), NOW)
    assert rules(mesh, "n4").keys() == {"t1.out.tcp"}


def test_it_never_takes_the_place_of_a_documents_grant() -> None:
    document, unread = beside(parse(POLICY), [temporary(1, "tag:agents", "tag:tools", "tcp:443")])
    assert not unread
    assert [grant.id for grant in document.grants] == [parse(POLICY).grants[0].id, "t1"]


@pytest.mark.parametrize(
    ("from_", "to", "ip", "field", "message"),
    [
        ("h44", "h5", "tcp:22", "from", "there is no node, host or group 'h44' (did you mean 'h4'?)"),
        ("node:h6", "h5", "tcp:22", "from", "there is no node 'h6'"),
        ("h4", "tag:tool", "tcp:22", "to", "no node has 'tag:tool', and no policy declares it (did you mean 'tag:to"),
        ("group:op", "h5", "tcp:22", "from", "there is no group 'op' (did you mean 'ops'?)"),
        ("host:lab", "h5", "tcp:22", "from", "there is no host 'lab'"),
        ("h4", "user:me", "tcp:22", "to", "'user' is no kind of selector"),
        ("h4", "H5", "tcp:22", "to", "'H5' is not a DNS label"),
        ("h4", "h5", "tpc:22", "ip", "'tpc:22' names no protocol that can pass (did you mean 'tcp'?)"),
        ("h4", "h5", "tcp:99999", "ip", "99999"),
        ("h4", "h5", "tcp", "ip", "lacks ports"),
        ("h4", "h4", "tcp:22", None, "'h4' is on both sides"),
        ("h4", "node:h4", "tcp:22", None, "'h4' is on both sides"),
    ],
)
def test_what_names_nothing_is_refused_in_the_words_of_a_document(
    from_: str, to: str, ip: str, field: str | None, message: str
) -> None:
    grant, faults = read_grant([from_], [to], [ip], parse(POLICY), NODES)
    assert grant is None
    assert [fault.field for fault in faults] == [field]
    assert message in faults[0].message


GATEWAY = "services: {github: {on: [tag:tools], mcp: {upstream: 'http://127.0.0.1:3000/mcp'}}}"


@pytest.mark.parametrize("mcp", [None, {}, {"deny_tools": ["x"]}])
def test_a_service_whose_calls_it_does_not_name_is_refused(mcp: dict[str, JsonValue] | None) -> None:
    """It would open the port and no tool: whoever asked for it would have nothing."""
    _, faults = read_grant(["h4"], ["svc:github"], [], parse(GATEWAY), NODES, mcp=mcp)
    assert [(fault.code, fault.field) for fault in faults] == [("mcp", "to")]
    assert "name what may be called on it, like mcp: {tools: [get_*]}" in faults[0].message


def test_calls_reach_the_gateways_with_id_and_end_as_a_documents_grant_would() -> None:
    mesh = MeshState(fleet(NODES, GATEWAY, places=[place("github", 1, "n3")]), NOW)
    mcp: dict[str, JsonValue] = {
        "tools": ["get_*", "create_issue"],
        "deny_tools": ["get_secret"],
        "args": {"create_issue": {"repo": {"one_of": ["web", 7, True, None]}, "count": {"range": {"max": 2.5}}}},
        "schemas": {"create_issue": {"type": "object", "maxProperties": 3}},
        "limits": {"get_*": "5/10s"},
    }
    wanted = replace(temporary(1, "node:h4", "svc:github", expires=NOW + 60), ip=(), mcp=mcp)
    assert mesh.apply(Change(2, grants={"t1": wanted}), NOW).keys() == {"n3", "n4"}
    (call,) = netmap(mesh, "n3").calls.values()
    assert (call.id, call.peers, call.services, call.expires) == ("t1", ("node:h4",), ("github",), int(NOW) + 60)
    written = parse(GATEWAY + "\ngrants: [{from: node:h4, to: svc:github, mcp: " + json.dumps(mcp) + "}]").grants[0].mcp
    assert written is not None
    assert (call.tools, call.deny_tools, call.args, call.limits) == (
        written.tools,
        written.deny_tools,
        written.args,
        written.limits,
    )
    assert rules(mesh, "n4") == {"t1.out.github.tcp": int(NOW) + 60}


@pytest.mark.parametrize(
    ("mcp", "message"),
    [
        ({"tool": ["x"]}, "mcp has no 'tool' (did you mean 'tools'?)"),
        ({"tools": ["a"], "args": {"b": {"x": {"equals": 1}}}}, "args speaks of 'b', which this grant's tools do not"),
        ({"tools": ["a"], "args": {"a": {"x": {"pattern": "("}}}}, "'('"),
        ({"tools": ["a"], "limits": {"a": "often"}}, "'often' is not a rate"),
        ({"tools": ["a"], "schemas": {"a": {"type": "nonsense"}}}, "nonsense"),
        ({"tools": ["a"], "schemas": {"a": json.loads('{"not":' * 40 + "{}" + "}" * 40)}}, "nested deeper than"),
    ],
)
def test_what_is_wrong_with_calls_is_said_in_the_words_of_a_document(mcp: dict[str, JsonValue], message: str) -> None:
    _, faults = read_grant(["h4"], ["svc:github"], [], parse(GATEWAY), NODES, mcp=mcp)
    assert [fault.field for fault in faults] == ["mcp"]
    assert message in faults[0].message


def test_calls_on_what_has_none_are_refused() -> None:
    document = parse("services: {db: {on: [node:h5], port: 5432}}")
    _, faults = read_grant(["h4"], ["svc:db"], [], document, NODES, mcp={"tools": ["x"]})
    assert [fault.field for fault in faults] == ["to"]
    assert "svc:db is no service with mcp" in faults[0].message


def test_a_tag_is_known_when_the_policy_declares_it_or_a_node_has_it() -> None:
    grant, faults = read_grant(["tag:new"], ["tag:tools"], ["icmp"], parse("tags: {new: [], tools: []}"), NODES)
    assert not faults
    assert grant is not None
    _, faults = read_grant(["tag:agents"], ["tag:tools"], ["icmp"], parse("tags: {tools: []}"), NODES)
    assert [fault.code for fault in faults] == ["unknown-tag"]


def test_a_grant_without_flows_says_what_is_missing() -> None:
    _, faults = read_grant(["h4"], ["h5"], [], parse(POLICY), NODES)
    assert [fault.message for fault in faults] == [
        "a grant to node:h5 needs ip, like ip: [tcp:443]; only services have ports of their own"
    ]


def test_a_service_needs_no_flows_and_one_that_is_unknown_is_refused() -> None:
    mesh = MeshState(fleet(NODES, "services: {db: {on: [node:h5], port: 5432}}"), NOW)
    wanted = TemporaryGrant("t1", ("node:h4",), ("svc:db",), (), "for a test", "token:wma_x", int(NOW) + 60)
    assert mesh.apply(Change(2, grants={"t1": wanted}), NOW).keys() == {"n4", "n5"}
    (rule,) = netmap(mesh, "n4").rules.values()
    assert (rule.grant, rule.ports, rule.expires) == ("t1", ((5432, 5432),), int(NOW) + 60)
    _, faults = read_grant(["h4"], ["svc:dbs"], [], mesh.written, NODES)
    assert [(fault.field, fault.message) for fault in faults] == [
        ("to", "there is no service 'dbs' (did you mean 'db'?)")
    ]
