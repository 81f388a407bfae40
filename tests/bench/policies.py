"""What a large policy costs the controller: to check and compile it, and to explain one of its flows. Part of `acl`."""

import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from controller.mesh.state import MeshState
from controller.policy import check
from controller.records import Change, Fleet, NodeRecord, PolicyRecord
from controller.server import running
from controller.settings import Listen, Settings
from tests.bench.figures import Bench
from tests.control.support import Client
from tests.kernel.maps import MESH, Member

T = TypeVar("T")
QUESTIONS: Final = 50
NODES: Final = 1000
GRANTS: Final = 300
ROUNDS: Final = 5


def policy_at_scale(bench: Bench) -> None:
    """What a policy write costs the controller, with the fleet in memory: check, compile, say whom it concerns."""
    fleet, text = scale()
    write = Change(revision=2, policy=PolicyRecord(2, text))
    checks, compiles = [], []
    for _ in range(ROUNDS):
        check_s, report = timed(lambda: check(text, fleet))
        if not report.ok or report.grants != GRANTS:
            raise AssertionError(report)
        state = MeshState(fleet, time.time())
        compile_s, affected = timed(partial(state.apply, write, time.time()))
        checks.append(check_s)
        compiles.append(compile_s)
    maps_s, maps = timed(lambda: [state.netmap(node_id) for node_id in fleet.nodes])
    rules = sum(len(one.rules) for one in maps if one is not None)
    bench.table(
        f"a policy of {GRANTS} grants for {NODES} nodes, best of {ROUNDS}",
        ("", "s"),
        [
            ("check, with its tests", min(checks)),
            (f"compile, and find the {len(affected)} hosts that it concerns", min(compiles)),
            (f"all {NODES} maps ({rules} rules)", maps_s),
        ],
    )
    bench.figure("all_maps_s", maps_s)
    bench.bar("policy_check_and_compile_s", min(checks) + min(compiles), "<=", 1)


def scale() -> tuple[Fleet, str]:
    """A fleet and its policy; the same every time."""
    chance = random.Random(1)
    tags = [f"tag:t{number}" for number in range(60)]
    nodes = {
        f"n{number}": NodeRecord(
            id=f"n{number}",
            name=f"node-{number}",
            kind="agent",
            state="active",
            tags=frozenset(chance.sample(tags, 2)),
            addresses=(f"100.64.{number // 250}.{number % 250 + 1}", f"fd77:7761:7264::{number + 1:x}"),
            public_key=Member(number).public_key,
        )
        for number in range(NODES)
    }
    grants = [
        {
            "from": chance.sample(tags, 2),
            "to": [chance.choice(tags), f"node:node-{chance.randrange(NODES)}"],
            "ip": [f"tcp:{1000 + number}", f"udp:{2000 + number}-{2010 + number}", "icmp"],
        }
        for number in range(GRANTS)
    ]
    tests = [{"from": grant["from"][0], "to": grant["to"][0], "accept": grant["ip"][:1]} for grant in grants[::10]]
    text = json.dumps({"grants": grants, "tests": tests})
    return Fleet(revision=1, mesh=MESH, nodes=nodes, policy=PolicyRecord(0, "")), text


# --- an explanation over REST -----------------------------------------------------------------------------------------


def explanation(bench: Bench) -> None:
    """`GET /policy/explain` of a controller that holds the policy at scale; client and server share one process."""
    times = asyncio.run(explain_times())
    bench.table(
        f"GET /policy/explain with {GRANTS} grants and {NODES} nodes, {QUESTIONS} times, ms",
        ("", "best", "median", "worst"),
        [("over TLS on loopback", min(times), statistics.median(times), max(times))],
    )
    bench.bar("explain_ms", statistics.median(times), "<=", 100)


async def explain_times() -> list[float]:
    fleet, text = scale()
    fleet = replace(fleet, policy=PolicyRecord(1, text))
    chance, times, allowed = random.Random(2), [], 0
    with tempfile.TemporaryDirectory() as directory:
        async with running(Settings(state_dir=Path(directory) / "state", listen=Listen("127.0.0.1", 0))) as controller:
            controller.context.hub.load(fleet)  # enrolling so many over REST would take minutes, and explain no better
            async with Client(controller, token=controller.first_token) as client:
                for _ in range(QUESTIONS):
                    one, other = chance.sample(range(NODES), 2)
                    query = {"from": f"node-{one}", "to": f"node-{other}", "port": "icmp"}
                    started = time.perf_counter()
                    answer = await client.get("/policy/explain", params=query)
                    times.append((time.perf_counter() - started) * 1000)
                    allowed += answer.raise_for_status().json()["allowed"]
    if not 0 < allowed < QUESTIONS:
        raise AssertionError(f"{allowed} of {QUESTIONS} flows are allowed: that is no test of the answer")
    return times


def timed(action: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = action()
    return time.perf_counter() - started, result
