"""From a map to the state that this host's kernel should have, and from there to the operations that get it there.

Pure: the same function serves start, change, roaming and recovery, and its result is what `status --diff` prints and
what is applied. Knows nothing of netlink or nft.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from agentd.kernel.ruleset import compile_ruleset
from controller.wire.base import Address, Prefix
from controller.wire.base import Endpoint as EndpointText
from controller.wire.netmap import Netmap, Peer
from controller.wire.relays import relays_of

from .model import (
    Desired,
    DesiredPeer,
    Endpoint,
    KernelError,
    LinkSettings,
    MapError,
    Network,
    Observed,
    ObservedPeer,
    Route,
    Ruleset,
)
from .operations import (
    AddAddress,
    ChangeTable,
    CreateLink,
    Operation,
    PeerChange,
    PutRoute,
    RemoveAddress,
    RemoveLink,
    RemoveRoute,
    ReplaceTable,
    SetDevice,
    SetLink,
)
from .relaying import behind_relays, places, relay_routes

__all__ = ["AS_MAPPED", "STALE_HANDSHAKE", "Choices", "desired", "plan"]

# Seconds. A session that carries traffic shakes hands every 120 s (REKEY_AFTER_TIME) and is dead after 180
# (REJECT_AFTER_TIME, section 6.1 of the WireGuard paper): from then on the peer's last place is only a memory.
STALE_HANDSHAKE: Final = 180.0

_LINK_KINDS: Final = {"kernel": "wireguard", "userspace": "tun"}

_AT_ONCE: Final = 25  # a keepalive that is turned on is sent at once; how many seconds it says does not matter then

TableCompiler = Callable[[Netmap, LinkSettings, float], Ruleset]


def _choose_first(peer: Peer) -> EndpointText | None:
    """The first of its endpoints, which come best first; None when there are none."""
    return peer.endpoints[0] if peer.endpoints else None


def _whole_mtu(peer: Peer) -> int:
    """The link's own MTU for every peer."""
    del peer
    return 0


def _mapped_keepalive(peer: Peer) -> int:
    """What the map says, in seconds."""
    return peer.keepalive or 0


def _never(peer: Peer) -> bool:
    """WireGuard alone decides when a handshake begins."""
    del peer
    return False


@dataclass(frozen=True, slots=True)
class Choices:
    """What this host decides for itself of each peer: where it is looked for, bytes of the largest packet (0 for the
    link's MTU), seconds between two keepalives (0 for none), and whether a handshake without an end is begun anew."""

    endpoint: Callable[[Peer], EndpointText | None] = _choose_first
    mtu: Callable[[Peer], int] = _whole_mtu
    keepalive: Callable[[Peer], int] = _mapped_keepalive
    anew: Callable[[Peer], bool] = _never


AS_MAPPED: Final = Choices()


# --- desired ----------------------------------------------------------------------------------------------------------


def desired(
    netmap: Netmap,
    link: LinkSettings,
    public_key: str,
    *,
    now: float,
    choices: Choices = AS_MAPPED,
    compile_table: TableCompiler = compile_ruleset,
) -> Desired:
    """The state for this map on a host with this public key.

    Raises MapError for a map that WireGuard would take in silence and turn into something else: with a peer that has
    the host's own key (ignored), with a key twice (merged), or with allowed IPs that overlap (moved to the last peer).
    """
    relays = relays_of(netmap)
    addresses = _networks(netmap.node.addresses)
    held = _networks(netmap.node.held) - addresses
    peers = {
        peer.public_key: behind_relays(
            _peer(peer, choices.endpoint(peer), choices.mtu(peer), choices.keepalive(peer)), peer, relays, link
        )
        for peer in netmap.peers.values()
    }
    _check_peers(netmap, public_key, peers, addresses | held)
    return Desired(
        link=link,
        public_key=public_key,
        addresses=addresses,
        held=held | _networks(places(relays, netmap.node)),
        routes=frozenset(
            (
                *_routes(addresses, (netmap.mesh.prefix4, netmap.mesh.prefix6), peers.values(), link),
                *relay_routes(relays, netmap.node),
            )
        ),
        peers=peers,
        ruleset=compile_table(netmap, link, now),
        relayed=frozenset(Network.parse(relay.prefix) for relay in relays.usable),
        anew=frozenset(peer.public_key for peer in netmap.peers.values() if choices.anew(peer)),
    )


def _networks(addresses: Iterable[Address]) -> frozenset[Network]:
    return frozenset(Network.host(address) for address in addresses)


def _peer(peer: Peer, endpoint: EndpointText | None, mtu: int, keepalive: int) -> DesiredPeer:
    return DesiredPeer(
        name=peer.name,
        public_key=peer.public_key,
        allowed_ips=_networks((*peer.addresses, *peer.held)),
        endpoint=None if endpoint is None else Endpoint.parse(endpoint),
        keepalive=keepalive,
        mtu=mtu,
    )


def _routes(
    addresses: frozenset[Network], prefixes: Iterable[Prefix], peers: Iterable[DesiredPeer], link: LinkSettings
) -> Iterator[Route]:
    """One for each of the mesh's prefixes, and one for each address of a peer to which the path is narrower."""
    narrow = [peer for peer in peers if 0 < peer.mtu < link.mtu]
    for prefix in prefixes:
        destination = Network.parse(prefix)
        # With several addresses in one prefix any would do; the lowest is always the same one.
        sources = sorted(address for address in addresses if destination.contains(address))
        if not sources:
            continue
        yield Route(destination=destination, source=sources[0])
        for peer in narrow:
            for network in peer.allowed_ips:
                if destination.contains(network):
                    yield Route(destination=network, source=sources[0], mtu=peer.mtu)


def _check_peers(
    netmap: Netmap, public_key: str, peers: Mapping[str, DesiredPeer], addresses: frozenset[Network]
) -> None:
    if public_key in peers:
        raise MapError(
            f"the map has this host's own public key {public_key} as peer {peers[public_key].name!r}: two hosts share "
            f"a private key, or one is enrolled twice; make a new key on one of them, or delete that node"
        )
    if len(peers) != len(netmap.peers):
        taken: dict[str, str] = {}
        for peer in netmap.peers.values():
            if peer.public_key in taken:
                raise MapError(
                    f"peers {taken[peer.public_key]!r} and {peer.name!r} have the same public key {peer.public_key}: "
                    f"make a new key on one of them, or delete that node"
                )
            taken[peer.public_key] = peer.name
    owned = [(network, peer.name) for peer in peers.values() for network in peer.allowed_ips]
    owned += [(address, netmap.node.name) for address in addresses]
    # Of one family, a prefix sorts right before what it contains: the first overlap is between neighbours.
    owned.sort(key=lambda item: (len(item[0].packed), item[0]))
    for (wide, first), (network, second) in itertools.pairwise(owned):
        if wide.contains(network):
            raise MapError(
                f"address {network} of {second!r} overlaps {wide} of {first!r}: an address is one node's identity; "
                f"give one of them another address"
            )


# --- plan -------------------------------------------------------------------------------------------------------------


def plan(wanted: Desired, found: Observed) -> tuple[Operation, ...]:
    """The operations that lead from `found` to `wanted`, in the order in which they must be done; () when it is there.

    An address that goes to another peer, or comes to this host, is taken from its old owner first: the new owner's
    rules must not be in force while the old owner still has the address. Then the table, before anything that lets
    packets pass, so that there is no moment with peers and no table. Raises KernelError when another program has a
    link of our name.
    """
    name = wanted.link.name
    if found.link is not None and not found.link.ours:
        raise KernelError(
            f"the link name {name!r} is taken by a {found.link.kind or 'plain'} link that agentd did not make: remove "
            f"that link, or choose another name for ours in the configuration"
        )
    operations: list[Operation] = []
    if found.link is not None and (found.link.kind != _LINK_KINDS[found.backend] or found.device is None):
        operations.append(RemoveLink(name, f"it is not the {found.backend} backend's"))
        found = replace(
            found, link=None, device=None, addresses=frozenset(), held=frozenset(), routes=frozenset(), hints={}
        )
    released, peers = _release_moved(wanted, found.peers)
    operations += released
    operations += (RemoveAddress(network) for network in sorted(_given_away(wanted, found)))
    operations += _plan_table(wanted.ruleset, found.ruleset, present=found.table_present)
    operations += _plan_link(wanted, found)
    operations += _plan_peers(wanted, found, peers)
    operations += _plan_addresses_and_routes(wanted, found)
    return tuple(operations)


def _release_moved(
    wanted: Desired, peers: Mapping[str, ObservedPeer]
) -> tuple[list[Operation], Mapping[str, ObservedPeer]]:
    owner = {network: key for key, peer in wanted.peers.items() for network in peer.allowed_ips}
    owner |= dict.fromkeys(wanted.addresses | wanted.held, wanted.public_key)
    operations: list[Operation] = []
    left = dict(peers)
    for key, peer in peers.items():
        moved = {network for network in peer.allowed_ips if owner.get(network, key) != key}
        if not moved:
            continue
        if key in wanted.peers:
            stay = tuple(sorted(peer.allowed_ips - moved))
            operations.append(
                PeerChange("change", wanted.peers[key].name, key, allowed_ips=stay, replace_allowed_ips=True)
            )
            left[key] = replace(peer, allowed_ips=frozenset(stay))
        else:
            operations.append(PeerChange("remove", "", key))
            del left[key]
    return operations, left


def _given_away(wanted: Desired, found: Observed) -> frozenset[Network]:
    """What this host held and holds no longer. Nothing routes by it, so that it can go before anything comes."""
    sources = {route.source for route in found.routes}
    return found.held - wanted.held - wanted.addresses - sources


def _plan_table(wanted: Ruleset, found: Ruleset | None, *, present: bool) -> Iterator[Operation]:
    if found is None or not present:
        yield ReplaceTable(wanted, "it is not there" if not present else "its content is not known")
    elif found != wanted:
        chains = sum(found.chains.get(name) != chain for name, chain in wanted.chains.items())
        chains += sum(name not in wanted.chains for name in found.chains)
        elements = sum(
            len(found.elements.get(name, {}).items() ^ wanted.elements.get(name, {}).items())
            for name in {**found.elements, **wanted.elements}
        )
        yield ChangeTable(found, wanted, f"{chains} chains, {elements} elements")


def _plan_link(wanted: Desired, found: Observed) -> Iterator[Operation]:
    link, device = found.link, found.device
    if link is None:
        yield CreateLink(wanted.link.name, found.backend)
    mtu = wanted.link.mtu if link is None or link.mtu != wanted.link.mtu else None
    if mtu is not None:
        yield SetLink(wanted.link.name, mtu=mtu)
    key = wanted.public_key if device is None or device.public_key != wanted.public_key else None
    port = wanted.link.listen_port if device is None or device.listen_port != wanted.link.listen_port else None
    # Nothing of what is there is wanted: one flag instead of a removal for each.
    replace_peers = bool(found.peers) and found.peers.keys().isdisjoint(wanted.peers)
    if key is not None or port is not None or replace_peers:
        yield SetDevice(public_key=key, listen_port=port, replace_peers=replace_peers)


def _plan_peers(wanted: Desired, found: Observed, peers: Mapping[str, ObservedPeer]) -> Iterator[Operation]:
    if not peers.keys().isdisjoint(wanted.peers):  # otherwise all went with WGDEVICE_F_REPLACE_PEERS
        yield from (PeerChange("remove", "", key) for key in peers if key not in wanted.peers)
    for key, peer in wanted.peers.items():
        before = peers.get(key)
        if before is not None and key in wanted.anew and before.tx_bytes and not before.last_handshake:
            yield from _begin_anew(peer, before)
            continue
        change = _add(peer) if before is None else _change(peer, before, wanted, found)
        if change is not None:
            yield change


def _add(peer: DesiredPeer) -> PeerChange:
    return PeerChange(
        action="add",
        name=peer.name,
        public_key=peer.public_key,
        endpoint=peer.endpoint,
        keepalive=peer.keepalive or None,
        preshared_key=peer.preshared_key if any(peer.preshared_key) else None,
        allowed_ips=tuple(sorted(peer.allowed_ips)),
        replace_allowed_ips=True,  # somebody may have added it meanwhile, with others
    )


def _begin_anew(peer: DesiredPeer, before: ObservedPeer) -> Iterator[PeerChange]:
    """Only for a peer that is new to it the kernel begins a handshake within five seconds of the last that it began
    (wg_packet_send_handshake_initiation in drivers/net/wireguard/send.c); with a keepalive it does so at once."""
    yield PeerChange("remove", peer.name, peer.public_key)
    yield _add(replace(peer, endpoint=peer.endpoint or before.endpoint, keepalive=peer.keepalive or _AT_ONCE))
    if not peer.keepalive:
        yield PeerChange("change", peer.name, peer.public_key, keepalive=0)


def _change(peer: DesiredPeer, before: ObservedPeer, wanted: Desired, found: Observed) -> PeerChange | None:
    # The kernel can add an allowed IP, but not take one away (before 6.16): then the whole list is written.
    remove = before.allowed_ips - peer.allowed_ips
    networks = peer.allowed_ips if remove else peer.allowed_ips - before.allowed_ips
    change = PeerChange(
        action="change",
        name=peer.name,
        public_key=peer.public_key,
        endpoint=_endpoint_change(peer, before, wanted, found),
        keepalive=peer.keepalive if peer.keepalive != before.keepalive else None,
        preshared_key=peer.preshared_key if peer.preshared_key != before.preshared_key else None,
        allowed_ips=tuple(sorted(networks)),
        replace_allowed_ips=bool(remove),
    )
    return None if change == PeerChange("change", peer.name, peer.public_key) else change


def _endpoint_change(peer: DesiredPeer, before: ObservedPeer, wanted: Desired, found: Observed) -> Endpoint | None:
    """The hint, when it should be written: WireGuard knows better where a peer that talks to us is.

    But not behind a relay, where it only followed the peer's last packet of before this host found a direct path.
    """
    hint = peer.endpoint
    if hint is None or hint == before.endpoint:
        return None
    if peer.public_key in found.hints and found.hints[peer.public_key] != hint:
        return hint
    if _is_in(wanted.relayed, before.endpoint) and not _is_in(wanted.relayed, hint):
        return hint
    return hint if found.now - before.last_handshake >= STALE_HANDSHAKE else None


def _is_in(prefixes: Iterable[Network], endpoint: Endpoint | None) -> bool:
    if endpoint is None or ":" not in endpoint.address:
        return False
    place = Network.host(endpoint.address)
    return any(prefix.contains(place) for prefix in prefixes)


def _plan_addresses_and_routes(wanted: Desired, found: Observed) -> Iterator[Operation]:
    # The own ones first: with nothing better to go by, the kernel speaks from the first.
    yield from (AddAddress(network) for network in sorted(wanted.addresses - found.addresses))
    yield from (AddAddress(network, held=True) for network in sorted(wanted.held - found.held))
    if found.link is None or not found.link.up:
        yield SetLink(wanted.link.name, up=True)
    before = {route.destination: route for route in found.routes}
    for route in sorted(wanted.routes - found.routes, key=lambda route: route.destination):
        yield PutRoute(route, replace=route.destination in before)
    kept = {route.destination for route in wanted.routes}
    yield from (RemoveRoute(route) for route in found.routes if route.destination not in kept)
    # Last: with an address go the routes that have it as their source.
    gone = (found.addresses | found.held) - wanted.addresses - wanted.held - _given_away(wanted, found)
    yield from (RemoveAddress(network) for network in sorted(gone))
