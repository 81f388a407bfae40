"""The kernel state of one host as values: what is wanted, and what is there. What leads from one to the other is in
`operations`. Knows nothing of netlink, nft or the controller; all of it can be printed, and no private key is in it.
"""

import ipaddress
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from controller.wire.base import format_endpoint

__all__ = [
    "NO_PRESHARED_KEY",
    "BackendName",
    "Chain",
    "Container",
    "Counted",
    "Desired",
    "DesiredPeer",
    "Endpoint",
    "Hiding",
    "HostNetwork",
    "KernelError",
    "LinkSettings",
    "LocalAddress",
    "MapError",
    "Network",
    "Observed",
    "ObservedDevice",
    "ObservedLink",
    "ObservedPeer",
    "Route",
    "Ruleset",
]

BackendName = Literal["kernel", "userspace"]
NO_PRESHARED_KEY: Final = bytes(32)  # WireGuard's own way of saying "none"; writing it clears the key


class KernelError(Exception):
    """The host refused a state. The message names what refused, the value, and the remedy."""


class MapError(KernelError):
    """The map itself cannot be put into any kernel; nothing was written."""


class Network(NamedTuple):
    """A prefix as the kernel has it: 4 or 16 bytes in network order, and a length. Compares and hashes as bytes."""

    packed: bytes
    length: int

    @classmethod
    def host(cls, address: str) -> "Network":
        """The /32 or /128 of one canonical address."""
        if ":" in address:
            return cls(socket.inet_pton(socket.AF_INET6, address), 128)
        return cls(socket.inet_pton(socket.AF_INET, address), 32)

    @classmethod
    def parse(cls, prefix: str) -> "Network":
        """A canonical prefix, `192.0.2.0/24`."""
        address, _, length = prefix.partition("/")
        return cls(cls.host(address).packed, int(length))

    @property
    def family(self) -> int:
        """AF_INET or AF_INET6."""
        return int(socket.AF_INET if len(self.packed) == 4 else socket.AF_INET6)

    @property
    def address(self) -> str:
        """The address without its length, in RFC 5952 text."""
        return str(ipaddress.ip_address(self.packed))

    def contains(self, other: "Network") -> bool:
        """True when every address of `other` is in this prefix."""
        if len(self.packed) != len(other.packed) or self.length > other.length:
            return False
        shift = len(self.packed) * 8 - self.length
        return int.from_bytes(self.packed, "big") >> shift == int.from_bytes(other.packed, "big") >> shift

    def __str__(self) -> str:
        return f"{self.address}/{self.length}"


class Endpoint(NamedTuple):
    """Where a peer's WireGuard socket is. `scope` is an interface index, for IPv6 link-local addresses only."""

    address: str
    port: int
    scope: int = 0

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """A canonical `192.0.2.1:51820` or `[2001:db8::1]:51820`."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return format_endpoint(f"{self.address}%{self.scope}" if self.scope else self.address, self.port)


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What the host's own configuration says about the tunnel. `table` is the nftables table, family inet.

    `probe_port`: the UDP port of agentd's own socket, whose STUN shares WireGuard's port; 0 for none. `relay_rate`:
    megabytes a second that each host may send through this one as a relay; 0 for no limit.
    """

    name: str = "wardmesh0"
    listen_port: int = 51820
    mtu: int = 1420
    table: str = "wardmesh"
    backend: Literal["auto", "kernel", "userspace"] = "auto"
    probe_port: int = 0
    relay_rate: int = 100


@dataclass(frozen=True, slots=True)
class LocalAddress:
    """An address that this host has now, with its prefix length, and the link that has it."""

    link: str
    address: str
    prefix_length: int


@dataclass(frozen=True, slots=True)
class HostNetwork:
    """A prefix that the host reaches by its own addresses or routes, and through which link."""

    prefix: str
    link: str


# --- nftables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Chain:
    """One chain: its rules in nft's language. `hook` is the text of a base chain's type line, None for others."""

    rules: tuple[str, ...]
    hook: str | None = None


@dataclass(frozen=True, slots=True)
class Container:
    """One set or map: its type line in nft's language."""

    kind: Literal["map", "set"]
    type: str


@dataclass(frozen=True, slots=True)
class Ruleset:
    """The whole of our nftables table as data.

    `elements` holds, per map, key -> verdict; sets are filled by packets. Chains and containers are structure;
    elements are membership, and change far more often.
    """

    table: str
    counters: frozenset[str]
    containers: Mapping[str, Container]
    chains: Mapping[str, Chain]
    elements: Mapping[str, Mapping[str, str]]

    def size(self) -> int:
        """Number of elements."""
        return sum(len(keys) for keys in self.elements.values())


# --- what is wanted ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Route:
    """A route through our link, with the address that the host speaks from when it uses it.

    `mtu`: bytes of the largest packet, 0 for the link's own MTU.
    """

    destination: Network
    source: Network
    mtu: int = 0

    def __str__(self) -> str:
        return f"{self.destination} src {self.source.address}{f' mtu {self.mtu}' if self.mtu else ''}"


@dataclass(frozen=True, slots=True)
class DesiredPeer:
    """One WireGuard peer. `endpoint` is a hint: a peer that roams is where its last packet came from.

    `mtu`: bytes of the largest packet for it, 0 for the link's own MTU.
    """

    name: str
    public_key: str
    allowed_ips: frozenset[Network]
    endpoint: Endpoint | None = None
    keepalive: int = 0  # seconds, 0 for off
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    mtu: int = 0


@dataclass(frozen=True, slots=True)
class Desired:
    """Everything that the kernel of this host should have. Peers by public key.

    `held` are addresses that the host answers for and never speaks from by itself: those of services, and its places
    behind relays. `anew`: the public keys of peers with whom a handshake that was begun and not finished is begun
    again, once.
    """

    link: LinkSettings
    public_key: str
    addresses: frozenset[Network]
    held: frozenset[Network]
    routes: frozenset[Route]
    peers: Mapping[str, DesiredPeer]
    ruleset: Ruleset
    relayed: frozenset[Network] = frozenset()  # the prefixes in which peers are behind relays
    anew: frozenset[str] = frozenset()


# --- what is there ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ObservedLink:
    """The link that bears our name. `ours`: it carries our mark; another program's link is never touched."""

    index: int
    kind: str
    mtu: int
    up: bool
    ours: bool


@dataclass(frozen=True, slots=True)
class ObservedPeer:
    """A peer as WireGuard has it. `last_handshake` is in seconds since the epoch, 0 for never."""

    public_key: str
    allowed_ips: frozenset[Network]
    endpoint: Endpoint | None = None
    keepalive: int = 0
    preshared_key: bytes = field(default=NO_PRESHARED_KEY, repr=False)
    last_handshake: float = 0.0
    rx_bytes: int = 0
    tx_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ObservedDevice:
    """The WireGuard device. `public_key` is "" while it has no key. Peers by public key."""

    public_key: str
    listen_port: int
    peers: Mapping[str, ObservedPeer]


@dataclass(frozen=True, slots=True)
class Counted:
    """Packets since the table was last written whole: accepted by the grant's name, denied by where.

    Where: `in`, `out`, `forward`, `spoofed` (a mesh address on another link), `leaked` (to the mesh on another link).
    """

    accepted: Mapping[str, int]
    denied: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Hiding:
    """A chain of another's table that drops (or, with `diverts`, sends elsewhere) what the mesh needs.

    `certain` False: it depends on a condition that agentd cannot read. `hook` is that of the base chain; `by_policy`:
    no rule accepted it. `packets`: what the rule's own counter has, of any packets. `traffic`: for people.
    """

    family: str
    table: str
    chain: str
    hook: str
    by_policy: bool
    diverts: bool
    certain: bool
    packets: int | None
    traffic: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """One look at the host.

    `addresses` are those of the link that the host may speak from by itself, `held` the others.
    `ruleset` is what our table holds, None when it is absent or not known to be as we wrote it. `hints` are the
    endpoints that this process last wrote or left alone for each peer: a map that repeats one must not undo roaming.
    """

    backend: BackendName
    now: float
    link: ObservedLink | None
    device: ObservedDevice | None
    addresses: frozenset[Network]
    held: frozenset[Network]
    routes: frozenset[Route]
    ruleset: Ruleset | None
    table_present: bool
    hints: Mapping[str, Endpoint | None]

    @property
    def peers(self) -> Mapping[str, ObservedPeer]:
        """The device's peers by public key; none without a device."""
        return self.device.peers if self.device else {}
