"""The policy document as values: what was written, each part with its place.

Only facts of the text: who a selector matches is decided by `compile` and, independently, by `model`.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal

from controller.wire.netmap import PortRange, Protocol

from .findings import Place

__all__ = [
    "ANYONE",
    "Allowance",
    "Document",
    "Grant",
    "Group",
    "Host",
    "Network",
    "Selector",
    "SelectorKind",
    "Tag",
    "Test",
]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
SelectorKind = Literal["any", "tag", "node", "host", "group"]
ANYONE = "*"


@dataclass(frozen=True, slots=True)
class Selector:
    """Names nodes. `bare`: written without its kind, which the document's own hosts and groups then decided."""

    kind: SelectorKind
    name: str
    place: Place = field(compare=False)
    bare: bool = field(default=False, compare=False)

    @property
    def key(self) -> str:
        """`*`, `tag:x`, `node:x`, `host:x`, `group:x`: also the name of its address set on hosts."""
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
    """A declared tag and who may give it to a node, besides the admins."""

    name: str
    owners: tuple[str, ...]
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Group:
    """A name for several selectors; groups do not nest."""

    name: str
    members: tuple[Selector, ...]
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Grant:
    """Nodes of `from_` may open flows of `ip` to nodes of `to`, until `expires` (seconds since the epoch).

    `id` follows from what is granted to whom, so editing notes, times, order or neighbours does not change it.
    """

    id: str
    from_: tuple[Selector, ...]
    to: tuple[Selector, ...]
    ip: tuple[Allowance, ...]
    note: str
    expires: int | None
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Test:
    """What the author expects: everything in `accept` passes from `from_` to `to`, nothing in `deny` does."""

    __test__ = False  # not for pytest

    from_: tuple[Selector, ...]
    to: tuple[Selector, ...]
    accept: tuple[Allowance, ...]
    deny: tuple[Allowance, ...]
    place: Place = field(compare=False)


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed policy. `tags` is None when the document declares none: then any tag may be named."""

    hosts: Mapping[str, Host] = field(default_factory=lambda: MappingProxyType({}))
    tags: Mapping[str, Tag] | None = None
    groups: Mapping[str, Group] = field(default_factory=lambda: MappingProxyType({}))
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

    def groups_of(self) -> Mapping[str, tuple[str, ...]]:
        """For the key of each selector that is in groups, the keys of those groups."""
        groups: dict[str, list[str]] = {}
        for group in self.groups.values():
            for member in group.members:
                groups.setdefault(member.key, []).append(f"group:{group.name}")
        return {key: tuple(found) for key, found in groups.items()}
