"""WireGuard's generic netlink messages as bytes (include/uapi/linux/wireguard.h). Pure: no socket, no clock.

Messages are built here, many peers in each: pyroute2's own writer takes one peer a call (1.4 ms each), sends no device
flags and cannot split a long message. Its `wgmsg` names the attributes, and is what the tests decode our bytes with.
"""

import base64
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final

from pyroute2.netlink.generic import wireguard as wg

from agentd.model import NO_PRESHARED_KEY, Endpoint, Network, ObservedDevice, ObservedPeer
from agentd.operations import PeerChange, SetDevice

from .device import DeviceChange
from .netlink import attribute, attributes

__all__ = ["FRAGMENT", "GENL", "decode_device", "encode_changes", "encode_get"]

# A nested attribute's length has 16 bits, and the peers of one message are one nested attribute. Half of that keeps
# the allocation small; a longer message would not be faster, the kernel's work is the same.
FRAGMENT: Final = 32 * 1024

GENL: Final = struct.Struct("=BBH")
_NESTED: Final = 0x8000


def _numbers(message: Any) -> dict[str, int]:
    return {name: number for number, (name, _kind) in enumerate(message.nla_map)}


_DEVICE: Final = _numbers(wg.wgmsg)
_PEER: Final = _numbers(wg.wgmsg.wgdevice_peer)
_ALLOWED: Final = _numbers(wg.wgmsg.wgdevice_peer.wgpeer_allowedip)

_KEY_HEADER: Final = struct.pack("=HH", 36, _PEER["WGPEER_A_PUBLIC_KEY"])
_PSK_HEADER: Final = struct.pack("=HH", 36, _PEER["WGPEER_A_PRESHARED_KEY"])
_FLAGS: Final = struct.Struct("=HHI")
_KEEPALIVE: Final = struct.Struct("=HHH2x")
_SOCKADDR_IN: Final = struct.Struct("=HHH2s4s8x")
# The scope is in host order (struct sockaddr_in6), unlike the port; pyroute2 writes it in network order.
_SOCKADDR_IN6: Final = struct.Struct("=HHH2sI16sI")
_ALLOWED4: Final = struct.Struct("=HHHHH2xHH4sHHB3x")
_ALLOWED6: Final = struct.Struct("=HHHHH2xHH16sHHB3x")


# --- encoding ---------------------------------------------------------------------------------------------------------


def encode_changes(
    name: str, changes: Iterable[DeviceChange], private_key: bytes, *, limit: int = FRAGMENT
) -> Iterator[bytes]:
    """The changes as payloads of WG_CMD_SET_DEVICE, none longer than `limit` bytes.

    Device attributes and flags are in the first message only, and a peer's fields and flags only where the peer comes
    first: were WGDEVICE_F_REPLACE_PEERS or WGPEER_F_REPLACE_ALLOWEDIPS repeated in a later fragment, that fragment
    would remove what the ones before it had added.
    """
    changes = tuple(changes)
    target = GENL.pack(wg.WG_CMD_SET_DEVICE, wg.WG_GENL_VERSION, 0)
    target += attribute(_DEVICE["WGDEVICE_A_IFNAME"], name.encode() + b"\0")
    device = b"".join(_encode_device(change, private_key) for change in changes if isinstance(change, SetDevice))
    fragment = _Fragment(target, device, limit)
    for change in changes:
        if isinstance(change, SetDevice):
            continue
        head = _encode_peer_head(change)
        networks = [_encode_allowed_ip(network) for network in change.allowed_ips]
        while (rest := fragment.add(head, networks)) is not None:
            if fragment.is_empty():
                raise ValueError(f"a message of {limit} bytes has no room for one peer")
            yield fragment.payload()
            fragment = _Fragment(target, b"", limit)
            if len(rest) < len(networks):
                # What remains belongs to a peer that exists by now; if somebody removed it, it stays removed.
                head = _peer_head(change.public_key, wg.WGPEER_F_UPDATE_ONLY)
            networks = rest
    if not fragment.is_empty():
        yield fragment.payload()


class _Fragment:
    """One message while it fills up."""

    def __init__(self, target: bytes, device: bytes, limit: int) -> None:
        self._start = target + device
        self._has_device = bool(device)
        self._peers = bytearray()
        self._limit = limit - 4  # the header of the nested peers

    def is_empty(self) -> bool:
        """True when sending it would change nothing."""
        return not self._has_device and not self._peers

    def add(self, head: bytes, networks: list[bytes]) -> list[bytes] | None:
        """Add a peer with as many of its networks as fit. Returns those that did not, None when nothing is left over.

        A peer of which no part fits leaves the fragment as it was, and all networks are returned.
        """
        room = self._limit - len(self._start) - len(self._peers) - 8 - len(head)
        if room < 0:
            return networks
        count = used = 0
        for network in networks:
            if used + len(network) > room:
                break
            count, used = count + 1, used + len(network)
        if networks and not count:
            return networks
        if networks:
            head += struct.pack("=HH", 4 + used, _PEER["WGPEER_A_ALLOWEDIPS"] | _NESTED) + b"".join(networks[:count])
        self._peers += struct.pack("=HH", 4 + len(head), _NESTED) + head
        return networks[count:] or None

    def payload(self) -> bytes:
        """The finished message."""
        if not self._peers:
            return self._start
        header = struct.pack("=HH", 4 + len(self._peers), _DEVICE["WGDEVICE_A_PEERS"] | _NESTED)
        return self._start + header + self._peers


def _encode_device(change: SetDevice, private_key: bytes) -> bytes:
    data = b""
    if change.public_key is not None:
        data += attribute(_DEVICE["WGDEVICE_A_PRIVATE_KEY"], private_key)
    if change.listen_port is not None:
        data += attribute(_DEVICE["WGDEVICE_A_LISTEN_PORT"], struct.pack("=H", change.listen_port))
    if change.replace_peers:
        data += attribute(_DEVICE["WGDEVICE_A_FLAGS"], struct.pack("=I", wg.WGDEVICE_F_REPLACE_PEERS))
    return data


def _encode_peer_head(change: PeerChange) -> bytes:
    if change.action == "remove":
        # UPDATE_ONLY too: a peer that is gone already must not be made in order to be removed.
        return _peer_head(change.public_key, wg.WGPEER_F_REMOVE_ME | wg.WGPEER_F_UPDATE_ONLY)
    flags = wg.WGPEER_F_UPDATE_ONLY if change.action == "change" else 0
    flags |= wg.WGPEER_F_REPLACE_ALLOWEDIPS if change.replace_allowed_ips else 0
    data = _peer_head(change.public_key, flags)
    if change.preshared_key is not None:
        data += _PSK_HEADER + change.preshared_key
    if change.endpoint is not None:
        data += _encode_endpoint(change.endpoint)
    if change.keepalive is not None:
        data += _KEEPALIVE.pack(6, _PEER["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"], change.keepalive)
    return data


def _peer_head(public_key: str, flags: int) -> bytes:
    data = _KEY_HEADER + base64.b64decode(public_key)
    return data + _FLAGS.pack(8, _PEER["WGPEER_A_FLAGS"], flags) if flags else data


def _encode_endpoint(endpoint: Endpoint) -> bytes:
    kind, port = _PEER["WGPEER_A_ENDPOINT"], endpoint.port.to_bytes(2, "big")
    if ":" in endpoint.address:
        address = socket.inet_pton(socket.AF_INET6, endpoint.address)
        return _SOCKADDR_IN6.pack(32, kind, socket.AF_INET6, port, 0, address, endpoint.scope)
    return _SOCKADDR_IN.pack(20, kind, socket.AF_INET, port, socket.inet_pton(socket.AF_INET, endpoint.address))


def _encode_allowed_ip(network: Network) -> bytes:
    packed, length = network
    layout, family = (_ALLOWED4, socket.AF_INET) if len(packed) == 4 else (_ALLOWED6, socket.AF_INET6)
    return layout.pack(
        layout.size,
        _NESTED,
        6,
        _ALLOWED["WGALLOWEDIP_A_FAMILY"],
        family,
        4 + len(packed),
        _ALLOWED["WGALLOWEDIP_A_IPADDR"],
        packed,
        5,
        _ALLOWED["WGALLOWEDIP_A_CIDR_MASK"],
        length,
    )


# --- decoding ---------------------------------------------------------------------------------------------------------


def encode_get(name: str) -> bytes:
    """The request for a device: payload of a WG_CMD_GET_DEVICE dump."""
    payload = GENL.pack(wg.WG_CMD_GET_DEVICE, wg.WG_GENL_VERSION, 0)
    return payload + attribute(_DEVICE["WGDEVICE_A_IFNAME"], name.encode() + b"\0")


def decode_device(parts: Iterable[bytes]) -> ObservedDevice:
    """The device from the messages of one dump.

    The kernel splits a long device over messages, and a peer's allowed IPs over messages too: the continuation repeats
    the peer's public key, and nothing else of the peer.
    """
    public_key, listen_port = "", 0
    peers: dict[str, _Peer] = {}
    for data in parts:
        for kind, start, end in attributes(data, GENL.size):
            if kind == _DEVICE["WGDEVICE_A_PUBLIC_KEY"]:
                public_key = base64.b64encode(data[start:end]).decode()
            elif kind == _DEVICE["WGDEVICE_A_LISTEN_PORT"]:
                listen_port = struct.unpack_from("=H", data, start)[0]
            elif kind == _DEVICE["WGDEVICE_A_PEERS"]:
                for _index, peer_start, peer_end in attributes(data, start, end):
                    _decode_peer(data, peer_start, peer_end, peers)
    return ObservedDevice(
        public_key=public_key,
        listen_port=listen_port,
        peers={key: peer.freeze() for key, peer in peers.items()},
    )


class _Peer:
    """A peer while its parts are put together."""

    def __init__(self, public_key: str) -> None:
        self.public_key = public_key
        self.allowed_ips: list[Network] = []
        self.endpoint: Endpoint | None = None
        self.keepalive = self.rx_bytes = self.tx_bytes = 0
        self.preshared_key = NO_PRESHARED_KEY
        self.last_handshake = 0.0

    def freeze(self) -> ObservedPeer:
        return ObservedPeer(
            public_key=self.public_key,
            allowed_ips=frozenset(self.allowed_ips),
            endpoint=self.endpoint,
            keepalive=self.keepalive,
            preshared_key=self.preshared_key,
            last_handshake=self.last_handshake,
            rx_bytes=self.rx_bytes,
            tx_bytes=self.tx_bytes,
        )


def _decode_peer(data: bytes, start: int, end: int, peers: dict[str, _Peer]) -> None:
    found = {kind: (begin, stop) for kind, begin, stop in attributes(data, start, end)}
    begin, stop = found[_PEER["WGPEER_A_PUBLIC_KEY"]]
    key = base64.b64encode(data[begin:stop]).decode()
    peer = peers.get(key)
    if peer is None:
        peer = peers[key] = _Peer(key)
    for kind, (begin, stop) in found.items():
        match kind:
            case _Attr.ALLOWED_IPS:
                peer.allowed_ips.extend(_decode_allowed_ips(data, begin, stop))
            case _Attr.ENDPOINT:
                peer.endpoint = _decode_endpoint(data, begin)
            case _Attr.PRESHARED_KEY:
                peer.preshared_key = data[begin:stop]
            case _Attr.KEEPALIVE:
                peer.keepalive = struct.unpack_from("=H", data, begin)[0]
            case _Attr.LAST_HANDSHAKE:
                seconds, nanoseconds = struct.unpack_from("=qq", data, begin)
                peer.last_handshake = seconds + nanoseconds / 1e9
            case _Attr.RX_BYTES:
                peer.rx_bytes = struct.unpack_from("=Q", data, begin)[0]
            case _Attr.TX_BYTES:
                peer.tx_bytes = struct.unpack_from("=Q", data, begin)[0]


class _Attr:
    """Peer attributes by names that a match statement accepts."""

    PRESHARED_KEY: Final = _PEER["WGPEER_A_PRESHARED_KEY"]
    ENDPOINT: Final = _PEER["WGPEER_A_ENDPOINT"]
    KEEPALIVE: Final = _PEER["WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL"]
    LAST_HANDSHAKE: Final = _PEER["WGPEER_A_LAST_HANDSHAKE_TIME"]
    RX_BYTES: Final = _PEER["WGPEER_A_RX_BYTES"]
    TX_BYTES: Final = _PEER["WGPEER_A_TX_BYTES"]
    ALLOWED_IPS: Final = _PEER["WGPEER_A_ALLOWEDIPS"]


def _decode_endpoint(data: bytes, start: int) -> Endpoint | None:
    family = struct.unpack_from("=H", data, start)[0]
    port = int.from_bytes(data[start + 2 : start + 4], "big")
    if family == socket.AF_INET:
        return Endpoint(socket.inet_ntop(socket.AF_INET, data[start + 4 : start + 8]), port)
    if family == socket.AF_INET6:
        packed, scope = struct.unpack_from("=16sI", data, start + 8)
        return Endpoint(Network(packed, 128).address, port, scope)
    return None


def _decode_allowed_ips(data: bytes, start: int, end: int) -> Iterator[Network]:
    for _index, begin, stop in attributes(data, start, end):
        packed, length = b"", 0
        for kind, first, last in attributes(data, begin, stop):
            if kind == _ALLOWED["WGALLOWEDIP_A_IPADDR"]:
                packed = data[first:last]
            elif kind == _ALLOWED["WGALLOWEDIP_A_CIDR_MASK"]:
                length = data[first]
        yield Network(packed, length)
