"""How long a change takes from the REST call until every host that it concerns has it in its kernel.

A real controller and real agentd daemons, each in a network namespace. A daemon says that a revision is in force when
its kernel has it; after each change, the kernel of one of the hosts is asked whether that is so.
"""

import asyncio
import base64
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from agentd.kernel.links import Links
from agentd.kernel.wireguard import KernelDevice
from controller.client.rest import RestClient
from controller.wire.rest import Node, NodePatch, PolicyWrite, StaticPeerCreate
from tests.bench.figures import Bench
from tests.lab import Host, Lab
from tests.lab.mesh import Agent, Controller

NEEDS_KERNEL = True
HOSTS: Final = 5
CHANGES: Final = 200
PATIENCE: Final = 60.0  # seconds for one change
POLICY: Final = 'grants: [{{from: "*", to: "*", ip: ["tcp:{port}"]}}, {{from: "tag:phones", to: "*", ip: ["tcp:22"]}}]'
IN_FORCE: Final = r"in force revision=(\d+)"


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made: when it was asked for, its revision, and what shows it in the kernel of a host."""

    began: float
    revision: int
    shows: Callable[[Host], bool]


def measure(bench: Bench) -> None:
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(POLICY.format(port=1))
        bench.say(f"{HOSTS} hosts join …")
        agents = [Agent.join(lab.host(f"host{n}", switch), controller.join_string()) for n in range(HOSTS)]
        key = base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()
        peer = controller.ask(lambda client: client.create_peer(StaticPeerCreate(name="phone", public_key=key)))
        for agent in agents:
            wait(agent, peer.revision, 0)
        bench.say(f"{CHANGES} changes …")
        taken = controller.ask(lambda client: propagated(client, peer, agents))
    rows = [(kind, percentile(times, 50), percentile(times, 99), max(times)) for kind, times in taken.items()]
    bench.table(f"From the REST call to the kernels of {HOSTS} hosts", ("change", "p50 ms", "p99 ms", "max ms"), rows)
    every = [one for times in taken.values() for one in times]
    bench.figure("changes", len(every))
    bench.figure("p50_ms", percentile(every, 50))
    bench.bar("p99_ms", percentile(every, 99), "<=", 1000)


def propagated(client: RestClient, peer: Node, agents: Sequence[Agent]) -> dict[str, list[float]]:
    """Milliseconds of each change, by its kind."""
    kinds = {"a peer moves": move, "a peer joins or leaves a group": regroup, "the policy is replaced": permit}
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(1, CHANGES + 1):
        kind = list(kinds)[number % len(kinds)]
        marks = {agent: len(agent.process) for agent in agents}
        made = kinds[kind](client, peer, number)
        for agent in agents:
            wait(agent, made.revision, marks[agent])
        taken[kind].append((time.monotonic() - made.began) * 1000)
        host = agents[number % len(agents)].host
        if not made.shows(host):
            raise SystemExit(f"{host.name} said that revision {made.revision} is in force, and its kernel has it not")
    return taken


def move(client: RestClient, peer: Node, number: int) -> Made:
    endpoint = f"198.51.100.{number}:51820"
    began, revision = patched(client, peer, NodePatch(endpoints=(endpoint,)))
    return Made(began, revision, lambda host: endpoint_of(host, peer) == endpoint)


def regroup(client: RestClient, peer: Node, number: int) -> Made:
    joins = number % 2 == 1
    began, revision = patched(client, peer, NodePatch(tags=("tag:phones",) if joins else ()))
    in_group = re.compile(rf"{re.escape(peer.addresses[0])} : jump \S*phones")
    return Made(began, revision, lambda host: (in_group.search(table(host)) is not None) == joins)


def permit(client: RestClient, _peer: Node, number: int) -> Made:
    port = 10_000 + number
    etag = client.policy().etag
    began = time.monotonic()
    revision = client.put_policy(PolicyWrite(text=POLICY.format(port=port)), etag).revision
    return Made(began, revision, lambda host: str(port) in table(host))


def patched(client: RestClient, peer: Node, patch: NodePatch) -> tuple[float, int]:
    """When the change was asked for, after what it needs was read; and its revision."""
    began = 0.0

    def change(_current: Node) -> NodePatch:
        nonlocal began
        began = time.monotonic()
        return patch

    revision = client.edit_node(peer.id, change).revision
    return began, revision


def wait(agent: Agent, revision: int, mark: int) -> None:
    """Wait until the daemon says that the revision, or a later one, is in force; `mark`: lines to disregard."""
    while int(agent.process.wait_for_line(IN_FORCE, PATIENCE, mark).group(1)) < revision:
        mark += 1


def table(host: Host) -> str:
    """Our nftables table in the kernel."""
    return host.run("nft", "list", "table", "inet", "wardmesh").stdout


def endpoint_of(host: Host, peer: Node) -> str:
    """Where the kernel's WireGuard sends what is for the peer."""

    async def ask() -> str:
        device = KernelDevice.open(Links())
        found = await device.read("wardmesh0") if device is not None else None
        return str(found.peers[peer.public_key].endpoint) if found is not None else ""

    return host.call(lambda: asyncio.run(ask()))


def percentile(milliseconds: Sequence[float], percent: int) -> float:
    return statistics.quantiles(milliseconds, n=100, method="inclusive")[percent - 1]
