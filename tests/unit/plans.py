"""What tests of the plan share: a map, the state that a plan would make of it, and that state with a difference."""

from dataclasses import replace
from typing import Any

from agentd.model import (
    Desired,
    LinkSettings,
    Observed,
    ObservedDevice,
    ObservedLink,
    ObservedPeer,
)
from agentd.operations import (
    PeerChange,
)
from agentd.plan import desired, plan
from controller.wire.netmap import Netmap
from tests.kernel.maps import Member, netmap

SELF, PEER, OTHER = Member(1), Member(2, endpoints=("192.0.2.2:51820",)), Member(3)
NOW = 1_800_000_000.0
LINK = LinkSettings()
NOTHING = Observed(
    backend="kernel",
    now=NOW,
    link=None,
    device=None,
    addresses=frozenset(),
    held=frozenset(),
    routes=frozenset(),
    ruleset=None,
    table_present=False,
    hints={},
)


def want(wanted: Netmap) -> Desired:
    return desired(wanted, LINK, SELF.public_key, now=NOW)


def reached(state: Desired, **changes: Any) -> Observed:
    """What is observed when everything in `state` was applied a moment ago and its peers talk."""
    peers = {
        key: ObservedPeer(
            public_key=key,
            allowed_ips=peer.allowed_ips,
            endpoint=peer.endpoint,
            keepalive=peer.keepalive,
            preshared_key=peer.preshared_key,
            last_handshake=NOW - 10,
        )
        for key, peer in state.peers.items()
    }
    found = Observed(
        backend="kernel",
        now=NOW,
        link=ObservedLink(index=7, kind="wireguard", mtu=state.link.mtu, up=True, ours=True),
        device=ObservedDevice(state.public_key, state.link.listen_port, peers),
        addresses=state.addresses,
        held=state.held,
        routes=state.routes,
        ruleset=state.ruleset,
        table_present=True,
        hints={key: peer.endpoint for key, peer in state.peers.items()},
    )
    return replace(found, **changes)


def with_peer(found: Observed, key: str, **changes: Any) -> Observed:
    assert found.device is not None
    peer = replace(found.peers[key], **changes)
    return replace(found, device=replace(found.device, peers={**found.peers, key: peer}))


BASE = want(netmap(SELF, PEER))
KEY = PEER.public_key


def only_change(state: Desired, found: Observed) -> PeerChange:
    (change,) = plan(state, found)
    assert isinstance(change, PeerChange)
    assert change.action == "change"
    return change


def with_wanted(**changes: Any) -> Desired:
    return replace(BASE, peers={KEY: replace(BASE.peers[KEY], **changes)})
