"""What this host tells the controller about itself, from its own addresses and its configuration."""

import os
from collections.abc import Iterable
from importlib.metadata import version
from ipaddress import ip_network

from controller.wire.base import Endpoint, PublicKey
from controller.wire.netmap import Mesh
from controller.wire.stream import HostReport

from .config import Config
from .errors import AgentError
from .model import BackendName, HostNetwork, LocalAddress
from .paths.candidates import candidates

__all__ = ["agent_version", "endpoints", "overlap", "report"]


def agent_version() -> str:
    """The version of this package."""
    return version("wardmesh")


def endpoints(config: Config, own: Iterable[LocalAddress], mesh: Mesh | None) -> tuple[Endpoint, ...]:
    """Where WireGuard can be reached, best first."""
    return candidates(
        own,
        listen_port=config.listen_port,
        mesh=(mesh.prefix4, mesh.prefix6) if mesh else (),
        announced=config.endpoints,
    )


def report(
    config: Config,
    own: Iterable[LocalAddress],
    mesh: Mesh,
    *,
    public_key: PublicKey,
    backend: BackendName,
    reflexive: tuple[Endpoint, ...] = (),
    relayed: tuple[Endpoint, ...] = (),
) -> HostReport:
    """The host's facts as they are now."""
    return HostReport(
        agent_version=agent_version(),
        backend=backend,
        kernel=os.uname().release,
        public_key=public_key,
        endpoints=endpoints(config, own, mesh),
        reflexive=reflexive,
        relayed=relayed,
        listen_port=config.listen_port,
    )


def overlap(mesh: Mesh, networks: Iterable[HostNetwork]) -> AgentError | None:
    """The reason not to join when the mesh's prefixes contain, or are inside, a network that the host uses already.

    A default route is no such network: everything is inside it, and ours is more specific.
    """
    for item in networks:
        network = ip_network(item.prefix)
        if network.prefixlen == 0:
            continue
        for prefix in (mesh.prefix4, mesh.prefix6):
            ours = ip_network(prefix)
            if ours.version == network.version and ours.overlaps(network):
                return AgentError(
                    f"the mesh {mesh.name!r} uses {prefix}, but this host already reaches {network} through "
                    f"{item.link}: remove that address or route, or give the controller another prefix"
                )
    return None
