"""Which of a peer's endpoints this host tries. Pure, and only a choice: nothing is probed here.

The kernel has one endpoint per peer, and follows the peer when it roams; this decides where the first handshake goes.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from agentd.model import LocalAddress
from controller.wire.base import Endpoint, split_endpoint

__all__ = ["Chooser"]


class Chooser:
    """Chooses for a host with these addresses (without those of the mesh)."""

    def __init__(self, own: Iterable[LocalAddress]) -> None:
        networks = (ipaddress.ip_interface(f"{item.address}/{item.prefix_length}").network for item in own)
        self._networks = [network for network in networks if not network.is_loopback and not network.is_link_local]
        self._families = {network.version for network in self._networks}

    def order(self, endpoints: Sequence[Endpoint]) -> tuple[Endpoint, ...]:
        """The endpoints, best first for this host; the peer's own order decides among equals.

        First what is public or on a network that this host is on, then other private addresses, which may be a
        different network with the same numbers; last what this host has no address family for.
        """
        return tuple(sorted(endpoints, key=self._rank))

    def choose(self, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        """The best; None when there are none."""
        return min(endpoints, key=self._rank, default=None)

    def is_near(self, endpoint: Endpoint) -> bool:
        """True when it is on a network that this host is on."""
        address = ipaddress.ip_address(split_endpoint(endpoint)[0])
        return any(address.version == network.version and address in network for network in self._networks)

    def _rank(self, endpoint: Endpoint) -> int:
        address = ipaddress.ip_address(split_endpoint(endpoint)[0])
        if address.version not in self._families:
            return 2
        return 0 if address.is_global or self.is_near(endpoint) else 1
