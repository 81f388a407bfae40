"""The mesh state: any sequence of changes, folded by a client, is a fresh snapshot; only those concerned hear of it."""

import itertools
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.mesh.dirty import Dirty, merged
from controller.mesh.log import RevisionLog
from controller.mesh.past import Named, Past
from controller.mesh.state import MeshState
from controller.policy import Document, parse
from controller.policy.model import Member, Packet, allowing_grants, may_pass
from controller.policy.temporary import beside
from controller.records import Change, Fleet, NodeRecord, PastChange, PolicyRecord, ServiceRecord
from controller.wire.netmap import Delta, Netmap, fold
from controller.wire.rules import Flow, allowing

from .mesh_fleet import (
    NOW,
    SERVICES,
    TAGS,
    fleet,
    fleets,
    fleets_with_services,
    key,
    node,
    places,
    policies_with_services,
    temporaries,
)


@st.composite
def any_record(draw: st.DrawFn) -> NodeRecord:
    """A node that may have a new name, tags, addresses or key, or a damaged one; never in conflict with others."""
    number = draw(st.integers(1, 8))
    shift = draw(st.sampled_from([0, 0, 0, 256]))
    return node(
        number,
        *draw(st.sets(st.sampled_from(TAGS), max_size=2)),
        name=draw(st.sampled_from([f"h{number}", f"h{number}", f"x{number}"])),
        state=draw(st.sampled_from(["active", "active", "active", "pending", "disabled"])),
        addresses=draw(
            st.sampled_from([(f"100.64.{shift >> 8}.{number}", f"fd00:1::{number:x}"), (f"100.64.0.{number}",)])
        ),
        public_key=draw(st.sampled_from([key(number), key(number), key(number + shift), "damaged"])),
        endpoints=draw(st.sampled_from([(), (f"192.0.2.{number}:51820",)])),
        behind_nat=draw(st.booleans()),
        kind=draw(st.sampled_from(["agent", "agent", "static"])),
    )


some_places = st.dictionaries(st.sampled_from(SERVICES), st.none(), min_size=1, max_size=2).flatmap(
    lambda names: st.fixed_dictionaries({name: st.none() | places(name) for name in names})
)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    """A change of revision 0: of one object of any kind, or of several. `numbered` gives it a revision."""
    kinds = ["set", "set", "set", "remove", "policy", "grant", "revoke", "place", "place", "several"]
    kind = draw(st.sampled_from(kinds))
    if kind == "remove":
        return Change(0, {f"n{draw(st.integers(1, 8))}": None})
    if kind == "policy":
        return Change(0, policy=PolicyRecord(0, draw(policies_with_services())))
    if kind == "revoke":
        return Change(0, grants={f"t{draw(st.integers(1, 3))}": None})
    if kind == "place":
        return Change(0, services=draw(some_places))
    granted = {} if kind == "set" else {g.id: g for g in [draw(temporaries())]}
    if kind == "grant":
        return Change(0, grants=granted)
    found = draw(st.lists(any_record(), min_size=1, max_size=1 if kind == "set" else 4))
    nodes: dict[str, NodeRecord | None] = {r.id: r for r in found}
    if kind == "set":
        return Change(0, nodes)
    return Change(0, nodes, PolicyRecord(0, draw(policies_with_services())), draw(some_places), granted)


def numbered(change: Change, revision: int) -> Change:
    policy = None if change.policy is None else PolicyRecord(revision, change.policy.text)
    return replace(change, revision=revision, policy=policy)


def objects(change: Change) -> int:
    """How many objects it is about."""
    return len(change.nodes) + len(change.grants) + len(change.services) + (change.policy is not None)


class Client:
    """A host that folds what it is sent, through JSON, and may be slow: then it gets one delta for several changes."""

    def __init__(self, state: MeshState, node_id: str) -> None:
        netmap = state.netmap(node_id)
        assert netmap is not None
        self.netmap = received(netmap)
        self.waiting: list[Dirty] = []

    def catch_up(self, state: MeshState) -> None:
        delta = state.delta(self.netmap.node.id, merged(self.waiting), self.netmap.revision)
        assert delta is not None
        self.waiting = []
        self.netmap = fold(self.netmap, Delta.model_validate_json(delta.model_dump_json()))


def received(netmap: Netmap) -> Netmap:
    return Netmap.model_validate_json(netmap.model_dump_json())


def applied(records: Fleet, change: Change) -> Fleet:
    nodes = dict(records.nodes)
    for node_id, record in change.nodes.items():
        nodes.pop(node_id, None)
        if record is not None:
            nodes[node_id] = record
    services = {n: s for n, s in {**records.services, **change.services}.items() if s is not None}
    granted = {**records.grants, **change.grants}
    grants = {grant_id: grant for grant_id, grant in granted.items() if grant is not None}
    return Fleet(change.revision, records.mesh, nodes, change.policy or records.policy, services, grants)


@settings(max_examples=300)
@given(fleets_with_services(), st.lists(st.tuples(changes(), st.booleans()), max_size=12))
def test_folded_deltas_are_a_fresh_snapshot_for_every_node(start: Fleet, steps: list[tuple[Change, bool]]) -> None:
    state, now = MeshState(start, NOW), start
    clients = {node_id: Client(state, node_id) for node_id in start.nodes}
    for revision, (step, catch_up) in enumerate(steps, start=2):
        change = numbered(step, revision)
        affected = state.apply(change, NOW)
        now = applied(now, change)
        fresh = MeshState(now, NOW)
        for node_id in list(clients):
            if state.netmap(node_id) is None:
                del clients[node_id]
        for node_id in now.nodes:
            if node_id not in clients and state.netmap(node_id) is not None:
                clients[node_id] = Client(state, node_id)
        for node_id, client in clients.items():
            client.waiting.extend([affected[node_id]] if node_id in affected else [])
            if catch_up or revision == len(steps) + 1:
                client.catch_up(state)
                expected = fresh.netmap(node_id)
                assert expected is not None
                assert client.netmap == expected
                assert received(expected) == expected
        assert {n for n in now.nodes if state.netmap(n) is None} == {n for n in now.nodes if fresh.netmap(n) is None}


@settings(max_examples=200)
@given(
    fleets_with_services(),
    st.lists(changes(), min_size=1, max_size=8),
    st.integers(0, 8),
    st.sampled_from([10_000, 12, 40]),
)
def test_a_host_that_resumes_from_any_revision_in_the_log_has_a_fresh_snapshot(
    start: Fleet, steps: list[Change], away: int, log_size: int
) -> None:
    state, log = MeshState(start, NOW), RevisionLog(1, max_size=log_size)
    held = {node_id: netmap for node_id in start.nodes if (netmap := state.netmap(node_id))}
    for revision, step in enumerate(steps, start=2):
        log.add(revision, state.apply(numbered(step, revision), NOW))
        if revision <= away:
            held = {node_id: netmap for node_id in held if (netmap := state.netmap(node_id))}
        for node_id in [node_id for node_id, record in step.nodes.items() if record is None]:
            held.pop(node_id, None)  # a host that joins again has another id, and no map to continue
    for node_id, netmap in held.items():
        missed = log.since(node_id, netmap.revision)
        now = state.netmap(node_id)
        if missed is not None and now is not None:
            delta = state.delta(node_id, missed, netmap.revision)
            assert delta is not None
            assert fold(netmap, delta) == now


def as_past(change: Change) -> PastChange:
    rules = change.policy is not None or bool(change.grants)
    return PastChange(change.revision, NOW - 10_000, tuple(change.nodes), tuple(change.services), rules=rules)


def for_life(change: Change) -> Change:
    """A node has its addresses for life, and a temporary grant that ends makes its own test."""
    nodes = {n: r and replace(r, addresses=node(int(n[1:])).addresses) for n, r in change.nodes.items()}
    return replace(change, nodes=nodes, grants={})


@settings(max_examples=300)
@given(
    fleets_with_services(),
    st.lists(changes(), min_size=1, max_size=8),
    st.integers(1, 9),
    st.sampled_from([500, 2]),
    st.lists(changes(), max_size=2),
)
def test_a_host_that_resumes_after_a_restart_has_a_fresh_snapshot(
    start: Fleet, steps: list[Change], away: int, names: int, afterwards: list[Change]
) -> None:
    start = replace(start, grants={}, past=[PastChange(1, NOW - 10_000, rules=True)])
    state, now, held = MeshState(start, NOW), start, {}
    for revision, step in enumerate([None, *steps], start=1):
        if step is not None:
            change = for_life(numbered(step, revision))
            state.apply(change, NOW)
            now = replace(applied(now, change), past=[*now.past, as_past(change)])
        if revision == min(away, len(steps) + 1):
            held = {node_id: netmap for node_id in now.nodes if (netmap := state.netmap(node_id))}
        held = {node_id: netmap for node_id, netmap in held.items() if node_id in now.nodes}
    restarted, past = MeshState(now, NOW), Past(now.revision, now.past, None, most=names)
    log = RevisionLog(now.revision)
    for revision, step in enumerate(afterwards, start=now.revision + 1):
        log.add(revision, restarted.apply(for_life(numbered(step, revision)), NOW))
    for node_id, netmap in held.items():
        named, since = past.since(node_id, netmap.revision), log.since(node_id, now.revision)
        expected = restarted.netmap(node_id)
        if named is not None and since is not None and expected is not None:
            delta = restarted.delta(node_id, merged([restarted.named(node_id, named), since]), netmap.revision)
            assert delta is not None
            assert fold(netmap, delta) == expected


def test_a_service_that_went_while_the_host_was_away_is_not_held_after_the_rules_changed() -> None:
    policy = 'services: {tools: {on: ["*"], mcp: {upstream: "http://127.0.0.1:3000/mcp"}}}'
    before = fleet([node(1), node(2)], policy)
    place = ServiceRecord(name="tools", addresses=("100.64.200.1", "fd00:1::c801"), holder="n2")
    held = MeshState(replace(before, services={"tools": place}), NOW).netmap("n2")
    assert held is not None
    assert held.node.held == place.addresses
    restarted = MeshState(replace(before, revision=before.revision + 1), NOW)
    revision = restarted.revision + 1
    change = Change(revision=revision, policy=PolicyRecord(revision=revision, text="grants: []"))
    news = restarted.apply(change, NOW).get("n2", Dirty())
    dirty = merged([restarted.named("n2", Named(nodes=set(), services={"tools"})), news])
    delta = restarted.delta("n2", dirty, held.revision)
    assert delta is not None
    assert fold(held, delta) == restarted.netmap("n2")


def test_what_is_known_of_the_past_ends_where_the_rules_changed() -> None:
    past = Past(5, [PastChange(2, NOW, ("n1",)), PastChange(3, NOW, rules=True), PastChange(4, NOW, ("n2",))], None)
    assert past.since("n9", 2) is None
    assert past.since("n9", 3) == Named({"n2"}, set())
    assert past.since("n2", 3) is None
    assert past.since("n2", 4) == Named(set(), set())


def test_a_map_that_may_still_have_a_grant_that_ended_is_not_continued() -> None:
    changes = [PastChange(revision, NOW + 1000 * revision, (f"n{revision}",)) for revision in (1, 2, 3)]
    past = Past(3, changes, ended=NOW + 1500)
    assert past.since("n9", 1) is None
    assert past.since("n9", 2) == Named({"n3"}, set())
    assert Past(3, changes, ended=NOW + 3000).since("n9", 3) is None


@settings(max_examples=200)
@given(fleets_with_services(), changes())
def test_only_maps_that_change_are_touched(start: Fleet, step: Change) -> None:
    state = MeshState(start, NOW)
    before = {node_id: state.netmap(node_id) for node_id in start.nodes}
    affected = state.apply(numbered(step, 2), NOW)
    for node_id, old in before.items():
        new = state.netmap(node_id)
        if old is not None and new is not None:
            changed = old.model_copy(update={"revision": 2}) != new
            assert node_id in affected or not changed
            if objects(step) == 1:
                assert changed or node_id not in affected


def effective(among: Fleet) -> Document:
    """What the document says together with the temporary grants that can be read beside it."""
    return beside(parse(among.policy.text), among.grants.values())[0]


@settings(max_examples=200)
@given(fleets(), st.data())
def test_both_hosts_together_let_pass_exactly_what_the_model_does(among: Fleet, data: st.DataObject) -> None:
    state, document = MeshState(among, NOW), effective(among)
    members = {n.id: Member(n.name, n.tags, n.addresses) for n in among.nodes.values() if n.state == "active"}
    for a, b in itertools.permutations(members, 2):
        protocol, port = data.draw(
            st.sampled_from([("icmp", None), *((p, n) for p in ("tcp", "udp") for n in (1, 3, 6, 7))])
        )
        source, destination = (data.draw(st.sampled_from(members[n].addresses)) for n in (a, b))
        packet = Packet(source, destination, protocol, port)
        out, inn = state.netmap(a), state.netmap(b)
        assert out is not None
        assert inn is not None
        leaves = allowing(out, Flow(direction="out", peer=destination, protocol=protocol, port=port), NOW)
        arrives = allowing(inn, Flow(direction="in", peer=source, protocol=protocol, port=port), NOW)
        assert bool(leaves) == bool(arrives) == may_pass(document, members.values(), packet, NOW)


@settings(max_examples=200)
@given(fleets())
def test_a_host_has_exactly_the_peers_that_policy_connects_it_with(among: Fleet) -> None:
    state, document = MeshState(among, NOW), effective(among)
    members = {n.id: Member(n.name, n.tags, n.addresses) for n in among.nodes.values() if n.state == "active"}

    def connected(a: Member, b: Member) -> bool:
        return any(allowing_grants(document, a, b, p, n, now=NOW) for p in ("tcp", "udp", "icmp") for n in range(1, 8))

    for node_id in among.nodes:
        netmap = state.netmap(node_id)
        assert netmap is not None
        me = members.get(node_id)
        assert netmap.peers.keys() == {
            other
            for other, them in members.items()
            if me is not None and other != node_id and (connected(me, them) or connected(them, me))
        }
        assert netmap.sets.keys() == {name for rule in netmap.rules.values() for name in rule.peers}
