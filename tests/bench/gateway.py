"""What the gateway adds to a call and to a stream, with policy and audit on, beside doing without and beside others.

One run on loopback, 1 KB tools/call, one process each: direct; the least pass-through that the usual libraries make;
the gateway; fastmcp's proxy in front of the same upstream; mcp-proxy in front of the same server on standard input and
output, which is all that it serves. The gateway is the compiled one, as installed, unless $WARDMESH_BENCH_BUILD is
`interpreted`. $WARDMESH_BENCH_HOLD: seconds that silent streams are held (360 if unset).
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType

import psutil

from tests import compiled
from tests.bench.figures import Bench, Runs, alternate
from tests.bench.hop.load import Result, Target, events, hold, load

ROOT = Path(__file__).resolve().parents[2]
HOP = Path(__file__).parent / "hop"
HOLD = float(os.environ.get("WARDMESH_BENCH_HOLD", "360"))
BUILD = os.environ.get("WARDMESH_BENCH_BUILD", "compiled")
STREAMS = 1000
ROUNDS = 5
SLOW_ROUNDS = 3
KEY = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="


def prepare() -> None:
    """Install the other proxies, which needs the network that the bench itself does without. Compile the gateway."""
    subprocess.run([HOP / "install"], check=True, stdout=subprocess.DEVNULL)
    environment()


def environment() -> dict[str, str]:
    """Of the gateway's processes."""
    return {} if BUILD == "interpreted" else compiled.environment()


def measure(bench: Bench) -> None:
    with ExitStack() as undo:
        bench.figure("gateway_build", which_build())
        directory = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="wm-hop-")))
        upstream, upstream_process = undo.enter_context(serving("tests.bench.hop.upstream", "{port}"))
        passthrough, passthrough_process = undo.enter_context(
            serving("tests.bench.hop.passthrough", str(upstream), "{port}")
        )
        ours, our_process = undo.enter_context(gateway(directory / "one", upstream))
        single_calls(bench, Target(upstream), Target(passthrough), Target(ours))
        throughput(bench, Target(upstream), Target(passthrough), Target(ours))
        cpu(bench, {"passthrough": (Target(passthrough), passthrough_process), "gateway": (Target(ours), our_process)})
        others(bench, upstream, ours)
        streams(bench, Target(upstream), Target(ours))
        silent_streams(bench, Target(ours), our_process, upstream_process)
        with gateway(directory / "two", upstream, workers=2) as (two, _):
            rate = load(Target(two), clients=32, calls=8000, addresses=16).rate
            bench.figure(f"two_workers_rps_on_{os.cpu_count()}_cores_shared_with_load_and_upstream", rate)


def single_calls(bench: Bench, direct: Target, passthrough: Target, ours: Target) -> None:
    bench.say("one call after the other …")
    found = alternate(
        {
            "direct": lambda: load(direct, clients=1, calls=2000).p50,
            "pass-through": lambda: load(passthrough, clients=1, calls=1000).p50,
            "the gateway": lambda: load(ours, clients=1, calls=2000).p50,
        },
        ROUNDS,
    )
    table(bench, "milliseconds a call, p50, one client", found)
    added = found["the gateway"].median - found["direct"].median
    bench.figure("direct_p50_ms", found["direct"].median)
    bench.figure("passthrough_added_p50_ms", found["pass-through"].median - found["direct"].median)
    bench.bar("added_p50_ms", added, "<=", 0.25)


def throughput(bench: Bench, direct: Target, passthrough: Target, ours: Target) -> None:
    bench.say("32 clients at once …")
    worst: list[float] = []

    def of_ours() -> float:
        found = load(ours, clients=32, calls=16_000)
        worst.append(found.p99)
        return found.rate

    found = alternate(
        {
            "direct": lambda: load(direct, clients=32, calls=32_000).rate,
            "pass-through": lambda: load(passthrough, clients=32, calls=4000).rate,
            "the gateway": of_ours,
        },
        ROUNDS,
    )
    table(bench, "calls a second, 32 clients", found)
    bench.figure("direct_rps", found["direct"].median)
    bench.figure("passthrough_rps", found["pass-through"].median)
    bench.figure("gateway_rps", found["the gateway"].median)
    bench.figure("gateway_p99_ms_32_clients", min(worst))
    bench.bar("rps_by_passthrough", found["the gateway"].over(found["pass-through"]), ">=", 3.0)


def cpu(bench: Bench, targets: dict[str, tuple[Target, psutil.Process]]) -> None:
    """What a call costs a process, whatever else the machine does meanwhile."""
    bench.say("CPU of a call …")

    def spent(target: Target, process: psutil.Process, calls: int = 8000) -> float:
        before = sum(process.cpu_times()[:2])
        load(target, clients=32, calls=calls)
        return (sum(process.cpu_times()[:2]) - before) / calls * 1e6

    found = alternate({name: partial(spent, *of) for name, of in targets.items()}, ROUNDS)
    table(bench, "microseconds of CPU a call, user and system, 32 clients", found)
    for name, runs in found.items():
        bench.figure(f"{name}_cpu_us_a_call", runs.lowest)


def others(bench: Bench, upstream: int, ours: int) -> None:
    """In the legacy era, which all of them speak."""
    bench.say("fastmcp and mcp-proxy …")
    installed = Path(subprocess.run([HOP / "install"], check=True, capture_output=True, text=True).stdout.strip())
    url = f"http://127.0.0.1:{upstream}/mcp"
    fastmcp = (str(installed / "fastmcp/bin/python"), str(HOP / "fastmcp_proxy.py"), url, "{port}")
    mcp_proxy = (
        *(str(installed / "mcp-proxy/bin/mcp-proxy"), "--log-level", "ERROR", "--port", "{port}"),
        *("--", sys.executable, str(HOP / "stdio_server.py")),
    )

    def rate(target: Target, calls: int) -> float:
        return load(target, clients=32, calls=calls).rate

    with running(fastmcp) as (fastmcp_port, _), running(mcp_proxy) as (mcp_proxy_port, _):
        targets = {
            "the gateway": (Target(ours, legacy=True), 32_000),
            "fastmcp": (Target(fastmcp_port, legacy=True), 320),
            "mcp-proxy": (Target(mcp_proxy_port, legacy=True), 3200),
        }
        rates: dict[str, Runs] = alternate(
            {name: partial(rate, target, calls) for name, (target, calls) in targets.items()},
            SLOW_ROUNDS,
        )
        single: dict[str, Result] = {name: load(target, clients=1, calls=100) for name, (target, _) in targets.items()}
    table(bench, "calls a second, 32 clients, legacy sessions", rates)
    for name in ("fastmcp", "mcp-proxy"):
        plain = name.replace("-", "_")
        bench.figure(f"{plain}_rps", rates[name].median)
        bench.figure(f"{plain}_p50_ms", single[name].p50)
    bench.figure("gateway_legacy_rps", rates["the gateway"].median)
    bench.bar("rps_by_mcp_proxy", rates["the gateway"].over(rates["mcp-proxy"]), ">=", 20.0)
    bench.bar("rps_by_fastmcp", rates["the gateway"].over(rates["fastmcp"]), ">=", 20.0)


def streams(bench: Bench, direct: Target, ours: Target) -> None:
    bench.say("streams of events …")
    found = alternate(
        {
            "direct": lambda: events(direct, "stream", 3)[0],
            "the gateway": lambda: events(ours, "stream", 3)[0],
        },
        ROUNDS,
    )
    first = alternate(
        {
            "direct": lambda: events(direct, "brief", 50)[1],
            "the gateway": lambda: events(ours, "brief", 50)[1],
        },
        ROUNDS,
    )
    table(bench, "milliseconds from an event's sending to its arrival, p50", found)
    table(bench, "milliseconds to the first byte of a stream, p50", first)
    bench.bar("event_added_p50_ms", found["the gateway"].median - found["direct"].median, "<=", 0.5)
    bench.bar("first_byte_added_p50_ms", first["the gateway"].median - first["direct"].median, "<=", 0.5)


def silent_streams(bench: Bench, ours: Target, gateway_process: psutil.Process, upstream: psutil.Process) -> None:
    bench.say(f"{STREAMS} silent streams for {HOLD:.0f} s …")
    memory: dict[str, int] = {}

    def look(when: str) -> None:
        memory[when] = gateway_process.memory_info().rss
        memory[f"cpu {when}"] = int(sum(gateway_process.cpu_times()[:2]) * 1000)

    alive = hold(ours, STREAMS, HOLD, look, lambda: upstream.send_signal(signal.SIGUSR1))
    bench.figure("silent_seconds_held", HOLD)
    bench.figure("silent_streams_cpu_percent", (memory["cpu held"] - memory["cpu open"]) / HOLD / 10)
    bench.bar("silent_streams_answered", alive, ">=", STREAMS)
    bench.bar("silent_stream_kb", (memory["held"] - memory["before"]) / STREAMS / 1024, "<=", 60.0)


def table(bench: Bench, title: str, found: dict[str, Runs]) -> None:
    rows: list[tuple[object, ...]] = [(name, runs.lowest, runs.median, runs.highest) for name, runs in found.items()]
    bench.table(title, ("", "lowest", "median", "highest"), rows)


# --- processes


@contextmanager
def gateway(
    directory: Path, upstream: int, workers: int = 1, tls_port: int | None = None
) -> Iterator[tuple[int, psutil.Process]]:
    """The gateway under a policy of 300 grants, one of them for the bench's callers, with a rule on the argument."""
    directory.mkdir(exist_ok=True)
    addresses = [f"127.0.0.{number}" for number in range(1, 33)]
    callers = [
        {"node_id": f"n{number}", "name": f"agent-{number}", "public_key": KEY, "tags": ["tag:agents"], "address": one}
        for number, one in enumerate(addresses)
    ]
    rule = {"argument": "text", "tests": [{"test": "pattern", "pattern": "[a-z]*"}]}
    grants = {
        f"g{number}": {
            "id": f"g{number}",
            "peers": ["tag:agents"] if number == 150 else [f"tag:team-{number}"],
            "services": ["bench"],
            "tools": ["echo", "stream", "brief", "silent"],
            "args": [{"tools": ["echo"], "arguments": [rule]}],
        }
        for number in range(300)
    }
    sets = {"tag:agents": addresses, **{f"tag:team-{number}": [f"192.0.2.{number % 250}"] for number in range(300)}}
    (directory / "callers.json").write_text(json.dumps(callers))

    def written(port: int) -> None:
        service = {
            "name": "bench",
            "addresses": ["127.0.0.1"],
            "port": port,
            "tls_port": tls_port,
            "upstream": {"type": "http", "url": f"http://127.0.0.1:{upstream}/mcp"},
            "limits": {"streams": 5000},
        }
        policy = {
            "revision": 1,
            "services": {"bench": service},
            "grants": grants,
            "sets": {name: {"name": name, "addresses": members} for name, members in sets.items()},
        }
        (directory / "policy.json").write_text(json.dumps(policy))

    port = free_port()
    written(port)
    command = (
        *(sys.executable, "-m", "agentd.gateway", "--policy", str(directory / "policy.json")),
        *("--state-dir", str(directory / "state"), "--callers", str(directory / "callers.json")),
        *("--workers", str(workers), "--grace", "0", "--log-level", "warning"),
    )
    with running(command, port, environment()) as found:
        yield found


def which_build() -> str:
    """What the gateway says that it is."""
    told = subprocess.run(
        [sys.executable, "-m", "agentd.gateway", "--version"],
        env=os.environ | environment(),
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return told.stdout.strip()


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[tuple[int, psutil.Process]]:
    with running((sys.executable, "-m", module, *arguments)) as found:
        yield found


@contextmanager
def running(
    command: Sequence[str], port: int | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[tuple[int, psutil.Process]]:
    """A server on a free port, which takes the place of {port} in its command, once it takes connections."""
    port = port or free_port()
    process = psutil.Popen(
        [part.replace("{port}", str(port)) for part in command],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve: exit code {process.poll()}")
            time.sleep(0.05)
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait()


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
