"""The mesh state by hand: what one change of a node, of policy or of time touches, and what stays out of every map."""

import re
from dataclasses import replace

import pytest

from controller.mesh.state import MeshState
from controller.records import Change, NodeRecord, PolicyRecord
from controller.wire.netmap import fold

from .mesh_fleet import (
    MESH,
    NOW,
    fleet,
    key,
    node,
)

GRANTS = """
grants:
  - {from: tag:agents, to: tag:tools, ip: [tcp:443]}
  - {from: h5, to: h6, ip: [udp:53]}
"""


def small() -> MeshState:
    nodes = [node(1, "agents"), node(2, "agents"), node(3, "tools"), node(4, "tools"), node(5), node(6), node(7)]
    return MeshState(fleet(nodes, GRANTS), NOW)


def test_a_join_touches_those_whom_policy_connects_and_nobody_else() -> None:
    state = small()
    affected = state.apply(Change(2, {"n8": node(8, "agents")}), NOW)
    assert affected.keys() == {"n3", "n4", "n8"}
    delta = state.delta("n3", affected["n3"], 1)
    assert delta is not None
    assert [p.id for p in delta.peers] == ["n8"]
    assert [(c.name, c.add, c.remove, c.delete) for c in delta.sets] == [
        ("tag:agents", frozenset(node(8).addresses), frozenset(), False)
    ]
    assert delta.rules == delta.rules_removed == ()


def test_a_tag_that_is_taken_away_is_an_element_and_a_peer_on_the_wire() -> None:
    state = small()
    affected = state.apply(Change(2, {"n1": node(1)}), NOW)
    assert affected.keys() == {"n1", "n3", "n4"}
    delta = state.delta("n4", affected["n4"], 1)
    assert delta is not None
    assert delta.peers_removed == ("n1",)
    assert [(c.name, c.add, c.remove) for c in delta.sets] == [
        ("tag:agents", frozenset(), frozenset(node(1).addresses))
    ]
    assert delta.rules == delta.rules_removed == ()


def test_a_new_key_touches_peers_only() -> None:
    state = small()
    affected = state.apply(Change(2, {"n3": node(3, "tools", public_key=key(99))}), NOW)
    assert affected.keys() == {"n1", "n2"}
    delta = state.delta("n1", affected["n1"], 1)
    assert delta is not None
    assert [p.public_key for p in delta.peers] == [key(99)]
    assert delta.sets == ()


@pytest.mark.parametrize(
    "record", [node(7), node(7, state="disabled"), node(7, "other"), None, node(7, public_key=key(9))]
)
def test_a_node_that_policy_does_not_name_touches_nobody_else(record: NodeRecord | None) -> None:
    assert small().apply(Change(2, {"n7": record}), NOW).keys() <= {"n7"}


def test_the_same_change_twice_touches_nobody_the_second_time() -> None:
    state = small()
    change = Change(2, {"n8": node(8, "agents")}, PolicyRecord(2, GRANTS + "  - {from: h7, to: h1, ip: icmp}"))
    assert state.apply(change, NOW)
    assert state.apply(change, NOW) == {}


def test_changes_that_arrive_out_of_order_end_in_the_newest() -> None:
    newer, older = Change(3, {"n1": node(1, "tools")}), Change(2, {"n1": node(1), "n7": node(7, "agents")})
    late, early = small(), small()
    for change in (newer, older):
        late.apply(change, NOW)
    for change in (older, newer):
        early.apply(change, NOW)
    for number in range(1, 8):
        assert late.netmap(f"n{number}") == early.netmap(f"n{number}")


def test_a_new_policy_sends_each_node_its_difference_only() -> None:
    state = small()
    text = GRANTS.replace("udp:53", "udp:54") + "  - {from: tag:agents, to: h7, ip: icmp}"
    affected = state.apply(Change(2, {}, PolicyRecord(2, text)), NOW)
    assert affected.keys() == {"n1", "n2", "n5", "n6", "n7"}
    delta = state.delta("n1", affected["n1"], 1)
    assert delta is not None
    assert [p.id for p in delta.peers] == ["n7"]
    assert {c.name for c in delta.sets} == {"node:h7"}
    assert [r.protocol for r in delta.rules] == ["icmp"]


def test_a_prefix_that_a_new_policy_moves_is_elements_and_peers_on_the_wire() -> None:
    text = "hosts: {lab: 100.64.0.1}\ngrants: [{from: lab, to: h3, ip: icmp}]"
    state = MeshState(fleet([node(1), node(2), node(3)], text), NOW)
    affected = state.apply(Change(2, {}, PolicyRecord(2, text.replace("0.1}", "0.2}"))), NOW)
    assert affected.keys() == {"n1", "n2", "n3"}
    delta = state.delta("n3", affected["n3"], 1)
    assert delta is not None
    assert [(c.name, c.add, c.remove) for c in delta.sets] == [
        ("host:lab", frozenset(node(2).addresses), frozenset(node(1).addresses))
    ]
    assert ([p.id for p in delta.peers], delta.peers_removed) == (["n2"], ("n1",))
    assert delta.rules == delta.rules_removed == ()


def test_keepalive_is_for_the_one_behind_the_nat() -> None:
    state = MeshState(fleet([node(1, "agents", behind_nat=True), node(3, "tools")], GRANTS), NOW)
    behind, public = state.netmap("n1"), state.netmap("n3")
    assert behind is not None
    assert public is not None
    assert behind.peers["n3"].keepalive == 25
    assert public.peers["n1"].keepalive is None
    affected = state.apply(Change(2, {"n1": node(1, "agents")}), NOW)
    assert affected.keys() == {"n1"}


@pytest.mark.parametrize("state_name", ["pending", "disabled"])
def test_a_node_that_is_not_active_has_a_map_of_itself_only(state_name: str) -> None:
    state = MeshState(fleet([node(1, "agents", state=state_name), node(3, "tools")], GRANTS), NOW)
    mine, theirs = state.netmap("n1"), state.netmap("n3")
    assert mine is not None
    assert theirs is not None
    assert (mine.peers, mine.sets, mine.rules) == ({}, {}, {})
    assert mine.node.addresses == node(1).addresses
    assert "n1" not in theirs.peers


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"public_key": "nonsense"}, "not a WireGuard public key"),
        ({"public_key": key(1)}, "public key .* belongs to node n1"),
        ({"addresses": ("100.64.0.1",)}, "address 100.64.0.1 belongs to node n1"),
        ({"addresses": ("192.0.2.1",)}, "outside the mesh"),
        ({"name": "h1"}, "name h1 belongs to node n1"),
        ({"name": "H\u0430"}, "U\\+0430|DNS label"),
        ({"tags": frozenset({"agents"})}, "not a tag"),
        ({"endpoints": ("nowhere",)}, "not an endpoint"),
    ],
)
def test_a_bad_record_is_left_out_and_reported_and_harms_nobody(
    bad: dict[str, object], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = [node(1, "agents"), node(3, "tools")]
    state = MeshState(fleet([*good, node(2, "agents", **bad)], GRANTS), NOW)
    assert state.netmap("n3") == MeshState(fleet(good, GRANTS), NOW).netmap("n3")
    assert [*state.left_out] == ["n2"]
    assert caplog.text.count("node n2 is left out of every map") == 1
    assert re.search(words, state.left_out["n2"])
    state.apply(Change(2, {"n2": node(2, "agents")}), NOW)
    mended = state.netmap("n3")
    assert mended is not None
    assert mended.peers.keys() == {"n1", "n2"}
    assert not state.left_out


def test_two_nodes_that_swap_addresses_in_one_change_both_keep_working() -> None:
    state = small()
    one, other = node(1, "agents"), node(2, "agents")
    swap = {"n1": replace(one, addresses=other.addresses), "n2": replace(other, addresses=one.addresses)}
    affected = state.apply(Change(2, swap), NOW)
    netmap = state.netmap("n3")
    assert netmap is not None
    assert netmap.peers["n1"].addresses == other.addresses
    assert netmap.peers["n2"].addresses == one.addresses
    assert not state.left_out
    assert {"n3", "n4"} <= affected.keys()


def test_what_another_node_held_is_free_when_it_leaves() -> None:
    state = small()
    state.apply(Change(2, {"n8": node(8, "agents", addresses=node(1).addresses)}), NOW)
    assert [*state.left_out] == ["n8"]
    affected = state.apply(Change(3, {"n1": None}), NOW)
    netmap = state.netmap("n3")
    assert netmap is not None
    assert netmap.peers.keys() == {"n2", "n8"}
    assert {"n3", "n4", "n8"} <= affected.keys()


def test_a_policy_that_cannot_be_read_allows_nothing() -> None:
    state = MeshState(fleet([node(1, "agents"), node(3, "tools")], "grants: nonsense"), NOW)
    netmap = state.netmap("n1")
    assert netmap is not None
    assert netmap.rules == {}


def test_an_expired_grant_leaves_the_maps_with_its_peers() -> None:
    text = "grants: [{from: h1, to: h2, ip: icmp, expires: 2027-01-15T08:00:10Z}, {from: h1, to: h3, ip: icmp}]"
    state = MeshState(fleet([node(1), node(2), node(3)], text), NOW)
    before = state.netmap("n1")
    assert before is not None
    assert before.peers.keys() == {"n2", "n3"}
    assert state.next_expiry == NOW + 10
    assert state.expire(NOW + 9) == {}
    affected = state.expire(NOW + 10)
    assert affected.keys() == {"n1", "n2"}
    after = state.netmap("n1")
    delta = state.delta("n1", affected["n1"], 1)
    assert after is not None
    assert delta is not None
    assert after.peers.keys() == {"n3"}
    assert fold(before, delta) == after
    assert state.next_expiry is None


def test_the_mesh_of_a_map_is_that_of_the_fleet() -> None:
    netmap = small().netmap("n1")
    assert netmap is not None
    assert netmap.mesh == MESH
    assert small().netmap("nobody") is None


EIGHT = [node(number) for number in range(1, 9)]
EVERYBODY = "grants: [{from: '*', to: '*', ip: [tcp:443]}]"


def test_hosts_that_a_change_touches_alike_share_one_value_of_what_they_must_be_told() -> None:
    state = MeshState(fleet(EIGHT, EVERYBODY), NOW)
    affected = state.apply(Change(6, {"n1": node(1, endpoints=("192.0.2.77:51820",))}), NOW)
    assert affected.keys() == {f"n{number}" for number in range(2, 9)}
    assert len(set(map(id, affected.values()))) == 1


def test_hosts_that_several_changed_nodes_touch_alike_share_one_value_too() -> None:
    state = MeshState(fleet(EIGHT, EVERYBODY), NOW)
    moved = {f"n{number}": node(number, endpoints=(f"192.0.2.7{number}:51820",)) for number in (1, 2)}
    affected = state.apply(Change(6, moved), NOW)
    others = {f"n{number}" for number in range(3, 9)}
    assert len({id(affected[node_id]) for node_id in others}) == 1
    assert affected["n3"].peers == {"n1", "n2"}
    assert affected["n1"].peers - {"n1"} == {"n2"}
