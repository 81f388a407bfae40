"""Which endpoints this host offers to its peers: its own addresses with WireGuard's port, best first.

Pure: the caller brings the addresses. An address that no other host can use is never offered, because a peer that
tries it sends its handshakes into nothing, or to a stranger.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from agentd.model import LocalAddress
from controller.wire.base import Endpoint, Prefix, check_endpoint, format_endpoint

__all__ = ["candidates"]

# Bridges and pairs that container and virtual machine managers make: their addresses repeat from host to host.
# Docker calls its networks br- and 12 hex digits; a bridge of another name is the administrator's own.
_CONTAINER_LINK: Final = re.compile(
    r"docker\d+|docker_gwbridge|br-[0-9a-f]{12}|veth.*|virbr\d+(-nic)?|vnet\d+|cni.*|cali.*|flannel.*|cilium_.*"
    r"|podman\d+|lxcbr\d+|lxdbr\d+|incusbr\d+"
)
# Other tunnels: WireGuard's, OpenVPN's, those of other meshes. A tunnel in a tunnel is slow at best, a loop at worst.
_TUNNEL_LINK: Final = re.compile(r"wg[\w.-]*|tun\d+|tailscale\d+|zt\w+|nebula\d*|wt\d+|utun\d*|ipsec\d+")


def candidates(
    own: Iterable[LocalAddress],
    *,
    listen_port: int,
    mesh: Iterable[Prefix],
    announced: Iterable[Endpoint] = (),
) -> tuple[Endpoint, ...]:
    """The announced endpoints as configured, then those of `own` that another host may reach: public before private.

    `mesh` are the mesh's prefixes: a tunnel endpoint inside the tunnel would be a loop.
    """
    prefixes = [ipaddress.ip_network(prefix) for prefix in mesh]
    addresses = []
    for item in own:
        address = ipaddress.ip_address(item.address)
        inside = any(address.version == prefix.version and address in prefix for prefix in prefixes)
        foreign = _CONTAINER_LINK.fullmatch(item.link) or _TUNNEL_LINK.fullmatch(item.link)
        if not inside and not foreign and _usable(address):
            addresses.append(address)
    addresses.sort(key=lambda address: (not address.is_global, address.version, int(address)))
    offered = [check_endpoint(endpoint) for endpoint in announced]
    offered += [format_endpoint(str(address), listen_port) for address in addresses]
    return tuple(dict.fromkeys(offered))


def _usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    # Link-local addresses mean nothing without a scope, and a scope means nothing on another host.
    return not (
        address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    ) and not (isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None)
