"""How long the gateway takes to decide one call under a policy with 300 grants and 50 services, arguments included.

Compared with parsing the 1 KB body of the same call, which every gateway must do. `first` decisions are those of a
caller and tool that were not asked about before; a call mostly follows others like it.
"""

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson

from agentd.gateway.limits import Limiter
from agentd.gateway.policy import CompiledPolicy
from agentd.gateway.types import Allow, Call, Caller
from controller.wire.mcp import (
    ArgumentRule,
    GatewayPolicy,
    HostIn,
    HttpUpstream,
    Matches,
    McpGrant,
    Range,
    Rate,
    Service,
    ToolRate,
    ToolRules,
    Under,
)
from controller.wire.netmap import AddressSet
from tests.bench.figures import Bench

GRANTS, SERVICES, TAGS, CALLERS, CALLS = 300, 50, 30, 400, 30_000
ROUNDS = 6
TOOLS = [
    f"{verb}_{thing}" for verb in ("search", "get", "list", "create", "delete") for thing in ("file", "issue", "x")
]


def make_policy(chance: random.Random) -> GatewayPolicy:
    args = (
        ToolRules(
            tools=("get_*",),
            arguments=(
                ArgumentRule(argument="path", tests=(Under(paths=("/srv/project-x", "/srv/shared")),)),
                ArgumentRule(argument="ref", tests=(Matches(pattern="[a-z0-9/_-]{1,64}"),)),
                ArgumentRule(argument="depth", tests=(Range(minimum=0, maximum=10),), optional=True),
                ArgumentRule(argument="url", tests=(HostIn(hosts=("*.example.com", "192.0.2.1")),), optional=True),
            ),
            arguments_schema={"type": "object", "properties": {"path": {"maxLength": 500}}, "required": ["path"]},
        ),
    )
    addresses = [address(number) for number in range(CALLERS)]
    grants = [
        McpGrant(
            id=f"g{number}",
            peers=tuple(f"tag:t{chance.randrange(TAGS)}" for _ in range(2)),
            services=tuple({f"s{chance.randrange(SERVICES)}" for _ in range(3)}),
            tools=("search_*", "get_*", "list_issue"),
            deny_tools=("*_secret",),
            args=args,
            limits=(ToolRate(tools=("search_*",), rate=Rate(calls=1_000_000, seconds=1)),) if number % 3 == 0 else (),
        )
        for number in range(GRANTS)
    ]
    return GatewayPolicy(
        revision=1,
        services={
            f"s{n}": Service(name=f"s{n}", upstream=HttpUpstream(url="http://127.0.0.1:9/")) for n in range(SERVICES)
        },
        grants={grant.id: grant for grant in grants},
        sets={
            f"tag:t{n}": AddressSet(name=f"tag:t{n}", addresses=frozenset(chance.sample(addresses, CALLERS // 5)))
            for n in range(TAGS)
        },
    )


def address(number: int) -> str:
    return f"10.20.{number // 256}.{number % 256}"


def make_call(chance: random.Random) -> Call:
    tool = chance.choice(TOOLS)
    arguments = {
        "path": chance.choice(["/srv/project-x/a/b/c.txt", "/srv/../etc/passwd", "/srv/project-x/%2e%2e/x"]),
        "ref": "refs/heads/main",
        "depth": 3,
        "url": "https://api.example.com/v1/things?page=2",
        "text": "x" * 800,
    }
    params = {"name": tool, "arguments": arguments}
    body = orjson.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    return Call(
        service=f"s{chance.randrange(SERVICES)}",
        era="modern",
        method="tools/call",
        name=tool,
        arguments=arguments,
        request_id=1,
        body=body,
        params=params,
    )


def measure(bench: Bench) -> None:
    chance = random.Random(7)
    message = make_policy(chance)
    callers = [Caller(f"n{n}", f"agent-{n}", "", (), address(n)) for n in range(CALLERS)]
    calls = [make_call(chance) for _ in range(500)]
    pairs = [(chance.choice(callers), chance.choice(calls)) for _ in range(CALLS)]
    rounds = [decide_all(message, pairs) for _ in range(ROUNDS)]
    # The quietest round: on a shared machine the others measure who else runs on it.
    best = min(rounds, key=lambda found: p99(found.everything))
    parsing = [timed(orjson.loads, call.body) for _, call in pairs[:5000]]
    rows = [("first", best.first), ("later", best.later), ("all", best.everything), ("parsing the body", parsing)]
    bench.table(
        f"microseconds a call, best of {ROUNDS} rounds",
        ("", "number", "p50", "p99", "worst"),
        [(name, len(taken), statistics.median(taken), p99(taken), max(taken)) for name, taken in rows],
    )
    bench.figure("compile_ms", min(found.compile_ms for found in rounds))
    bench.figure("allowed_share", best.allowed / CALLS)
    bench.figure("decision_p50_us", statistics.median(best.everything))
    bench.figure("first_decision_p99_us", p99(best.first))
    bench.figure("worst_round_p99_us", max(p99(found.everything) for found in rounds))
    bench.figure("parse_p50_us", statistics.median(parsing))
    bench.bar("decision_p99_us", p99(best.everything), "<=", 50.0)


@dataclass(slots=True)
class Round:
    """Times in microseconds of decisions by a policy that begins without memory."""

    compile_ms: float
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    allowed: int = 0

    @property
    def everything(self) -> list[float]:
        return self.first + self.later


def decide_all(message: GatewayPolicy, pairs: list[tuple[Caller, Call]]) -> Round:
    started = time.perf_counter()
    tables = CompiledPolicy(message, Limiter())
    found = Round((time.perf_counter() - started) * 1e3)
    gc.collect()
    gc.freeze()  # so that what the bench made is not looked through in the middle
    seen = set()
    for who, call in pairs:
        now = time.time()
        started_ns = time.perf_counter_ns()
        decision = tables.decide(who, call, now)
        taken = (time.perf_counter_ns() - started_ns) / 1e3
        asked = (who.address, call.service, call.name)
        (found.later if asked in seen else found.first).append(taken)
        seen.add(asked)
        found.allowed += isinstance(decision, Allow)
    gc.unfreeze()
    return found


def timed(work: Callable[[bytes], object], value: bytes) -> float:
    started = time.perf_counter_ns()
    work(value)
    return (time.perf_counter_ns() - started) / 1e3


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]
