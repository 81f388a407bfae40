"""`fold` and `diff`: the one way in which a map changes on a host."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.wire.mcp import HttpUpstream, McpGrant, Service
from controller.wire.netmap import (
    AddressSet,
    Delta,
    FoldError,
    Mesh,
    Netmap,
    Peer,
    Rule,
    SelfNode,
    SetChange,
    diff,
    fold,
)
from controller.wire.rules import Flow, allowing

MESH = Mesh(id="m1", name="mesh", prefix4="100.64.0.0/16", prefix6="fd00:1::/48")
KEYS = ("YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=", "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI=")

names = st.sampled_from(["a", "b", "c", "d"])
addresses = st.integers(1, 9).map(lambda n: f"100.64.0.{n}")
meshes = st.sampled_from([MESH, MESH.model_copy(update={"domain": "other.internal"})])
held = st.sampled_from([(), ("100.64.0.200",)])
nodes = st.builds(SelfNode, id=st.just("n0"), name=names, addresses=st.tuples(addresses), held=held)
peers = st.builds(
    Peer,
    id=names,
    name=names,
    public_key=st.sampled_from(KEYS),
    addresses=st.tuples(addresses),
    held=held,
    keepalive=st.sampled_from([None, 25]),
)
sets = st.builds(AddressSet, name=names, addresses=st.frozensets(addresses, max_size=4))
rules = st.builds(
    Rule,
    id=names,
    grant=st.just("g1"),
    direction=st.sampled_from(["in", "out"]),
    protocol=st.just("tcp"),
    ports=st.just(((443, 443),)),
    peers=st.tuples(names),
    expires=st.sampled_from([None, 1_900_000_000]),
)
services = st.builds(
    Service,
    name=names,
    addresses=st.tuples(addresses),
    upstream=st.builds(HttpUpstream, url=st.sampled_from(["http://127.0.0.1:3000/mcp", "http://127.0.0.1:3001/mcp"])),
)
calls = st.builds(
    McpGrant,
    id=names,
    peers=st.tuples(names),
    services=st.tuples(names),
    tools=st.sampled_from([("search_*",), ()]),
)


@st.composite
def netmaps(draw: st.DrawFn, revision: int) -> Netmap:
    return Netmap(
        revision=revision,
        mesh=draw(meshes),
        node=draw(nodes),
        peers={p.id: p for p in draw(st.lists(peers, max_size=4))},
        sets={s.name: s for s in draw(st.lists(sets, max_size=4))},
        rules={r.id: r for r in draw(st.lists(rules, max_size=4))},
        services={s.name: s for s in draw(st.lists(services, max_size=4))},
        calls={c.id: c for c in draw(st.lists(calls, max_size=4))},
        names=draw(st.dictionaries(names, st.tuples(addresses), max_size=4)),
    )


@given(netmaps(1), netmaps(4))
def test_folding_a_diff_gives_the_new_map(old: Netmap, new: Netmap) -> None:
    assert fold(old, diff(old, new)) == new


@given(netmaps(1), netmaps(4))
def test_folding_twice_is_folding_once(old: Netmap, new: Netmap) -> None:
    delta = diff(old, new)
    assert fold(fold(old, delta), delta) == new


@given(netmaps(1), netmaps(4))
def test_a_delta_means_the_same_after_the_wire(old: Netmap, new: Netmap) -> None:
    delta = Delta.model_validate_json(diff(old, new).model_dump_json())
    received = Netmap.model_validate_json(old.model_dump_json())
    assert fold(received, delta) == new


@given(netmaps(3))
def test_nothing_changed_is_an_empty_delta(netmap: Netmap) -> None:
    delta = diff(netmap, netmap.model_copy(update={"revision": 9}))
    assert delta.is_empty()
    assert fold(netmap, delta).revision == 9


@given(netmaps(1), netmaps(4), netmaps(6))
def test_gaps_and_replays_are_refused(first: Netmap, second: Netmap, third: Netmap) -> None:
    later, earlier = diff(second, third), diff(first, second)
    with pytest.raises(FoldError, match="revision 1"):
        fold(first, later)
    with pytest.raises(FoldError, match="revision 6"):
        fold(third, earlier)


@given(netmaps(1), netmaps(4))
def test_a_delta_from_an_older_base_still_applies_to_a_map_in_between(old: Netmap, new: Netmap) -> None:
    """A resumed host may get a delta that reaches further back than its map."""
    assert fold(new.model_copy(update={"revision": 2}), diff(old, new)).revision == 4


def test_a_set_can_be_replaced_whole_within_one_delta() -> None:
    old = Netmap(
        revision=1,
        mesh=MESH,
        node=SelfNode(id="n0", name="a", addresses=()),
        sets={"s": AddressSet(name="s", addresses=frozenset({"100.64.0.1"}))},
    )
    change = (SetChange(name="s", delete=True), SetChange(name="s", add=frozenset({"100.64.0.2"})))
    assert fold(old, Delta(base=1, revision=2, sets=change)).sets["s"].addresses == {"100.64.0.2"}


def allowance(**changes: object) -> Rule:
    return Rule(id="r", grant="g", direction="in", protocol="tcp", ports=((443, 443),), peers=("s",)).model_copy(
        update=changes
    )


@pytest.mark.parametrize(
    ("rule", "flow", "allowed"),
    [
        (allowance(), Flow(direction="in", peer="100.64.0.1", protocol="tcp", port=443), True),
        (allowance(), Flow(direction="in", peer="100.64.0.1", protocol="tcp", port=444), False),
        (allowance(), Flow(direction="in", peer="100.64.0.2", protocol="tcp", port=443), False),
        (allowance(), Flow(direction="out", peer="100.64.0.1", protocol="tcp", port=443), False),
        (allowance(), Flow(direction="in", peer="100.64.0.1", protocol="udp", port=443), False),
        (allowance(), Flow(direction="in", peer="100.64.0.1", protocol="tcp"), False),
        (allowance(peers=("gone",)), Flow(direction="in", peer="100.64.0.1", protocol="tcp", port=443), False),
        (allowance(expires=100), Flow(direction="in", peer="100.64.0.1", protocol="tcp", port=443), False),
        (allowance(expires=101), Flow(direction="in", peer="100.64.0.1", protocol="tcp", port=443), True),
        (allowance(protocol="icmp", ports=()), Flow(direction="in", peer="100.64.0.1", protocol="icmp"), True),
    ],
)
def test_a_rule_allows_what_it_names_and_nothing_else(rule: Rule, flow: Flow, allowed: bool) -> None:
    netmap = Netmap(
        revision=1,
        mesh=MESH,
        node=SelfNode(id="n0", name="a", addresses=()),
        sets={"s": AddressSet(name="s", addresses=frozenset({"100.64.0.1"}))},
        rules={"r": rule},
    )
    assert bool(allowing(netmap, flow, now=100.0)) == allowed


def test_a_rule_for_a_service_is_not_a_rule_for_its_host() -> None:
    to_host = allowance(id="host", peers=("tag:ops",))
    to_service = to_host.model_copy(update={"id": "service", "local": ("svc:github",)})
    to_nobody = to_host.model_copy(update={"id": "nobody", "local": ("svc:gone",)})
    netmap = Netmap(
        revision=1,
        mesh=MESH,
        node=SelfNode(id="n0", name="a", addresses=("100.64.0.1",), held=("100.64.0.200", "100.64.0.201")),
        sets={
            "tag:ops": AddressSet(name="tag:ops", addresses=frozenset({"100.64.0.2"})),
            "svc:github": AddressSet(name="svc:github", addresses=frozenset({"100.64.0.200"})),
            "svc:gone": AddressSet(name="svc:gone", addresses=frozenset({"100.64.0.202"})),
        },
        rules={rule.id: rule for rule in (to_host, to_service, to_nobody)},
    )

    def rules_for(local: str | None) -> list[str]:
        flow = Flow(direction="in", peer="100.64.0.2", protocol="tcp", port=443, local=local)
        return [rule.id for rule in allowing(netmap, flow, now=0)]

    assert rules_for(None) == rules_for("100.64.0.1") == ["host"]
    assert rules_for("100.64.0.200") == ["service"]
    assert rules_for("100.64.0.201") == []
    assert rules_for("100.64.0.202") == []
