"""A document as what hosts enforce: for each role, the rules and the address sets that they refer to.

Pure, and without the fleet: the compiled policy says which selectors a node matches (its role) and what a role may do.
Which addresses are in a set at this moment is the mesh's business, so a membership change compiles nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from controller.wire.base import Address
from controller.wire.mcp import McpGrant, Service, ServiceName
from controller.wire.netmap import Direction, Forward, Rule
from controller.wire.relays import HOSTS

from .allowances import services
from .document import ANYONE, Document, Grant, McpRules, Reach, Selector
from .prefixes import PrefixTable

__all__ = ["CompiledPolicy", "Role", "View", "compile_policy", "mcp_grant"]

Role = frozenset[str]  # keys of the selectors that match a node


@dataclass(frozen=True, slots=True)
class View:
    """What a node of one role enforces: rules by id, and the names of the sets whose members are its counterparts.

    `services`: the gateway services that such a node may serve, by name, without addresses and names. Their sets
    (`svc:NAME`) are what `local` of its rules names; they are in `sets` only where the node may call them, too.
    `calls`: who may make which calls on those services, by grant id. `names`: the gateway services that it may call.
    `forwards`: between whom it relays, and `carried` the sets that say so; their members are not its counterparts.
    """

    rules: Mapping[str, Rule]
    sets: frozenset[str]
    services: Mapping[ServiceName, Service] = field(default_factory=dict)
    calls: Mapping[str, McpGrant] = field(default_factory=dict)
    names: frozenset[ServiceName] = frozenset()
    forwards: Mapping[str, Forward] = field(default_factory=dict)
    carried: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Side:
    """What a selector's members enforce because of one grant: `out` rules where it is the source, `in` the reverse."""

    rules: tuple[Rule, ...]
    sets: frozenset[str]
    names: frozenset[ServiceName] = frozenset()
    calls: McpGrant | None = None


NO_ROLE: Final[Role] = frozenset()
_NO_VIEW: Final = View(MappingProxyType({}), frozenset())


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """The meaning of a document. `counterparts`: for a set, the selectors whose members use it in their rules.

    `gateway_services`: those that have addresses of their own, by name. The nodes that may serve one are those whose
    role has its key, `svc:NAME`, whether anybody may call it or not.
    """

    counterparts: Mapping[str, frozenset[str]]
    gateway_services: Mapping[ServiceName, Service]
    _sides: Mapping[str, tuple[_Side, ...]]
    _groups_of: Mapping[str, tuple[str, ...]]
    _prefixes: PrefixTable
    _named: frozenset[str]
    _forwards: Mapping[str, Forward]
    _relays: frozenset[str]  # keys of the regions
    _views: dict[Role, View] = field(default_factory=dict)  # computed once a role; a policy's views never change

    def role(self, name: str, tags: Iterable[str], addresses: Iterable[Address], *, relayed: bool = False) -> Role:
        """The selectors of this policy that match a node; selectors that no grant uses do not count.

        `relayed`: it runs agentd, and may use relays and be one.
        """
        keys = {ANYONE, f"node:{name}", *tags, *self._prefixes.holding(addresses)}
        keys.update(group for key in tuple(keys) for group in self._groups_of.get(key, ()))
        keys = keys | {HOSTS} if relayed else keys - self._relays
        return self._named & keys

    def view(self, role: Role) -> View:
        """What nodes of `role` enforce."""
        if not role:
            return _NO_VIEW
        view = self._views.get(role)
        if view is None:
            view = self._compose(role)
            self._views[role] = view
        return view

    def _compose(self, role: Role) -> View:
        sides = [side for key in sorted(role) for side in self._sides.get(key, ())]
        served = {name: service for name, service in self.gateway_services.items() if f"svc:{name}" in role}
        calls: dict[str, McpGrant] = {}
        for grant in (side.calls for side in sides if side.calls is not None):
            # A host hears nothing of services that others serve.
            mine = tuple(name for name in grant.services if name in served)
            calls[grant.id] = grant.model_copy(update={"services": mine})
        forwards = {} if role.isdisjoint(self._relays) else dict(self._forwards)
        return View(
            rules=MappingProxyType({rule.id: rule for side in sides for rule in side.rules}),
            sets=frozenset().union(*(side.sets for side in sides)),
            services=MappingProxyType(served),
            calls=MappingProxyType(calls),
            names=frozenset().union(*(side.names for side in sides)),
            forwards=MappingProxyType(forwards),
            carried=frozenset(key for one in forwards.values() for key in (*one.between, *one.and_)),
        )


def compile_policy(document: Document) -> CompiledPolicy:
    """Compile; every document that `parse` accepts compiles."""
    gateway = {name: service.gateway for name, service in document.services.items() if service.gateway is not None}
    sides: dict[str, list[_Side]] = {f"svc:{name}": [] for name in gateway}
    counterparts: dict[str, set[str]] = {key: set() for key in sides}
    for grant in document.grants:
        from_ = _keys(grant.from_)
        calls = mcp_grant(grant, from_)
        for reach in grant.reaches:
            to = _keys(reach.to)
            out = _Side(_rules(grant, reach, "out", to), frozenset(to), _service_names(reach))
            into = _Side(_rules(grant, reach, "in", from_), frozenset(from_), calls=calls if reach.service else None)
            for members, side, peers in ((from_, out, to), (to, into, from_)):
                for key in members:
                    sides.setdefault(key, []).append(side)
                for key in peers:
                    counterparts.setdefault(key, set()).update(members)
    forwards = _connect_relays(document, sides, counterparts)
    return CompiledPolicy(
        counterparts={key: frozenset(keys) for key, keys in counterparts.items()},
        gateway_services=MappingProxyType(gateway),
        _sides={key: tuple(found) for key, found in sides.items()},
        _groups_of=document.groups_of(),
        _prefixes=PrefixTable({f"host:{host.name}": host.prefix for host in document.hosts.values()}),
        _named=frozenset(sides),
        _forwards=forwards,
        _relays=frozenset(region.key for region in document.relays.values()),
    )


def _connect_relays(
    document: Document, sides: dict[str, list[_Side]], counterparts: dict[str, set[str]]
) -> Mapping[str, Forward]:
    """Make every host and every relay each other's counterparts, without any rule; returns between whom these relay."""
    relays = frozenset(region.key for region in document.relays.values())
    if not relays:
        return MappingProxyType({})
    forwards = {grant.id: _forward(document, grant) for grant in document.grants}
    for key in (HOSTS, *relays, *(key for one in forwards.values() for key in (*one.between, *one.and_))):
        sides.setdefault(key, [])
        counterparts.setdefault(key, set()).update(relays)
    sides[HOSTS].append(_Side((), relays))
    for key in relays:
        sides[key].append(_Side((), frozenset({HOSTS})))
        counterparts[key].add(HOSTS)
    return MappingProxyType(forwards)


def _forward(document: Document, grant: Grant) -> Forward:
    """A service is where its hosts are: its own addresses are theirs to hold."""
    to = (
        selector
        for reach in grant.reaches
        for selector in (document.services[reach.service].on if reach.service is not None else reach.to)
    )
    return Forward(id=grant.id, between=_keys(grant.from_), and_=_simple_keys(document, to))


def _simple_keys(document: Document, selectors: Iterable[Selector]) -> tuple[str, ...]:
    keys = document.simple(selectors)
    return (ANYONE,) if ANYONE in keys else tuple(sorted(keys))


def _keys(selectors: tuple[Selector, ...]) -> tuple[str, ...]:
    """Set names, sorted; beside `*`, every other selector says nothing."""
    keys = {selector.key for selector in selectors}
    return (ANYONE,) if ANYONE in keys else tuple(sorted(keys))


def _service_names(reach: Reach) -> frozenset[ServiceName]:
    return frozenset() if reach.service is None else frozenset({reach.service})


def mcp_grant(grant: Grant, peers: tuple[str, ...]) -> McpGrant | None:
    """What the grant means for the gateways; None when it is to none of their services."""
    names = tuple(sorted(reach.service for reach in grant.reaches if reach.service is not None))
    if not names:
        return None
    rules = grant.mcp or McpRules()
    return McpGrant.model_construct(  # made of values that were checked when they were read
        id=grant.id,
        peers=peers,
        services=names,
        tools=rules.tools,
        deny_tools=rules.deny_tools,
        prompts=rules.prompts,
        resources=rules.resources,
        methods=rules.methods,
        args=rules.args,
        limits=rules.limits,
        expires=grant.expires,
    )


def _rules(grant: Grant, reach: Reach, direction: Direction, peers: tuple[str, ...]) -> tuple[Rule, ...]:
    """One rule a protocol. Its id follows from the grant's, so a recompiled policy changes only what changed in it.

    The rules of a grant without `ip` are told apart by the service that each is for.
    """
    base = f"{grant.id}.{direction}" if grant.ip else f"{grant.id}.{direction}.{reach.to[0].name}"
    return tuple(
        Rule(
            id=f"{base}.{protocol}",
            grant=grant.id,
            direction=direction,
            protocol=protocol,
            ports=ports,
            peers=peers,
            local=(f"svc:{reach.service}",) if reach.service is not None and direction == "in" else (),
            expires=grant.expires,
        )
        for protocol, ports in services(reach.ip)
    )
