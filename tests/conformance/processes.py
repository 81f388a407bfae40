"""Starts what the suite is run against: the fixture server, and a real gateway process in front of an upstream.

Each is a context manager that waits by polling, with a bound, and ends what it started by process id.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from controller.wire.mcp import GatewayPolicy, HttpUpstream, McpGrant, Service, Upstream
from controller.wire.netmap import AddressSet

__all__ = ["ROOT", "RunningGateway", "conformance_tools", "fixture_server", "gateway"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 15.0
KEY = "nPzpP0wYnqyYkmpDCYQ1qCZh7aiVwXZ4jq1K4wXJpzA="


def conformance_tools() -> Path:
    """Where Node and the npm packages are; installs them when they are not."""
    done = subprocess.run([HERE / "install"], stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.strip())


@contextlib.contextmanager
def fixture_server() -> Iterator[str]:
    """The fixture server over HTTP; yields its URL."""
    command = [sys.executable, "-m", "tests.conformance.fixture.server"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise RuntimeError(f"the fixture server did not start: exit code {process.wait(STOP_SECONDS)}")
            yield url
        finally:
            end(process)


@dataclass(frozen=True)
class RunningGateway:
    """Where it serves the MCP endpoint, and where its audit spool is."""

    url: str
    spool: Path


@contextlib.contextmanager
def gateway(
    directory: Path,
    upstream: Upstream,
    grant: McpGrant | None = None,
    *,
    address: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[RunningGateway]:
    """A gateway process on loopback that knows one caller, 127.0.0.1; by default it may use everything."""
    directory.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    path = (urlsplit(upstream.url).path or "/") if isinstance(upstream, HttpUpstream) else "/mcp"
    policy, callers, log = directory / "policy.json", directory / "callers.json", directory / "gateway.log"
    policy.write_text(everything(upstream, address, port, path, grant).model_dump_json())
    caller = {"node_id": "n1", "name": "suite", "public_key": KEY, "tags": ["tag:suite"], "address": "127.0.0.1"}
    callers.write_text(json.dumps([caller]))
    command = [sys.executable, "-m", "agentd.gateway", "--policy", str(policy), "--callers", str(callers)]
    command += ["--state-dir", str(directory / "state"), "--grace", "1"]
    with log.open("wb") as output, subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output) as process:
        try:
            wait_until_open(address, port, process, log)
            yield RunningGateway(f"http://{address}:{port}{path}", directory / "state" / "spool" / "0")
        finally:
            end(process)


def everything(upstream: Upstream, address: str, port: int, path: str, grant: McpGrant | None) -> GatewayPolicy:
    all_of_it = McpGrant(
        id="everything",
        peers=("tag:suite",),
        services=("fixture",),
        tools=("*",),
        prompts=("*",),
        resources=("*",),
        methods=("*",),
    )
    service = Service(
        name="fixture",
        addresses=(address,),
        port=port,
        path=path,
        names=("localhost",),
        origins=(f"http://{address}:{port}", f"http://localhost:{port}"),
        upstream=upstream,
    )
    grant = grant or all_of_it
    return GatewayPolicy(
        revision=1,
        services={service.name: service},
        grants={grant.id: grant},
        sets={"tag:suite": AddressSet(name="tag:suite", addresses=frozenset({"127.0.0.1"}))},
    )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until_open(address: str, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=1):
            return
        time.sleep(0.02)
    raise RuntimeError(f"the gateway did not start:\n{log.read_text()}")


def end(process: "subprocess.Popen[bytes] | subprocess.Popen[str]") -> None:
    if process.poll() is None:
        os.kill(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
