"""What policy and maps say of relays: who is one, whom they serve, between whom they forward."""

import pytest

from controller.mesh.state import MeshState
from controller.policy import PolicyError, check, parse
from controller.records import Change
from controller.wire.netmap import Netmap
from controller.wire.relays import relay_address, relay_prefix, relays_of

from .mesh_fleet import MESH, NOW, fleet, node

POLICY = """
relays:
  eu: {on: [tag:relay]}
  us: {on: h8}
grants:
  - {from: tag:agents, to: tag:tools, ip: [tcp:443]}
  - {from: tag:agents, to: svc:github, mcp: {tools: ["*"]}}
services:
  github: {on: [tag:serve], mcp: {upstream: "http://127.0.0.1:3000/mcp"}}
"""
NODES = (
    node(1, "agents"),
    node(2, "tools"),
    node(3, "other"),
    node(4, "agents", kind="static"),
    node(5, "serve"),
    node(7, "relay"),
    node(8),
    node(9, "relay", kind="static"),
)


def maps(text: str = POLICY) -> dict[str, Netmap]:
    state = MeshState(fleet(NODES, text), NOW)
    found = {record.id: state.netmap(record.id) for record in NODES}
    return {node_id: netmap for node_id, netmap in found.items() if netmap is not None}


def test_every_host_may_use_every_relay_and_no_static_peer_is_one_or_uses_one() -> None:
    found = maps()
    for host in ("n1", "n2", "n3", "n5"):
        assert {(relay.node, relay.region) for relay in relays_of(found[host]).usable} == {("n7", "eu"), ("n8", "us")}
    for static in ("n4", "n9"):
        assert relays_of(found[static]) == relays_of(maps("grants: []")["n4"])


def test_a_relay_knows_every_host_and_uses_the_other_relays_only() -> None:
    relay = maps()["n7"]
    own = relays_of(relay).own
    assert own is not None
    assert (own.region, own.address) == ("eu", "fd00:1::7")
    assert relay.peers.keys() == {"n1", "n2", "n3", "n5", "n8"}
    assert [one.node for one in relays_of(relay).usable] == ["n8"]


def test_relays_change_no_rule_of_anybody() -> None:
    with_relays, without = maps(), maps(POLICY.replace("relays:\n  eu: {on: [tag:relay]}\n  us: {on: h8}\n", ""))
    assert {node_id: found.rules for node_id, found in with_relays.items()} == {
        node_id: found.rules for node_id, found in without.items()
    }


def test_relays_forward_between_those_whom_a_grant_connects_and_services_are_where_their_hosts_are() -> None:
    found = maps()
    assert not found["n1"].forwards
    sides = {(one.between, one.and_) for one in found["n7"].forwards.values()}
    assert sides == {(("tag:agents",), ("tag:tools",)), (("tag:agents",), ("tag:serve",))}
    assert found["n7"].sets["tag:tools"].addresses == {"100.64.0.2", "fd00:1::2"}


def test_a_relay_that_is_gone_leaves_the_map_of_whoever_used_it() -> None:
    state = MeshState(fleet(NODES, POLICY), NOW)
    affected = state.apply(Change(2, {"n7": None}), NOW)
    assert affected.keys() == {"n1", "n2", "n3", "n5", "n8"}
    netmap = state.netmap("n1")
    assert netmap is not None
    assert [one.node for one in relays_of(netmap).usable] == ["n8"]


def test_places_behind_a_relay_are_the_same_for_all_and_differ_by_host_relay_and_mesh() -> None:
    prefix = relay_prefix(MESH, "fd00:1::7")
    assert prefix.startswith("fd")
    assert prefix.endswith("::/64")
    assert prefix == relay_prefix(MESH, "fd00:1::7") != relay_prefix(MESH, "fd00:1::8")
    assert prefix != relay_prefix(MESH.model_copy(update={"id": "other"}), "fd00:1::7")
    assert relay_address(prefix, "fd00:1::2a") == prefix.replace("::/64", "::2a")
    relays = relays_of(maps()["n1"])
    eu = relays.usable[0]
    place = eu.place(("100.64.0.2", "fd00:1::2"))
    assert place is not None
    assert relays.behind(f"[{place}]:51820") == eu
    assert relays.behind("[fd00:1::2]:51820") is None
    assert relays.behind("192.0.2.1:51820") is None
    assert eu.place(("100.64.0.2",)) is None


def test_a_document_with_relays_is_checked_as_one_with_services_is() -> None:
    report = check("relays: {eu: {on: tag:nobody}}", fleet(NODES, POLICY), NOW)
    assert report.ok
    assert [finding.code for finding in report.findings] == ["idle-relay"]
    with pytest.raises(PolicyError, match="region 'eu' needs on"):
        parse("relays: {eu: {}}")
    with pytest.raises(PolicyError, match="not a DNS label"):
        parse("relays: {EU: {on: tag:a}}")
