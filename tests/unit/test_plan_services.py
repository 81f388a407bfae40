"""The plan and addresses that are held for services: whose allowed IP they are, and in which order they move."""

from dataclasses import replace

import pytest

from agentd.model import (
    Desired,
    MapError,
    Network,
)
from agentd.operations import (
    AddAddress,
    ChangeTable,
    PeerChange,
    RemoveAddress,
)
from agentd.plan import plan
from controller.wire.netmap import AddressSet
from tests.kernel.maps import Member, allow, netmap

from .plans import KEY, OTHER, PEER, SELF, reached, want

HELD = ("100.64.8.1", "fd77:7761:7264::8:1")
HELD_NETWORKS = tuple(sorted(Network.host(address) for address in HELD))
FOR_SERVICE = [allow("in", "tcp", 443, local=["svc:x"]), allow("in", "icmp")]


def with_service(*members: Member) -> Desired:
    """The state of the first member, which may serve svc:x, as may others; its addresses are where `held` says."""
    wanted = netmap(*members, rules=FOR_SERVICE)
    service = AddressSet(name="svc:x", addresses=frozenset(HELD))
    return want(wanted.model_copy(update={"sets": wanted.sets | {"svc:x": service}}))


def test_a_held_address_is_the_peers_allowed_ip_and_needs_no_route_of_its_own() -> None:
    state = want(netmap(SELF, replace(PEER, held=HELD)))
    assert state.peers[KEY].allowed_ips == want(netmap(SELF, PEER)).peers[KEY].allowed_ips | set(HELD_NETWORKS)
    assert state.routes == want(netmap(SELF, PEER)).routes


def test_a_held_address_of_this_host_is_no_source_of_a_route() -> None:
    lowest = replace(SELF, address="100.64.9.9", held=HELD)
    assert "100.64.0.0/16 src 100.64.9.9" in {str(route) for route in want(netmap(lowest)).routes}


def test_a_service_that_moves_between_peers_is_two_changes_of_peers_and_nothing_else() -> None:
    operations = plan(
        with_service(SELF, PEER, replace(OTHER, held=HELD)),
        reached(with_service(SELF, replace(PEER, held=HELD), OTHER)),
    )
    own = tuple(sorted(Network.host(address) for address in (PEER.address, PEER.address6)))
    assert operations == (
        PeerChange("change", "n2", KEY, allowed_ips=own, replace_allowed_ips=True),
        PeerChange("change", "n3", OTHER.public_key, allowed_ips=HELD_NETWORKS),
    )


def test_a_service_that_comes_to_this_host_leaves_its_peer_first() -> None:
    operations = plan(
        with_service(replace(SELF, held=HELD), PEER), reached(with_service(SELF, replace(PEER, held=HELD)))
    )
    assert [type(operation) for operation in operations] == [PeerChange, ChangeTable, AddAddress, AddAddress]
    assert operations[2:] == tuple(AddAddress(network, held=True) for network in HELD_NETWORKS)
    assert isinstance(operations[0], PeerChange)
    assert set(HELD_NETWORKS).isdisjoint(operations[0].allowed_ips)


def test_a_service_that_leaves_this_host_is_gone_from_it_before_its_new_holder_has_it() -> None:
    operations = plan(
        with_service(SELF, replace(PEER, held=HELD)), reached(with_service(replace(SELF, held=HELD), PEER))
    )
    assert operations[:2] == tuple(RemoveAddress(network) for network in HELD_NETWORKS)
    assert [type(operation) for operation in operations[2:]] == [ChangeTable, PeerChange]


def test_a_held_address_that_becomes_the_own_one_is_not_removed() -> None:
    before = want(netmap(replace(SELF, held=HELD)))
    own = replace(SELF, address=HELD[0])
    operations = plan(want(netmap(own)), reached(before))
    assert AddAddress(Network.host(HELD[0])) in operations
    assert RemoveAddress(Network.host(HELD[0])) not in operations


def test_two_peers_that_hold_one_address_are_refused() -> None:
    with pytest.raises(MapError, match=r"100\.64\.8\.1/32 of 'n3' overlaps 100\.64\.8\.1/32 of 'n2'"):
        want(netmap(SELF, replace(PEER, held=HELD), replace(OTHER, held=HELD)))


def test_a_peer_that_holds_what_this_host_holds_is_refused() -> None:
    with pytest.raises(MapError, match="overlaps"):
        want(netmap(replace(SELF, held=HELD), replace(PEER, held=HELD)))
