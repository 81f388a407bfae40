"""May this caller make this call? The policy message, compiled once into tables that answer in microseconds.

Knows no sockets and reads no clock but the one it is given. What grants mean is `controller.wire.calls`; a test holds
the two to the same answers.
"""

import math
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeVar

from controller.wire.arguments import ArgumentCheck, ToolChecks, compile_tool_rules
from controller.wire.base import Address
from controller.wire.calls import Refusal, Use, fold_name, needed, no_grant, uri_test, uses
from controller.wire.matching import TextTest, compile_globs
from controller.wire.mcp import GatewayPolicy, McpGrant, Rate, Service
from controller.wire.netmap import NodeId

from .args import follow_links
from .filters import filter_list
from .limits import Limiter
from .types import Allow, Call, Caller, Code, Decision, Deny

__all__ = ["INVALID_PARAMS", "CompiledPolicy"]

INVALID_PARAMS: Final = -32602  # JSON-RPC 2.0 section 5.1: the call is malformed, not denied
METHOD_NOT_FOUND: Final = -32601
# Revision 2026-07-28 took them away. A server that still heard them would subscribe a caller past the rules for
# subscriptions/listen, so it does not hear them.
_REMOVED: Final = frozenset({"resources/subscribe", "resources/unsubscribe"})
_MOST_NAMES: Final = 1024  # remembered for one caller and service; callers choose the names
_LONGEST_NAME: Final = 256
_MOST_ACCESSES: Final = 65_536
_SHOWN: Final = 128  # characters of a caller's text in an answer


@dataclass(frozen=True, slots=True, eq=False)
class _Grant:
    """One grant, ready to be asked. `ways` is memory of what it was asked, shared by all callers and bounded."""

    id: str
    expires: float
    members: tuple[frozenset[Address], ...]
    names: Mapping[str, TextTest]  # by the kind of a Use
    checks: ToolChecks
    rates: tuple[tuple[TextTest, Rate], ...]
    allow: Allow
    ways: dict[Use, "_Way"] = field(default_factory=dict)

    def is_for(self, address: Address) -> bool:
        # A loop, because any() costs three times as much here, for every grant that a new caller is held against.
        for members in self.members:  # noqa: SIM110
            if address in members:
                return True
        return False

    def way(self, use: Use) -> "_Way | None":
        """How it lets `use` happen; None: it does not name it."""
        found = self.ways.get(use)
        if found is None and self.names[use.kind](use.name):
            found = self._make_way(use)
            _remember(self.ways, use, found)
        return found

    def _make_way(self, use: Use) -> "_Way":
        if use.kind != "tool":
            return _Way(self, None, ())
        rates = tuple((index, rate) for index, (names, rate) in enumerate(self.rates) if names(use.name))
        return _Way(self, self.checks(use.name), rates)


@dataclass(frozen=True, slots=True, eq=False)
class _Way:
    """How a grant lets one thing be used: under which check of the arguments and which rates."""

    grant: _Grant
    check: ArgumentCheck | None
    rates: tuple[tuple[int, Rate], ...]


class _Broke(NamedTuple):
    """A call that could not be paid for: the seconds until it can be, and under which limit."""

    wait: float
    limit: str


@dataclass(frozen=True, slots=True, eq=False)
class _Allowance:
    """The first way that is open, and what it costs (`types.Allowance`). A later one is not looked for here."""

    way: _Way
    limiter: Limiter
    key: tuple[NodeId, str]
    prices: tuple[tuple[Hashable, Rate], ...]

    @property
    def decision(self) -> Allow:
        return self.way.grant.allow

    def allows(self, arguments: Mapping[str, Any], now: float) -> bool:
        way = self.way
        if now >= way.grant.expires or self.limiter.cooling(self.key, now):
            return False
        if way.check is not None and way.check(arguments) is not None:
            return False
        return not self.prices or self.limiter.take_each(self.prices, now)

    def uncount(self) -> None:
        self.limiter.give_back(self.prices)


class _Access:
    """What one address may do on one service."""

    def __init__(self, grants: tuple[_Grant, ...], address: Address) -> None:
        self.grants = tuple(grant for grant in grants if grant.is_for(address))
        self._ways: dict[Use, tuple[_Way, ...]] = {}

    def ways(self, use: Use) -> tuple[_Way, ...]:
        found = self._ways.get(use)
        if found is None:
            found = tuple(way for grant in self.grants if (way := grant.way(use)) is not None)
            if found:
                _remember(self._ways, use, found)
        return found


T = TypeVar("T")


def _remember(memory: dict[Use, T], use: Use, found: T) -> None:
    if len(use.name) <= _LONGEST_NAME:
        if len(memory) >= _MOST_NAMES:
            memory.clear()
        memory[use] = found


class CompiledPolicy:
    """The gateway's policy in force. `limiter` outlives it, so that a new policy refills nobody's budget."""

    def __init__(self, policy: GatewayPolicy, limiter: Limiter, clock: Callable[[], float] = time.time) -> None:
        self.revision = policy.revision
        self.services: Mapping[str, Service] = policy.services
        self._limiter = limiter
        self._clock = clock
        self._grants = _compile(policy)
        self._ends = sorted({grant.expires for grant in policy.grants.values() if grant.expires is not None})
        self._accesses: dict[tuple[Address, str], _Access] = {}

    def decide(self, caller: Caller, call: Call, now: float) -> Decision:
        """Decide once a call, counting it against its limits. `now` is in seconds since the epoch."""
        service = self.services.get(call.service)
        key = (caller.node_id, call.service)
        if service is not None and (wait := self._limiter.cooling(key, now)):
            return self._too_many(caller, call, wait)
        found = self._judge(caller, call, now)
        if isinstance(found, Refusal):
            return _denied(caller, call, found)
        if _is_removed(call):
            return Deny(METHOD_NOT_FOUND, f"{call.method} is not part of this revision: use subscriptions/listen")
        assert service is not None  # what is allowed is allowed on a service
        paid = self._spend(caller, call, service, found, now)
        if isinstance(paid, _Way):
            return paid.grant.allow
        pause = service.limits.cool_down
        self._limiter.cool(key, pause, now)
        breach = f"more than {paid.limit}: nothing is passed for {pause:g} s"
        return self._too_many(caller, call, max(paid.wait, pause), breach)

    def allowance(self, caller: Caller, call: Call, now: float) -> _Allowance | None:
        """What decides calls like this one; None when each must be decided on its own."""
        service = self.services.get(call.service)
        wanted = uses(call.method, call.params)
        if service is None or call.request_id is None or isinstance(wanted, Refusal) or len(wanted) != 1:
            return None
        ways = self._access(caller.address, call.service).ways(wanted[0])
        way = next((way for way in ways if now < way.grant.expires), None)
        if way is None:
            return None
        key, shared = (caller.node_id, call.service), service.limits.calls
        prices = [(_purse(caller, way, index), rate) for index, rate in way.rates]
        return _Allowance(way, self._limiter, key, ((key, shared), *prices) if shared is not None else tuple(prices))

    def holds(self, caller: Caller, call: Call, now: float) -> bool:
        """Is a call that was allowed still allowed? Counts nothing."""
        return not isinstance(self._judge(caller, call, now), Refusal)

    def next_end(self, now: float) -> float | None:
        """When the next of the grants ends, in seconds since the epoch; None when none will."""
        following = bisect_right(self._ends, now)
        return self._ends[following] if following < len(self._ends) else None

    def filter(self, caller: Caller, service: str, method: str, result: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """The result of a list method as this caller may see it; None: as it is. Raises UpstreamError for no list."""
        access, now = self._access(caller.address, service), self._clock()
        return filter_list(method, result, lambda use: any(now < way.grant.expires for way in access.ways(use)))

    def _access(self, address: Address, service: str) -> _Access:
        access = self._accesses.get((address, service))
        if access is None:
            access = _Access(self._grants.get(service, ()), address)
            if access.grants:
                if len(self._accesses) >= _MOST_ACCESSES:
                    self._accesses.clear()
                self._accesses[address, service] = access
        return access

    def _judge(self, caller: Caller, call: Call, now: float) -> Sequence[_Way] | Refusal:
        """The ways that allow the call. For a single use any of them is enough; for several, the first of each."""
        access = self._access(caller.address, call.service)
        for opening in access.grants:
            if now < opening.expires:
                break
        else:
            # Plain HTTP names nothing: any grant to the service opens it, as it does `ping`.
            return no_grant(call.service, "ping" if call.era == "http" else call.method, call.params)
        if call.era == "http":
            return (_Way(opening, None, ()),)
        return _judge_uses(access, opening, call, now)

    def _spend(self, caller: Caller, call: Call, service: Service, ways: Sequence[_Way], now: float) -> _Way | _Broke:
        """Take what the call costs. The way that had it, or what none had."""
        shared = service.limits.calls
        if shared is not None and call.request_id is not None:
            wait = self._limiter.take((caller.node_id, call.service), shared, now)
            if wait:
                return _Broke(wait, f"{_spelled(shared)} on the service")
        broke: list[_Broke] = []
        for way in ways:
            if not way.rates:
                return way
            wait, rate = max(
                ((self._limiter.take(_purse(caller, way, index), rate, now), rate) for index, rate in way.rates),
                key=itemgetter(0),
            )
            if wait == 0.0:
                return way
            broke.append(_Broke(wait, f"{_spelled(rate)} by grant {way.grant.id}"))
        return min(broke)

    def _too_many(self, caller: Caller, call: Call, wait: float, breach: str | None = None) -> Deny:
        return Deny(
            Code.TOO_MANY_CALLS,
            f"{caller.name} called service {call.service!r} too often: wait {wait:.1f} s, then call less often",
            breach=breach,
        )


def _purse(caller: Caller, way: _Way, index: int) -> Hashable:
    """What one rate of a grant is counted under."""
    return (caller.node_id, way.grant.id, index)


def _spelled(rate: Rate) -> str:
    return f"{rate.calls} calls in {rate.seconds:g} s"


def _is_removed(call: Call) -> bool:
    return call.era == "modern" and call.method in _REMOVED


def _judge_uses(access: _Access, opening: _Grant, call: Call, now: float) -> Sequence[_Way] | Refusal:
    wanted = () if _is_removed(call) else uses(call.method, call.params)
    if isinstance(wanted, Refusal):
        return wanted
    if not wanted:
        return (_Way(opening, None, ()),)
    if len(wanted) == 1:
        return _judge_use(access, wanted[0], call.params, now)
    ways: list[_Way] = []
    for use in wanted:
        found = _judge_use(access, use, call.params, now)
        if isinstance(found, Refusal):
            return found
        ways.append(found[0])
    return ways


def _judge_use(access: _Access, use: Use, params: Mapping[str, Any], now: float) -> Sequence[_Way] | Refusal:
    ways = access.ways(use)
    for way in ways:
        if now >= way.grant.expires:
            ways = tuple(way for way in ways if now < way.grant.expires)
            break
    if not ways:
        return Refusal(use.kind, f"no grant lets you use {use.kind} {use.name[:_SHOWN]!r}", use)
    if use.kind != "tool":
        return ways
    arguments = params.get("arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        return Refusal("malformed", "params.arguments must be an object")
    first: str | None = None
    passing: list[_Way] = []
    for way in ways:
        wrong = None if way.check is None else way.check(arguments)
        if wrong is None:
            passing.append(way)
            if not way.rates:
                break  # nothing after it could matter
        elif first is None:
            first = wrong
    return passing or Refusal("argument", f"tool {use.name[:_SHOWN]!r}: {first}", use)


def _denied(caller: Caller, call: Call, refusal: Refusal) -> Deny:
    code = {"malformed": INVALID_PARAMS, "argument": Code.ARGUMENT_DENIED}.get(refusal.kind, Code.DENIED)
    need = needed(call.service, refusal) or None
    remedy = f"; an admin could add {need} for {caller.name}" if need else ""
    return Deny(code, f"{refusal.message}{remedy}", need)


def _compile(policy: GatewayPolicy) -> dict[str, tuple[_Grant, ...]]:
    """By service. A grant to many services is compiled once, or twice when some of them share this host's files."""
    compiled: dict[tuple[str, bool], _Grant] = {}
    by_service: dict[str, list[_Grant]] = {name: [] for name in policy.services}
    for _, grant in sorted(policy.grants.items()):
        for service in (policy.services[name] for name in dict.fromkeys(grant.services) if name in policy.services):
            key = (grant.id, service.local_files)
            if key not in compiled:
                compiled[key] = _compile_grant(policy, grant, service.local_files)
            by_service[service.name].append(compiled[key])
    return {name: tuple(grants) for name, grants in by_service.items()}


def _compile_grant(policy: GatewayPolicy, grant: McpGrant, local_files: bool) -> _Grant:
    named = compile_globs(grant.tools)
    tools = _but(named, compile_globs(map(fold_name, grant.deny_tools), fold=True)) if grant.deny_tools else named
    return _Grant(
        id=grant.id,
        expires=math.inf if grant.expires is None else grant.expires,
        members=tuple(policy.sets[name].addresses for name in grant.peers if name in policy.sets),
        names={
            "tool": tools,
            "prompt": compile_globs(grant.prompts),
            "resource": uri_test(grant.resources),
            "method": compile_globs(grant.methods),
        },
        checks=compile_tool_rules(grant.args, follow_links if local_files else None),
        rates=tuple((compile_globs(limit.tools), limit.rate) for limit in grant.limits),
        allow=Allow(grant.id),
    )


def _but(named: TextTest, denied: TextTest) -> TextTest:
    return lambda name: named(name) and not denied(fold_name(name))
