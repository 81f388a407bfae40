"""How fast a map reaches the kernel: 1,000 peers against `wg setconf` for the same, and what a small change costs.

All in network namespaces of one machine, with the kernel's WireGuard and the real nft.
"""

import base64
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from operator import methodcaller
from pathlib import Path
from typing import Final, TypeVar

import psutil

from agentd.kernel.links import Links
from agentd.kernel.wireguard import KernelDevice
from agentd.model import Endpoint, Network
from agentd.operations import PeerChange, SetDevice
from controller.wire.netmap import Netmap
from controller.wire.rest import StaticPeerCreate
from tests.bench.figures import Bench, alternate
from tests.kernel.maps import Member, netmap
from tests.kernel.nodes import Node
from tests.lab import Host, Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

T = TypeVar("T")
NEEDS_KERNEL = True
PEERS: Final = 1000
ROUNDS: Final = 12
IDLE_PEERS: Final = 100
IDLE_SECONDS: Final = 70  # more than a minute: once in a minute the daemon looks at everything
OWN: Final = 1
# Without keepalive: a thousand peers that have one make WireGuard begin a thousand handshakes when the link comes up,
# which is traffic and no configuration, and `wg setconf` brings no link up.
MEMBERS: Final = [
    Member(number, endpoints=(f"192.0.2.{number % 250 + 1}:51820",)) for number in range(OWN + 1, OWN + PEERS + 2)
]


def measure(bench: Bench) -> None:
    with Lab() as lab:
        node = Node(lab.host("ours"), OWN, "kernel", endpoint="192.0.2.1:51820")
        try:
            from_nothing(bench, node, lab.host("theirs"))
            small_changes(bench, node)
        finally:
            node.end()
    idle(bench)


def from_nothing(bench: Bench, node: Node, theirs: Host) -> None:
    """Ours from no link at all: link, table, addresses, routes, peers. `wg setconf` on a link that is there: peers."""
    everything = netmap(node.member, *MEMBERS[:PEERS])
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        file.write(setconf(node.member, MEMBERS[:PEERS]))
        file.flush()
        path = Path(file.name)
        found = alternate(
            {
                "wg setconf": lambda: wg_setconf(theirs, path),
                "agentd, peers alone": lambda: write_peers_alone(node),
                "agentd, everything": lambda: apply_everything(node, everything),
            },
            ROUNDS,
        )
    base = found["wg setconf"].lowest
    rows = [(name, runs.lowest * 1000, runs.median * 1000, runs.lowest / base) for name, runs in found.items()]
    bench.table(f"{PEERS} peers from nothing, ms", ("", "best", "median", "best / wg setconf"), rows)
    for name, value, _median, _ratio in rows:
        bench.figure(f"{name.replace(', ', ' ').replace(' ', '_')}_ms", value)
    bench.figure("peers_alone_over_wg_setconf", found["agentd, peers alone"].lowest / base)
    bench.bar("apply_1000_peers_over_wg_setconf", found["agentd, everything"].lowest / base, "<=", 3)


def small_changes(bench: Bench, node: Node) -> None:
    """With the peers in place: one more, one changed, nothing changed."""
    node.meet(*MEMBERS[:PEERS])
    added, added_s = timed(lambda: node.meet(*MEMBERS))
    changed_member = replace(MEMBERS[0], keepalive=11)
    changed, changed_s = timed(lambda: node.meet(changed_member, *MEMBERS[1:]))
    nothing, nothing_s = timed(lambda: node.meet(changed_member, *MEMBERS[1:]))
    bench.table(
        f"with {PEERS} peers in place",
        ("", "netlink messages", "nft transactions", "ms"),
        [
            ("one peer added", added.messages, added.nft_transactions, added_s * 1000),
            ("one peer changed", changed.messages, changed.nft_transactions, changed_s * 1000),
            ("nothing changed", nothing.messages, nothing.nft_transactions, nothing_s * 1000),
        ],
    )
    bench.bar("one_peer_added_messages", added.messages, "<=", 1)
    bench.bar("one_peer_changed_messages", changed.messages, "<=", 1)
    bench.bar("nothing_changed_writes", nothing.messages + nothing.nft_transactions, "<=", 0)
    bench.figure("one_peer_added_ms", added_s * 1000)
    bench.figure("nothing_changed_ms", nothing_s * 1000)


def idle(bench: Bench) -> None:
    """The whole daemon, joined to a real controller, with its peers in the kernel and nothing to do."""
    bench.say(f"agentd with {IDLE_PEERS} peers, idle for {IDLE_SECONDS} s …")
    with Lab() as lab:
        switch = lab.switch("net")
        controller = Controller.start(lab.host("controller", switch))
        controller.put_policy(ALLOW_ALL)
        for member in MEMBERS[:IDLE_PEERS]:
            peer = StaticPeerCreate(name=member.name, public_key=member.public_key, endpoints=member.endpoints)
            controller.ask(methodcaller("create_peer", peer))
        agent = Agent.join(lab.host("agent", switch), controller.join_string())
        eventually(lambda: len(agent.status()["peers"]) == IDLE_PEERS, 60, interval=1)
        daemon = psutil.Process(agent.process.pid)
        before, started = sum(daemon.cpu_times()[:2]), time.monotonic()
        eventually(lambda: time.monotonic() - started >= IDLE_SECONDS, IDLE_SECONDS + 10, interval=1)
        share = (sum(daemon.cpu_times()[:2]) - before) / (time.monotonic() - started)
        bench.bar("idle_100_peers_resident_mb", daemon.memory_info().rss / 1e6, "<=", 80)
        bench.bar("idle_100_peers_core_percent", share * 100, "<=", 0.5)


def apply_everything(node: Node, wanted: Netmap) -> float:
    node.remove()
    return timed(lambda: node.apply(wanted))[1]


def write_peers_alone(node: Node) -> float:
    """What `wg setconf` does, like for like: on a link that is there and down, the device and its peers."""
    return node.call(_write_peers_alone)


async def _write_peers_alone() -> float:
    links = Links()
    device = KernelDevice.open(links)
    assert device is not None
    await device.create("bench0")
    changes: list[SetDevice | PeerChange] = [
        SetDevice(public_key="set", listen_port=4242),
        *(
            PeerChange(
                action="add",
                name=member.name,
                public_key=member.public_key,
                endpoint=Endpoint.parse(member.endpoints[0]),
                allowed_ips=(Network.host(member.address), Network.host(member.address6)),
            )
            for member in MEMBERS[:PEERS]
        ),
    ]
    started = time.perf_counter()
    await device.write("bench0", changes, bytes(range(32)))
    seconds = time.perf_counter() - started
    await device.remove("bench0")
    device.close()
    links.close()
    return seconds


def wg_setconf(host: Host, path: Path) -> float:
    host.run("ip", "link", "add", "wg0", "type", "wireguard")
    with host.enter():  # the command alone, without what the lab does around it
        _, seconds = timed(lambda: subprocess.run(["wg", "setconf", "wg0", path], check=True))
    host.run("ip", "link", "del", "wg0")
    return seconds


def timed(action: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    result = action()
    return result, time.perf_counter() - started


def setconf(own: Member, others: list[Member]) -> str:
    """The same peers as `wg setconf` reads them."""
    private = base64.b64encode(own.private_key).decode()
    sections = [f"[Interface]\nPrivateKey = {private}\nListenPort = 51820\n"]
    sections += [
        f"[Peer]\nPublicKey = {other.public_key}\nAllowedIPs = {other.address}/32, {other.address6}/128\n"
        f"Endpoint = {other.endpoints[0]}\n"
        for other in others
    ]
    return "\n".join(sections)
