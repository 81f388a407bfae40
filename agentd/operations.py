"""What can be done to a host's kernel state, one value each: printed for people, and executed by the reconciler.

The order in which they are done is the plan's; no private key is in any of them.
"""

from dataclasses import dataclass, field
from typing import Literal

from .model import NO_PRESHARED_KEY, BackendName, Endpoint, Network, Route, Ruleset

__all__ = [
    "AddAddress",
    "ChangeTable",
    "CreateLink",
    "Operation",
    "PeerChange",
    "PutRoute",
    "RemoveAddress",
    "RemoveLink",
    "RemoveRoute",
    "RemoveTable",
    "ReplaceTable",
    "SetDevice",
    "SetLink",
]


@dataclass(frozen=True, slots=True)
class ReplaceTable:
    """Write the whole table, in one transaction."""

    ruleset: Ruleset
    reason: str

    def __str__(self) -> str:
        return f"replace table inet {self.ruleset.table} ({self.reason}; {self.ruleset.size()} elements)"


@dataclass(frozen=True, slots=True)
class ChangeTable:
    """Turn the table that is in force into another, in one transaction."""

    old: Ruleset
    new: Ruleset
    summary: str

    def __str__(self) -> str:
        return f"change table inet {self.new.table} ({self.summary})"


@dataclass(frozen=True, slots=True)
class RemoveTable:
    """Remove the table whole."""

    table: str

    def __str__(self) -> str:
        return f"remove table inet {self.table}"


@dataclass(frozen=True, slots=True)
class CreateLink:
    """Create the link, by the backend in use."""

    name: str
    backend: BackendName

    def __str__(self) -> str:
        return f"create link {self.name} ({self.backend})"


@dataclass(frozen=True, slots=True)
class SetLink:
    """Set the MTU, or bring the link up, or both."""

    name: str
    mtu: int | None = None
    up: bool = False

    def __str__(self) -> str:
        changes = ([f"mtu {self.mtu}"] if self.mtu is not None else []) + (["up"] if self.up else [])
        return f"set link {self.name} {' '.join(changes)}"


@dataclass(frozen=True, slots=True)
class RemoveLink:
    """Remove the link, and with it its addresses, routes and peers."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"remove link {self.name} ({self.reason})"


@dataclass(frozen=True, slots=True)
class SetDevice:
    """Set the device's key or port. The key itself is known only to who applies this; here is its public half."""

    public_key: str | None = None
    listen_port: int | None = None
    replace_peers: bool = False

    def __str__(self) -> str:
        changes = [f"the private key of {self.public_key}"] if self.public_key else []
        changes += [f"listen port {self.listen_port}"] if self.listen_port is not None else []
        changes += ["no peers"] if self.replace_peers else []
        return f"set {', '.join(changes)}"


@dataclass(frozen=True, slots=True)
class PeerChange:
    """Add, change or remove one peer. None leaves a field as it is: unset differs from zero.

    `change` never re-creates a peer that vanished meanwhile. With `replace_allowed_ips`, `allowed_ips` is the whole
    list; otherwise what to add to it.
    """

    action: Literal["add", "change", "remove"]
    name: str
    public_key: str
    endpoint: Endpoint | None = None
    keepalive: int | None = None
    preshared_key: bytes | None = field(default=None, repr=False)
    allowed_ips: tuple[Network, ...] = ()
    replace_allowed_ips: bool = False

    def is_endpoint_alone(self) -> bool:
        """True when it says where the peer is and nothing else."""
        return self == PeerChange("change", self.name, self.public_key, endpoint=self.endpoint)

    def __str__(self) -> str:
        changes = [f"endpoint {self.endpoint}"] if self.endpoint else []
        changes += [f"keepalive {self.keepalive or 'off'}"] if self.keepalive is not None else []
        if self.preshared_key is not None:
            changes.append("no preshared key" if self.preshared_key == NO_PRESHARED_KEY else "preshared key")
        if self.allowed_ips or self.replace_allowed_ips:
            listed = ", ".join(str(network) for network in self.allowed_ips) or "none"
            changes.append(f"allowed ips {'' if self.replace_allowed_ips else '+ '}{listed}")
        return f"{self.action} peer {self.name or '?'} ({self.public_key}) {'; '.join(changes)}".rstrip()


@dataclass(frozen=True, slots=True)
class AddAddress:
    """Give the link an address; `held`: a service's or a relay's, which the host does not speak from by itself."""

    network: Network
    held: bool = False

    def __str__(self) -> str:
        return f"add address {self.network}{' to be held' if self.held else ''}"


@dataclass(frozen=True, slots=True)
class RemoveAddress:
    """Take an address from the link."""

    network: Network

    def __str__(self) -> str:
        return f"remove address {self.network}"


@dataclass(frozen=True, slots=True)
class PutRoute:
    """Add a route, or with `replace` change the one to the same destination that is already ours."""

    route: Route
    replace: bool = False

    def __str__(self) -> str:
        return f"{'change' if self.replace else 'add'} route {self.route}"


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Remove one of our routes."""

    route: Route

    def __str__(self) -> str:
        return f"remove route {self.route}"


Operation = (
    ReplaceTable
    | ChangeTable
    | RemoveTable
    | CreateLink
    | SetLink
    | RemoveLink
    | SetDevice
    | PeerChange
    | AddAddress
    | RemoveAddress
    | PutRoute
    | RemoveRoute
)
