"""What a map says of relays, and the addresses that they forward between. Pure.

A relay is a peer whose kernel passes sealed WireGuard packets from one host to another. Its own addresses are in a set
named `relay:REGION`. Each relay has a prefix, and each host has one address in each such prefix; both follow from mesh
addresses, so that nobody has to be told them. A host finds a peer behind a relay at the peer's address in its prefix.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from .base import Address, Endpoint, Prefix, split_endpoint
from .netmap import Mesh, Netmap, NodeId

__all__ = ["HOSTS", "Relay", "Relays", "relay_address", "relay_prefix", "relay_set", "relays_of"]

# The selector of every node with an agentd: relays know them all. No selector that can be written looks like it.
HOSTS: Final = "relay/hosts"
_SET: Final = "relay:"
_SUBNET: Final = 64


def relay_set(region: str) -> str:
    """The set that holds the addresses of a region's relays."""
    return f"{_SET}{region}"


def relay_prefix(mesh: Mesh, relay: Address) -> Prefix:
    """The /64 that belongs to the relay with this mesh address: unique local (RFC 4193), its 56 bits from a hash."""
    digest = sha256(f"wardmesh relay {mesh.id} {relay}".encode()).digest()
    return str(ipaddress.IPv6Network((b"\xfd" + digest[:7] + bytes(8), _SUBNET)))


def relay_address(prefix: Prefix, host: Address) -> Address:
    """The address in a relay's prefix of the host with this mesh IPv6 address: its number there is the same."""
    network = ipaddress.IPv6Network(prefix)
    return str(network[int(ipaddress.IPv6Address(host)) % 2**_SUBNET])


@dataclass(frozen=True, slots=True)
class Relay:
    """`address` is its mesh IPv6 address."""

    node: NodeId
    region: str
    address: Address
    prefix: Prefix

    def place(self, addresses: Iterable[Address]) -> Address | None:
        """Where the node with these mesh addresses is behind this relay; None for one without IPv6."""
        six = _six(addresses)
        return None if six is None else relay_address(self.prefix, six)


@dataclass(frozen=True, slots=True)
class Relays:
    """Those of a map: which this host may use, `usable`, and itself as one, `own`."""

    usable: tuple[Relay, ...] = ()
    own: Relay | None = None

    def behind(self, endpoint: Endpoint) -> Relay | None:
        """The usable relay in whose prefix an endpoint is."""
        address = ipaddress.ip_address(split_endpoint(endpoint)[0])
        for relay in self.usable:
            if address.version == 6 and address in ipaddress.IPv6Network(relay.prefix):
                return relay
        return None

    def is_relayed(self, endpoint: Endpoint) -> bool:
        """True for an endpoint in the prefix of any relay, this host itself included."""
        if self.behind(endpoint) is not None:
            return True
        address = ipaddress.ip_address(split_endpoint(endpoint)[0])
        return self.own is not None and address.version == 6 and address in ipaddress.IPv6Network(self.own.prefix)


def relays_of(netmap: Netmap) -> Relays:
    """The relays of a map, by node id. A prefix that meets the mesh's own or another relay's is not used."""
    regions = {
        address: name.removeprefix(_SET)
        for name, found in sorted(netmap.sets.items(), reverse=True)
        if name.startswith(_SET)
        for address in found.addresses
        if ":" in address
    }
    if not regions:
        return Relays()
    taken = {ipaddress.ip_network(netmap.mesh.prefix6).supernet(new_prefix=48)}

    def relay(node: NodeId, addresses: Iterable[Address]) -> Relay | None:
        address = _six(addresses)
        if address is None or address not in regions:
            return None
        prefix = relay_prefix(netmap.mesh, address)
        network = ipaddress.ip_network(prefix)
        if any(network.overlaps(other) for other in taken):
            return None
        taken.add(network)
        return Relay(node, regions[address], address, prefix)

    own = relay(netmap.node.id, netmap.node.addresses)
    found = (relay(peer.id, peer.addresses) for _, peer in sorted(netmap.peers.items()))
    return Relays(tuple(one for one in found if one is not None), own)


def _six(addresses: Iterable[Address]) -> Address | None:
    return min((address for address in addresses if ":" in address), default=None)
