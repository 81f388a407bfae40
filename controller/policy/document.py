"""The policy document as values: what was written, each part with its place.

Only facts of the text: who a selector matches is decided by `compile` and, independently, by `model`.
"""

import ipaddress
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from controller.wire import mcp
from controller.wire.calls import UseKind
from controller.wire.netmap import PortRange, Protocol
from controller.wire.relays import relay_set

from .findings import Place

__all__ = [
    "ANYONE",
    "Allowance",
    "Call",
    "Document",
    "Grant",
    "Group",
    "Host",
    "McpRules",
    "Network",
    "Reach",
    "Region",
    "Selector",
    "SelectorKind",
    "Service",
    "Tag",
    "Test",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SelectorKind = Literal["any", "tag", "node", "host", "group", "svc"]
ANYONE = "*"


@dataclass(frozen=True, slots=True)
class Selector:
    """Names nodes, or a service. `bare`: written without its kind, which the document itself then decided."""

    kind: SelectorKind
    name: str
    place: Place = field(compare=False)
    bare: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        """`*`, `tag:x`, `node:x`, `host:x`, `group:x`, `svc:x`: also the name of its address set on hosts."""
        return ANYONE if self.kind == "any" else f"{self.kind}:{self.name}"


@dataclass(frozen=True, slots=True)
class Allowance:
    """One entry of `ip`. Protocol `*` stands for tcp, udp and icmp, and for nothing else: tunnels do not ride on it."""

    protocol: Protocol | Literal["*"]
    ports: PortRange
    text: str
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Host:
    """A named prefix: it stands for the nodes that have an address in it."""

    name: str
    prefix: Network
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Tag:
    """A declared tag and who may give it to a node, besides the admins: `user:NAME` and `group:NAME`."""

    name: str
    owners: tuple[str, ...]
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A name for several selectors, and for users; groups do not nest. Traffic comes from nodes, so as a selector a
    group stands for its nodes only; `users` own what the group owns."""

    name: str
    members: tuple[Selector, ...]
    users: frozenset[str]
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Service:
    """Something on the nodes of `on`, at one TCP `port`.

    `gateway` is None for a server on its hosts' own addresses: then the service is those hosts and the port. Otherwise
    the MCP gateway of one of the hosts serves it, under mesh addresses that are the service's own; the value says how,
    without addresses and names, which the mesh knows.
    """

    name: str
    on: tuple[Selector, ...]
    port: int
    gateway: mcp.Service | None
    place: Place = field(compare=False)

    @property
    def key(self) -> str:
        return f"svc:{self.name}"


@dataclass(frozen=True, slots=True)
class Region:
    """Hosts that relay for others: the nodes of `on` that run agentd. Every host chooses the nearest of all regions."""

    name: str
    on: tuple[Selector, ...]
    place: Place = field(compare=False)

    @property
    def key(self) -> str:
        return relay_set(self.name)


@dataclass(frozen=True, slots=True)
class McpRules:
    """Which calls a grant allows on services of kind mcp; fields mean what those of the wire's `McpGrant` do."""

    tools: tuple[str, ...] = ()
    deny_tools: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    args: tuple[mcp.ToolRules, ...] = ()
    limits: tuple[mcp.ToolRate, ...] = ()


@dataclass(frozen=True, slots=True)
class Reach:
    """One part of what a grant opens: flows of `ip` to nodes of `to`.

    `service`: `to` is that gateway service, and the flows go to its own addresses, whichever of its nodes holds them;
    None: they go to the nodes' own addresses.
    """

    to: tuple[Selector, ...]
    ip: tuple[Allowance, ...]
    service: str | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """Nodes of `from_` may open the flows that `reaches` names, until `expires` (seconds since the epoch).

    `to` and `ip` are as written: a grant without `ip` is to services, whose ports are in `reaches`. `mcp` is None where
    the grant says nothing about calls. `id` follows from what is granted to whom, so editing notes, times, order or
    neighbours, or moving a service to another port, does not change it.
    """

    id: str
    from_: tuple[Selector, ...]
    to: tuple[Selector, ...]
    ip: tuple[Allowance, ...]
    reaches: tuple[Reach, ...]
    mcp: McpRules | None
    note: str
    expires: int | None
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Call:
    """A use of a service that a test speaks about. `arguments`: None for the tool whatever it is called with."""

    kind: UseKind
    name: str
    arguments: Mapping[str, Any] | None
    place: Place = field(compare=False)

    @property
    def text(self) -> str:
        return f"{self.kind} {self.name}" + ("" if self.arguments is None else f" with {json.dumps(self.arguments)}")


@dataclass(frozen=True, slots=True)
class Test:
    """What the author expects: everything in `accept` passes from `from_` to `to`, nothing in `deny` does."""

    __test__ = False  # not for pytest

    from_: tuple[Selector, ...]
    to: tuple[Selector, ...]
    accept: tuple[Allowance | Call, ...]
    deny: tuple[Allowance | Call, ...]
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed policy. `tags` is None when the document declares none: then any tag may be named."""

    hosts: Mapping[str, Host] = field(default_factory=lambda: MappingProxyType({}))
    tags: Mapping[str, Tag] | None = None
    groups: Mapping[str, Group] = field(default_factory=lambda: MappingProxyType({}))
    services: Mapping[str, Service] = field(default_factory=lambda: MappingProxyType({}))
    relays: Mapping[str, Region] = field(default_factory=lambda: MappingProxyType({}))
    grants: tuple[Grant, ...] = ()
    tests: tuple[Test, ...] = ()

    def at(self, now: float) -> "Document":
        """The same document without the grants that have ended by `now` (seconds since the epoch)."""
        if self.next_expiry(float("-inf")) is None:
            return self
        return replace(self, grants=tuple(g for g in self.grants if g.expires is None or now < g.expires))

    def next_expiry(self, now: float) -> int | None:
        """When the next of the grants that are in force at `now` ends; None when none of them does."""
        return min((g.expires for g in self.grants if g.expires is not None and now < g.expires), default=None)

    def owns(self, user: str, tag: str) -> bool:
        """May this user give nodes `tag` (written `tag:x`), directly or by a group? A tag that is not declared is the
        admins' alone."""
        declared = (self.tags or {}).get(tag.removeprefix("tag:"))
        owners = declared.owners if declared is not None else ()
        groups = (self.groups.get(owner.removeprefix("group:")) for owner in owners if owner.startswith("group:"))
        return f"user:{user}" in owners or any(group is not None and user in group.users for group in groups)

    def groups_of(self) -> Mapping[str, tuple[str, ...]]:
        """For the key of each selector that is in groups, or that services or relays are on, the keys of those."""
        groups: dict[str, list[str]] = {}
        for group in self.groups.values():
            for member in group.members:
                groups.setdefault(member.key, []).append(f"group:{group.name}")
        for service in self.services.values():
            for key in self.simple(service.on):
                groups.setdefault(key, []).append(service.key)
        for region in self.relays.values():
            for key in self.simple(region.on):
                groups.setdefault(key, []).append(region.key)
        return {key: tuple(found) for key, found in groups.items()}

    def simple(self, selectors: Iterable[Selector]) -> tuple[str, ...]:
        """The keys of what selectors consist of: their own, or for a group those of its members. Each once."""
        members = (self.groups[one.name].members if one.kind == "group" else (one,) for one in selectors)
        return tuple(dict.fromkeys(member.key for some in members for member in some))
