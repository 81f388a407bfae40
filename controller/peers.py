"""Static peers: phones, routers, anything that speaks WireGuard and runs no agentd.

Their private key never comes here; they get a wg-quick file that lacks it.
"""

from typing import Final

from wireguard_tools import WireguardConfig, WireguardKey, WireguardPeer

from controller.admission import Admission, check_name_free, check_public_key_free, summary
from controller.audit import Action
from controller.idempotency import Once
from controller.identity.secret import new_id
from controller.mesh.hub import Hub
from controller.nodes import Nodes
from controller.problems import Kind, Refused
from controller.store.store import Store
from controller.store.values import StoredNode
from controller.wire.base import format_endpoint, split_endpoint
from controller.wire.netmap import Netmap, NodeId, Peer
from controller.wire.rest import Node, PeerConfig, StaticPeerCreate

__all__ = ["Peers", "wg_quick"]

_MTU: Final = 1420  # 1500 less IPv6 and WireGuard's own headers (80 bytes)


class Peers:
    """The domain of static peers; after its creation one is a node like others."""

    def __init__(self, store: Store, hub: Hub, nodes: Nodes, admission: Admission) -> None:
        self._store = store
        self._hub = hub
        self._nodes = nodes
        self._admission = admission

    async def create(self, actor: str, wanted: StaticPeerCreate, once: Once | None = None) -> Node:
        """Add a peer by its public key. Raises Refused."""
        node_id = new_id()
        async with self._store.mutation(actor, Action.PEER_CREATE, f"node:{node_id}", once) as tx:
            await check_name_free(tx, wanted.name)
            await check_public_key_free(tx, wanted.public_key)
            number = await self._admission.allocate(tx, node_id, wanted.addresses)
            stored = await tx.nodes.save(
                StoredNode(
                    id=node_id,
                    name=wanted.name,
                    kind="static",
                    state="active",
                    tags=frozenset(wanted.tags),
                    number=number,
                    addresses=tx.plan.addresses(number),
                    public_key=wanted.public_key,
                    created=tx.now,
                    reported=wanted.endpoints,
                )
            )
            node = self._nodes.describe(stored)
            tx.record(new=summary(stored))
            tx.answer(node)
        return node

    async def config(self, node_id: NodeId) -> PeerConfig:
        """The peer's wg-quick file as policy is now. Raises Refused (NOT_FOUND, NOT_STATIC, NODE_DISABLED)."""
        node = await self._nodes.stored(node_id)
        if node.kind != "static":
            raise Refused(Kind.NOT_STATIC, f"{node.name!r} runs agentd, which configures it: there is no file to give")
        netmap = self._hub.netmap(node_id)
        if node.state != "active" or netmap is None:
            raise Refused(Kind.NODE_DISABLED, f"the static peer {node.name!r} is {node.state}: enable it first")
        return PeerConfig(node=node_id, wg_quick=wg_quick(node, netmap))


def wg_quick(node: StoredNode, netmap: Netmap) -> str:
    """The file for wg-quick(8) and the WireGuard apps: everything but the private key, whose place is marked."""
    config = WireguardConfig(
        addresses=list(node.addresses),
        listen_port=split_endpoint(node.reported[0])[1] if node.reported else None,
        mtu=_MTU,
    )
    for peer in sorted(netmap.peers.values(), key=lambda peer: peer.name):
        config.add_peer(_peer(peer))
    text = config.to_wgconfig(wgquick_format=True)
    for peer in netmap.peers.values():
        for host, port in map(split_endpoint, peer.endpoints[:1]):
            # wireguard-tools 0.6 writes IPv6 endpoints without the brackets that wg(8) requires.
            text = text.replace(f"Endpoint = {host}:{port}\n", f"Endpoint = {format_endpoint(host, port)}\n")
    place = f"[Interface]\n# PrivateKey = the private key of {node.public_key}\n"
    return text.replace("[Interface]\n", place, 1)


def _peer(peer: Peer) -> WireguardPeer:
    host, port = split_endpoint(peer.endpoints[0]) if peer.endpoints else (None, None)
    return WireguardPeer(
        public_key=WireguardKey(peer.public_key),
        endpoint_host=host,
        endpoint_port=port,
        persistent_keepalive=peer.keepalive,
        allowed_ips=[*peer.addresses, *peer.held],
        friendly_name=peer.name,
    )
