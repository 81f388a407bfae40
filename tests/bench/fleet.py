"""What thousands of agents cost one controller: fan-out of changes, snapshots, memory, their return after a restart.

The agents are real WebSocket clients over TLS 1.3 with certificates of their own, in separate processes on the same
machine; the controller is one process of the released command, on SQLite and on PostgreSQL.
"""

import argparse
import asyncio
import os
import re
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import httpx
import psutil

from controller.server import running
from controller.settings import Listen, Settings
from tests.bench.agents.churn import HOUR, Churn, move
from tests.bench.agents.population import GROUP, Identity, populate
from tests.bench.agents.streams import Streams
from tests.bench.figures import Bench
from tests.control.databases import postgresql_cluster

AGENTS: Final = 5000
PROCESSES: Final = 4
LEAST: Final = 20
CHANGES: Final = 40
LARGE_CHANGES: Final = 10
SNAPSHOTS: Final = 7
REQUESTS: Final = 3  # at least, while agents return
SERVE: Final = (sys.executable, "-c", "from controller.start import main; main()", "serve")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--agents", type=agents, default=AGENTS, help=f"how many agents connect (default {AGENTS})")
    parser.add_argument("--database", choices=("both", "sqlite", "postgresql"), default="both")
    parser.add_argument(
        "--churn",
        type=int,
        default=HOUR,
        help=f"events while memory is watched (default {HOUR}: one a second for an hour)",
    )


def agents(text: str) -> int:
    """The value of --agents. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < LEAST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of at least {LEAST} agents: with fewer, nothing is compared"
        )
    return int(text)


def measure(bench: Bench, options: argparse.Namespace) -> None:
    if options.database in ("both", "sqlite"):
        fleet(bench, options, "sqlite", None)
    if options.database in ("both", "postgresql"):
        with postgresql_cluster() as cluster:
            server = str(cluster.home)
            asyncio.run(create_database(server))
            fleet(bench, options, "postgresql", f"postgresql://wardmesh@/fleet?host={server}")


async def create_database(server: str) -> None:
    connection = await asyncpg.connect(host=server, user="wardmesh", database="postgres")
    await connection.execute("CREATE DATABASE fleet")
    await connection.close()


@dataclass(frozen=True, slots=True)
class Served:
    """A controller process."""

    process: psutil.Popen
    port: int

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return int(self.process.memory_info().rss)


def fleet(bench: Bench, options: argparse.Namespace, database: str, url: str | None) -> None:
    name = f"{database}_"
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wm-fleet-")))
        state = directory / "state"
        bench.say(f"{database}: making {options.agents} nodes …")
        began = time.monotonic()
        fewer = options.agents // 10  # the smaller fleet that a change is compared with
        size = min(GROUP, fewer)
        token, mesh, identities = asyncio.run(found(state, url, options.agents, size, directory))
        bench.say(f"{database}: made in {time.monotonic() - began:.0f} s")
        port = free_port()
        with serving(state, url, port) as served:
            api = stack.enter_context(client(served, state, token))
            empty = served.memory
            groups = [stack.enter_context(part) for part in streams(identities, port, state, mesh)]
            everybody(groups, "connect", [one.name for one in identities[1 : fewer + 1]])
            small = change_of_some(bench, api, groups, (fewer, size), database)
            began = time.monotonic()
            everybody(groups, "connect", None)
            bench.figure(f"{name}connect_all_s", time.monotonic() - began)
            bench.bar(f"{name}memory_per_agent_kb", (served.memory - empty) / options.agents / 1024, "<=", 100)
            large = change_of_some(bench, api, groups, (options.agents, size), database)
            bench.bar(f"{name}change_of_{size}_p99_ms", percentile(large, 99) * 1000, "<=", 150)
            ratio = statistics.median(large) / statistics.median(small)
            bench.bar(f"{name}change_of_{size}_size_ratio", ratio, "<=", 1.5)
            change_of_all(bench, api, served, groups, name, options.agents)
            snapshots(bench, served, groups, name)
            everybody(groups, "expect_return")
        with serving(state, url, port) as served:
            restarted = time.monotonic()
            for group in groups:
                group.send("returned")
            requests(bench, served, state, token, groups, name)
            back = [arrival for group in groups for arrival in group.receive()]
            bench.figure(f"{name}return_cpu_ms_per_agent", served.cpu / options.agents * 1000)
            if options.churn:
                api = stack.enter_context(client(served, state, token))
                churn(bench, served, Churn(api, groups, guests(identities)), name, options.churn)
        bench.bar(f"{name}return_after_restart_s", max(at for at, _ in back) - restarted, "<=", 60)
        bench.bar(f"{name}snapshots_after_restart", sum(first == "snapshot" for _, first in back), "<=", 0)


async def found(
    state: Path, url: str | None, agents: int, size: int, directory: Path
) -> tuple[str, str, list[Identity]]:
    settings = Settings(state_dir=state, listen=Listen("127.0.0.1", 0), database_url=url)
    async with running(settings) as controller:
        assert controller.first_token is not None
        identities = await populate(controller, agents, size, directory)
        return controller.first_token, controller.context.mesh.id, identities


@contextmanager
def serving(state: Path, url: str | None, port: int) -> Iterator[Served]:
    environment = dict(os.environ) | ({"WARDMESH_DATABASE_URL": url} if url else {})
    arguments = ("--state-dir", str(state), "--listen", f"127.0.0.1:{port}", "--log-level", "warning")
    with (state.parent / "controller.log").open("ab") as log:
        process = psutil.Popen([*SERVE, *arguments], stdout=subprocess.PIPE, stderr=log, env=environment)
    try:
        line = process.stdout.readline().decode()
        if not re.match("ready https://", line):
            raise SystemExit(f"the controller did not start: {(state.parent / 'controller.log').read_text()[-2000:]}")
        yield Served(process, port)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except psutil.TimeoutExpired:
            process.kill()


@contextmanager
def client(served: Served, state: Path, token: str) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=str(state / "ca.pem"))
    headers = {"authorization": f"Bearer {token}"}
    with httpx.Client(
        base_url=f"https://127.0.0.1:{served.port}/api/v1", verify=trust, headers=headers, timeout=60
    ) as api:
        yield api


def streams(identities: list[Identity], port: int, state: Path, mesh: str) -> list[Streams]:
    parts = [identities[number::PROCESSES] for number in range(PROCESSES)]
    return [Streams(part, port, str(state / "ca.pem"), mesh) for part in parts]


def everybody(groups: list[Streams], *command: Any) -> list[Any]:
    for group in groups:
        group.send(*command)
    return [group.receive() for group in groups]


def change(api: httpx.Client, name: str, number: int) -> tuple[float, int]:
    """Move a static peer; when the request was sent, and the revision that it made."""
    began = time.monotonic()
    return began, move(api, name, number)


def change_of_some(
    bench: Bench, api: httpx.Client, groups: list[Streams], fleet_and_group: tuple[int, int], database: str
) -> list[float]:
    """Seconds from the request to the last of the hosts that a change concerns, while so many are connected."""
    taken: list[float] = []
    connected, size = fleet_and_group
    for number in range(CHANGES):
        group = number % min(connected // size, 10)
        began, revision = change(api, f"mover-{group}", number)
        names = [f"n{one}" for one in range(group * size, min((group + 1) * size, connected - 1))]
        arrivals = [at for part in everybody(groups, "arrivals", revision, names) for at in part]
        taken.append(max(arrivals) - began)
    middle = statistics.median(taken) * 1000
    bench.say(f"{database}, {connected} agents: a change of {size} hosts reaches the last in {middle:.1f} ms (median)")
    return taken


def change_of_all(
    bench: Bench, api: httpx.Client, served: Served, groups: list[Streams], name: str, agents: int
) -> None:
    taken, cpu = [], []
    for number in range(LARGE_CHANGES):
        before = served.cpu
        began, revision = change(api, "beacon", number)
        arrivals = [at for part in everybody(groups, "arrivals", revision, None) for at in part]
        taken.append(max(arrivals) - began)
        cpu.append(served.cpu - before)
    bench.bar(f"{name}change_of_all_s", max(taken), "<=", 1.5)
    bench.figure(f"{name}change_of_all_median_s", statistics.median(taken))
    bench.figure(f"{name}change_of_all_cpu_ms_per_host", statistics.median(cpu) / agents * 1000)


def snapshots(bench: Bench, served: Served, groups: list[Streams], name: str) -> None:
    """The watcher has everybody as a peer; it is in the first process."""
    cpu = []
    for _ in range(SNAPSHOTS):
        groups[0].ask("disconnect", ["watcher"])
        before = served.cpu
        groups[0].ask("connect", ["watcher"])
        cpu.append(served.cpu - before)
    bench.bar(f"{name}snapshot_cpu_ms", statistics.median(cpu) * 1000, "<=", 60)


def guests(identities: list[Identity]) -> list[tuple[int, str]]:
    """Agents that come and go, each with its process: in the middle, where no other measurement looks."""
    middle = len(identities) // 2
    return [
        (number % PROCESSES, identities[number].name) for number in range(middle, min(middle + 100, len(identities)))
    ]


def churn(bench: Bench, served: Served, events: Churn, name: str, count: int) -> None:
    """So many events as fast as they are made; the controller's memory must not follow them."""
    warm_up = count // 3  # pools, caches and logs fill
    began = time.monotonic()
    memory: list[int] = []
    for number in range(warm_up + count):
        if number in (warm_up, warm_up + count // 2):
            memory.append(served.memory)
        events.event(number)
    memory.append(served.memory)
    bench.figure(f"{name}churn_events_per_s", (warm_up + count) / (time.monotonic() - began))
    bench.figure(f"{name}churn_second_half_growth_kb", (memory[-1] - memory[-2]) / 1024)
    bench.bar(f"{name}churn_growth_percent", (memory[-1] / memory[0] - 1) * 100, "<=", 3)


def requests(bench: Bench, served: Served, state: Path, token: str, groups: list[Streams], name: str) -> None:
    """What a person waits for an answer while all agents come back, on a connection that stands and on a new one."""
    kept: list[float] = []
    new: list[float] = []
    with client(served, state, token) as api:
        while len(new) < REQUESTS or not all(group.has_answered for group in groups):  # a few agents are back at once
            kept.append(asked(api))
            with client(served, state, token) as another:
                new.append(asked(another))
            time.sleep(0.2)  # a person asks now and then: without a pause this would be load of its own
    bench.bar(f"{name}request_during_return_p99_ms", percentile(kept[1:], 99) * 1000, "<=", 1000)
    bench.figure(f"{name}new_connection_during_return_p99_ms", percentile(new, 99) * 1000)


def asked(api: httpx.Client) -> float:
    """Seconds until a request that reads the database is answered."""
    began = time.monotonic()
    api.get("/nodes/id-watcher").raise_for_status()
    return time.monotonic() - began


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
