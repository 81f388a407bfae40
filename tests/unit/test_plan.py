"""Desired minus observed is operations: which, in which order, and when none."""

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.model import (
    NO_PRESHARED_KEY,
    Desired,
    Endpoint,
    KernelError,
    MapError,
    Network,
    Observed,
    ObservedLink,
)
from agentd.operations import (
    AddAddress,
    ChangeTable,
    CreateLink,
    PeerChange,
    PutRoute,
    RemoveAddress,
    RemoveLink,
    ReplaceTable,
    SetDevice,
    SetLink,
)
from agentd.plan import STALE_HANDSHAKE, Choices, desired, plan
from tests.kernel.maps import Member, netmap

from .plans import BASE, KEY, LINK, NOTHING, NOW, OTHER, PEER, SELF, only_change, reached, want, with_peer, with_wanted

# --- desired ----------------------------------------------------------------------------------------------------------


def test_routes_go_to_both_mesh_prefixes_from_the_own_address_in_them() -> None:
    routes = {str(route) for route in want(netmap(SELF, PEER)).routes}
    assert routes == {"100.64.0.0/16 src 100.64.0.1", "fd77:7761:7264::/48 src fd77:7761:7264::1"}


def test_a_host_without_an_ipv4_address_gets_no_ipv4_route() -> None:
    wanted = netmap(SELF, PEER)
    wanted = wanted.model_copy(update={"node": wanted.node.model_copy(update={"addresses": (SELF.address6,)})})
    assert {route.destination.length for route in want(wanted).routes} == {48}


def test_a_map_with_the_own_public_key_is_refused() -> None:
    twin = replace(PEER, private_key=SELF.private_key)
    with pytest.raises(MapError, match=r"own public key .* as peer 'n2'"):
        want(netmap(SELF, twin))


def test_a_map_with_one_public_key_twice_is_refused() -> None:
    with pytest.raises(MapError, match="'n2' and 'n3' have the same public key"):
        want(netmap(SELF, PEER, replace(OTHER, private_key=PEER.private_key)))


def test_a_map_with_one_address_at_two_peers_is_refused() -> None:
    with pytest.raises(MapError, match=r"100\.64\.0\.2/32 of 'n3' overlaps 100\.64\.0\.2/32 of 'n2'"):
        want(netmap(SELF, PEER, replace(OTHER, address=PEER.address)))


def test_a_peer_with_the_own_address_is_refused() -> None:
    with pytest.raises(MapError, match=r"'n1'.*'n2'|'n2'.*'n1'"):
        want(netmap(SELF, replace(PEER, address6=SELF.address6)))


def test_the_choice_among_endpoints_is_the_callers() -> None:
    member = replace(PEER, endpoints=("192.0.2.2:1", "[2001:db8::2]:2"))
    state = desired(
        netmap(SELF, member), LINK, SELF.public_key, now=NOW, choices=Choices(endpoint=lambda peer: peer.endpoints[-1])
    )
    assert state.peers[member.public_key].endpoint == Endpoint("2001:db8::2", 2)


# --- plan: nothing to something ---------------------------------------------------------------------------------------


def test_from_nothing_the_table_comes_first_and_the_routes_last() -> None:
    operations = plan(want(netmap(SELF, PEER)), NOTHING)
    assert [type(operation) for operation in operations] == [
        ReplaceTable,
        CreateLink,
        SetLink,
        SetDevice,
        PeerChange,
        AddAddress,
        AddAddress,
        SetLink,
        PutRoute,
        PutRoute,
    ]


def test_when_all_is_there_there_is_nothing_to_do() -> None:
    state = want(netmap(SELF, PEER, OTHER))
    assert plan(state, reached(state)) == ()


def test_a_new_peer_is_one_change_and_the_tables_elements() -> None:
    before, after = want(netmap(SELF, PEER)), want(netmap(SELF, PEER, OTHER))
    table, peer = plan(after, reached(before))
    assert isinstance(table, ChangeTable)
    assert peer == PeerChange(
        "add",
        "n3",
        OTHER.public_key,
        allowed_ips=tuple(sorted(after.peers[OTHER.public_key].allowed_ips)),
        replace_allowed_ips=True,
    )


def test_a_peer_that_left_the_map_is_removed() -> None:
    before, after = want(netmap(SELF, PEER, OTHER)), want(netmap(SELF, PEER))
    assert plan(after, reached(before))[-1] == PeerChange("remove", "", OTHER.public_key)


def test_when_no_present_peer_is_wanted_all_go_with_one_flag() -> None:
    before, after = want(netmap(SELF, PEER)), want(netmap(SELF, OTHER))
    changes = plan(after, reached(before))[1:]
    assert [type(change) for change in changes] == [SetDevice, PeerChange]
    assert changes[0] == SetDevice(replace_peers=True)
    assert isinstance(changes[1], PeerChange)
    assert changes[1].action == "add"


# --- plan: fields of a peer -------------------------------------------------------------------------------------------


def test_keepalive_that_vanished_is_turned_off() -> None:
    assert only_change(BASE, with_peer(reached(BASE), KEY, keepalive=25)).keepalive == 0


def test_a_preshared_key_that_vanished_is_cleared() -> None:
    assert (
        only_change(BASE, with_peer(reached(BASE), KEY, preshared_key=bytes([7] * 32))).preshared_key
        == NO_PRESHARED_KEY
    )


def test_a_preshared_key_is_in_no_text() -> None:
    secret = bytes(range(32))
    change = only_change(with_wanted(preshared_key=secret), reached(BASE))
    assert change.preshared_key == secret
    for text in (str(change), repr(change), repr(with_wanted(preshared_key=secret))):
        assert secret.hex() not in text
        assert repr(secret) not in text


def test_an_allowed_ip_that_is_missing_is_added_without_touching_the_others() -> None:
    found = with_peer(reached(BASE), KEY, allowed_ips=frozenset({Network.host(PEER.address)}))
    change = only_change(BASE, found)
    assert change.allowed_ips == (Network.host(PEER.address6),)
    assert not change.replace_allowed_ips


def test_an_allowed_ip_too_many_is_taken_away_by_writing_the_whole_list() -> None:
    extra = Network.parse("10.0.0.0/8")
    found = with_peer(reached(BASE), KEY, allowed_ips=BASE.peers[KEY].allowed_ips | {extra})
    change = only_change(BASE, found)
    assert set(change.allowed_ips) == BASE.peers[KEY].allowed_ips
    assert change.replace_allowed_ips


# --- plan: handshakes without an end ----------------------------------------------------------------------------------


def anew(keepalive: int = 0) -> Desired:
    return replace(with_wanted(keepalive=keepalive), anew=frozenset({KEY}))


def begun(state: Desired, **changes: object) -> Observed:
    return with_peer(reached(state), KEY, **({"last_handshake": 0.0, "tx_bytes": 148} | changes))


def test_a_handshake_is_begun_anew_by_making_the_peer_anew_with_a_keepalive() -> None:
    removed, added, quiet = plan(anew(), begun(anew()))
    assert removed == PeerChange("remove", "n2", KEY)
    assert isinstance(added, PeerChange)
    assert (added.action, added.endpoint) == ("add", BASE.peers[KEY].endpoint)
    assert set(added.allowed_ips) == BASE.peers[KEY].allowed_ips
    assert added.keepalive
    assert quiet == PeerChange("change", "n2", KEY, keepalive=0)


def test_a_peer_that_is_made_anew_keeps_its_keepalive() -> None:
    _removed, added = plan(anew(40), begun(anew(40)))
    assert isinstance(added, PeerChange)
    assert added.keepalive == 40


def test_a_peer_that_is_made_anew_is_where_it_was_last_if_nothing_better_is_known() -> None:
    state = replace(anew(), peers={KEY: replace(BASE.peers[KEY], endpoint=None)})
    endpoint = Endpoint("198.51.100.7", 51820)
    added = plan(state, begun(state, endpoint=endpoint))[1]
    assert isinstance(added, PeerChange)
    assert added.endpoint == endpoint


@pytest.mark.parametrize("finished", [{"last_handshake": NOW - 1}, {"tx_bytes": 0}])
def test_a_handshake_that_was_finished_or_never_begun_is_left_alone(finished: dict[str, object]) -> None:
    assert plan(anew(), begun(anew(), **finished)) == ()


# --- plan: endpoints --------------------------------------------------------------------------------------------------

ROAMED = Endpoint("198.51.100.9", 4242)


def test_a_peer_that_roamed_is_left_where_it_is() -> None:
    assert plan(BASE, with_peer(reached(BASE), KEY, endpoint=ROAMED)) == ()


def test_a_new_hint_is_written_although_the_peer_talks() -> None:
    hint = Endpoint("192.0.2.77", 51820)
    found = with_peer(reached(BASE), KEY, endpoint=ROAMED)
    assert only_change(with_wanted(endpoint=hint), found).endpoint == hint


@pytest.mark.parametrize("last_handshake", [0.0, NOW - STALE_HANDSHAKE])
def test_a_peer_that_fell_silent_is_looked_for_where_the_hint_says(last_handshake: float) -> None:
    found = with_peer(reached(BASE), KEY, endpoint=ROAMED, last_handshake=last_handshake)
    assert only_change(BASE, found).endpoint == BASE.peers[KEY].endpoint


def test_a_peer_is_not_silent_a_second_before() -> None:
    found = with_peer(reached(BASE), KEY, endpoint=ROAMED, last_handshake=NOW - STALE_HANDSHAKE + 1)
    assert plan(BASE, found) == ()


def test_after_a_restart_a_peer_that_talks_is_left_where_it_is() -> None:
    found = replace(with_peer(reached(BASE), KEY, endpoint=ROAMED), hints={})
    assert plan(BASE, found) == ()


def test_a_peer_without_a_hint_keeps_its_endpoint() -> None:
    found = with_peer(reached(BASE), KEY, endpoint=ROAMED, last_handshake=0.0)
    assert plan(with_wanted(endpoint=None), found) == ()


# --- plan: order ------------------------------------------------------------------------------------------------------


def test_an_address_that_moves_is_taken_from_its_old_owner_before_the_table_changes() -> None:
    before = want(netmap(SELF, PEER, OTHER))
    taken = replace(OTHER, address=PEER.address)
    moved = want(netmap(SELF, replace(PEER, address="100.64.0.99"), taken))
    operations = plan(moved, reached(before))
    assert operations[0] == PeerChange(
        "change", "n2", KEY, allowed_ips=(Network.host(PEER.address6),), replace_allowed_ips=True
    )
    assert isinstance(operations[1], ChangeTable)
    later = [operation for operation in operations[2:] if isinstance(operation, PeerChange)]
    assert {change.name: change.replace_allowed_ips for change in later} == {"n2": False, "n3": True}


def test_an_address_that_moves_from_a_removed_peer_is_free_before_the_table_changes() -> None:
    before = want(netmap(SELF, PEER, OTHER))
    operations = plan(want(netmap(SELF, replace(OTHER, address=PEER.address))), reached(before))
    assert operations[0] == PeerChange("remove", "", KEY)
    assert isinstance(operations[1], ChangeTable)
    assert sum(isinstance(operation, PeerChange) and operation.public_key == KEY for operation in operations) == 1


def test_an_address_change_adds_the_new_before_it_removes_the_old() -> None:
    new = replace(SELF, address="100.64.0.50")
    operations = plan(want(netmap(new, PEER)), reached(want(netmap(SELF, PEER))))
    assert [type(operation) for operation in operations] == [ChangeTable, AddAddress, PutRoute, RemoveAddress]
    assert operations[2] == PutRoute(
        next(r for r in want(netmap(new)).routes if r.destination.length == 16), replace=True
    )


def test_a_peer_whose_path_is_narrow_has_routes_of_its_own_and_loses_them_when_it_is_wide_again() -> None:
    wide = want(netmap(SELF, PEER, OTHER))
    narrow = desired(
        netmap(SELF, PEER, OTHER),
        LINK,
        SELF.public_key,
        now=NOW,
        choices=Choices(mtu=lambda peer: 1240 if peer.id == PEER.name else LINK.mtu),
    )
    assert {route.mtu for route in wide.routes} == {0}
    there, back = plan(narrow, reached(wide)), plan(wide, reached(narrow))
    assert [str(operation) for operation in there] == [
        f"add route {PEER.address}/32 src {SELF.address} mtu 1240",
        f"add route {PEER.address6}/128 src {SELF.address6} mtu 1240",
    ]
    assert sorted(str(operation) for operation in back) == sorted(
        f"remove route {operation}" for operation in (route for route in narrow.routes - wide.routes)
    )


# --- plan: safety -----------------------------------------------------------------------------------------------------


def test_a_link_of_another_program_is_an_error_with_the_remedy() -> None:
    found = replace(NOTHING, link=ObservedLink(index=3, kind="dummy", mtu=1500, up=True, ours=False))
    with pytest.raises(KernelError, match=r"'wardmesh0' is taken by a dummy link .* choose another name"):
        plan(BASE, found)


def test_a_link_of_the_other_backend_is_replaced() -> None:
    found = reached(BASE, link=ObservedLink(index=3, kind="tun", mtu=1420, up=True, ours=True), device=None)
    operations = plan(BASE, found)
    assert isinstance(operations[0], RemoveLink)
    assert CreateLink("wardmesh0", "kernel") in operations
    assert {change.action for change in operations if isinstance(change, PeerChange)} == {"add"}


@pytest.mark.parametrize(
    ("lost", "reason"),
    [({"table_present": False}, "not there"), ({"ruleset": None}, "not known")],
)
def test_a_table_that_is_gone_or_unknown_is_written_whole(lost: dict[str, object], reason: str) -> None:
    (operation,) = plan(BASE, reached(BASE, **lost))
    assert isinstance(operation, ReplaceTable)
    assert reason in str(operation)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"addresses": frozenset({Network.host(SELF.address)})}, "add address fd77:7761:7264::1/128"),
        ({"routes": frozenset()}, "add route 100.64.0.0/16 src 100.64.0.1"),
        ({"link": ObservedLink(7, "wireguard", 1300, up=False, ours=True)}, "set link wardmesh0 up"),
    ],
)
def test_what_somebody_removed_is_put_back(change: dict[str, object], words: str) -> None:
    assert words in [str(operation) for operation in plan(BASE, reached(BASE, **change))]


def test_another_private_key_is_set_and_not_shown() -> None:
    private = os.urandom(32)
    (operation,) = plan(replace(BASE, public_key=OTHER.public_key), reached(BASE))
    assert operation == SetDevice(public_key=OTHER.public_key)
    assert private.hex() not in str(operation)


@given(st.sets(st.integers(2, 9)), st.sets(st.integers(2, 9)))
def test_the_peers_after_the_changes_are_the_wanted_ones(present: set[int], wanted: set[int]) -> None:
    members = {number: _MEMBERS[number] for number in range(2, 10)}
    found = reached(want(netmap(SELF, *(members[number] for number in sorted(present)))))
    state = want(netmap(SELF, *(members[number] for number in sorted(wanted))))
    peers = set(found.peers)
    for operation in plan(state, found):
        if isinstance(operation, SetDevice) and operation.replace_peers:
            peers.clear()
        if isinstance(operation, PeerChange):
            (peers.discard if operation.action == "remove" else peers.add)(operation.public_key)
    assert peers == set(state.peers)


_MEMBERS = {number: Member(number) for number in range(2, 10)}
