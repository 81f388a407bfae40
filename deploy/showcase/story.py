"""What the demo tells, in order. Each step does something and looks whether it came out: AssertionError if not."""

import contextlib
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, Final

from tests.lab import Lab, eventually
from tests.lab.kernel import has_wireguard
from tests.lab.mesh import Agent

from .screen import Screen
from .service import listening_on, start_server, tools_have_rules
from .wire import Capture, dropped_packets
from .world import HOSTS, World, mesh_address, peer_of

__all__ = ["MCP_PORT", "tell"]

MCP_PORT: Final = 8000
WIREGUARD_PORT: Final = 51820
PATIENCE: Final = 2.0  # seconds that a denied connection is given
POLICY: Final = """\
grants:
  - from: [tag:agents]
    to: [tag:tools]
    ip: [tcp:8000]
    note: agents call MCP tools
  - from: [tag:visitors]
    to: [tag:tools]
    ip: [icmp]
    note: visitors may ping, and nothing else
tests:
  - from: tag:agents
    to: tag:tools
    accept: [tcp:8000]
  - from: tag:visitors
    to: tag:tools
    accept: [icmp]
    deny: [tcp:8000]
"""


def tell(screen: Screen, lab: Lab) -> World:
    """Everything once. Returns the running mesh."""
    with screen.step("Three hosts and a controller behind one switch"):
        world = World(lab)
        for host in (world.admin, *world.hosts.values()):
            screen.fact(host.name, f"{host.address}, a network namespace of its own")
        screen.fact("kernel", describe_kernel())
    controller_starts(screen, world)
    hosts_enrol(screen, world)
    policy_applies(screen, world)
    tunnel_comes_up(screen, world)
    tool_is_called(screen, world)
    third_host_is_denied(screen, world)
    tools_have_rules(screen, world)
    return world


def describe_kernel() -> str:
    """Which WireGuard carries the packets, said as it is."""
    if has_wireguard():
        return f"Linux {platform.release()}, WireGuard is the kernel's own"
    return f"Linux {platform.release()} without WireGuard: wireguard-go carries the packets, in user space"


def controller_starts(screen: Screen, world: World) -> None:
    with screen.step("The controller"):
        world.start_controller()
        listen = world.controller.url.removeprefix("https://")
        screen.command(f"wardmesh-controller serve --listen {listen} --url {world.controller.url}")
        mesh = world.ask("status")["mesh"]
        screen.fact("mesh", f"{mesh['name']}: {mesh['prefix4']} and {mesh['prefix6']}")


def hosts_enrol(screen: Screen, world: World) -> None:
    with screen.step("Three hosts enrolled, each with a one-shot key"):
        for name, tag in HOSTS.items():
            begin = time.monotonic()
            agent = world.join(name)
            took = time.monotonic() - begin
            screen.command(f"wardmesh key create --tag {tag} | ssh {name} agentd join -")
            screen.fact(name, f"{' '.join(agent.status()['addresses'])}  in {took:.1f} s")
        for agent in world.agents.values():
            assert agent.status()["peers"] == [], f"{agent.host.name} has peers before there is a policy"
        screen.fact("peers", "none yet: without a policy no host is told of another")


def policy_applies(screen: Screen, world: World) -> None:
    with screen.step("A policy, in force in every host's kernel"):
        screen.command("wardmesh policy apply policy.yaml")
        screen.block(POLICY.partition("tests:")[0])
        begin = time.monotonic()
        world.controller.put_policy(POLICY)
        revision = world.wait_until_in_force()
        took = (time.monotonic() - begin) * 1000
        screen.fact("in force", f"revision {revision}, {took:.0f} ms after the request was sent")


def tunnel_comes_up(screen: Screen, world: World) -> None:
    with screen.step("The tunnel between assistant and warehouse"):
        assistant, warehouse = world.agents["assistant"], world.agents["warehouse"]
        address = mesh_address(warehouse)
        with contextlib.suppress(OSError):  # nothing listens there yet; the first packet makes the handshake
            assistant.host.call(lambda: socket.create_connection((address, MCP_PORT), PATIENCE).close())

        def shaken() -> dict[str, Any]:
            peer = peer_of(assistant, "warehouse")
            assert peer["handshake_age"] is not None
            return peer

        peer = eventually(shaken, timeout=20, what="a handshake")
        backends = {agent.status()["backend"] for agent in world.agents.values()}
        expected = "kernel" if has_wireguard() else "userspace"
        assert backends == {expected}, f"the hosts' tunnels are {backends}; {expected} was expected of this kernel"
        screen.fact("endpoint", peer["endpoint"])
        screen.fact("handshake", f"{peer['handshake_age']:.0f} s ago")
        if expected == "kernel":
            screen.fact("data path", "kernel WireGuard, on all three hosts", "green")
        else:
            screen.fact("data path", "wireguard-go in user space, on all three hosts", "yellow")


def tool_is_called(screen: Screen, world: World) -> None:
    warehouse = world.agents["warehouse"]
    address = mesh_address(warehouse)
    marker = f"parcel-{secrets.token_hex(8)}"
    with screen.step("An MCP server on warehouse, on its mesh address only"):
        start_server(warehouse, address, MCP_PORT)
        for line in listening_on(warehouse, MCP_PORT):
            screen.fact("listens on", line)
    link = warehouse.status()["link"]
    on_switch = Capture.on_switch(world.switch, world.lab.directory)
    in_tunnel = Capture.on_host(warehouse.host, link)
    with screen.step("An MCP client on assistant calls its tool, through the tunnel"):
        answer = world.call("assistant", f"http://{address}:{MCP_PORT}/mcp", "pack", f"parcel={marker}")
        assert answer["text"] == f"packed: {marker}", f"the tool answered {answer['text']!r}"
        screen.fact("protocol", f"MCP {answer['protocol']}")
        screen.fact("tools", f"{', '.join(answer['tools'])}  ({answer['list_ms']:.1f} ms)")
        screen.fact("called", f"pack(parcel={marker!r})")
        screen.fact("answered", f"{answer['text']!r}  ({answer['call_ms']:.1f} ms)", "green")
    packets_are_ciphertext(screen, on_switch, in_tunnel, marker, link)


def packets_are_ciphertext(screen: Screen, on_switch: Capture, in_tunnel: Capture, marker: str, link: str) -> None:
    with screen.step("What others see of that call: ciphertext"):
        word = marker.encode()
        eventually(lambda: any(word in packet for packet in in_tunnel.packets()), what=f"the call's text on {link}")
        inside = in_tunnel.stop()
        # The kernel hands packets to a capture in batches, up to a second late; each one inside is one outside.
        eventually(lambda: sum(map(is_wireguard, on_switch.packets())) >= len(inside), what="the call on the switch")
        outside = on_switch.stop()
        clear = sum(word in packet for packet in inside)
        leaked = sum(word in packet for packet in outside)
        wireguard = sum(is_wireguard(packet) for packet in outside)
        screen.fact(f"on {link}", f"{len(inside)} packets, {clear} with the call's text: the capture works")
        screen.fact("on the switch", f"{len(outside)} packets, {wireguard} of WireGuard, {leaked} with the call's text")
        assert wireguard > 0, "no WireGuard packet crossed the switch"
        assert leaked == 0, "the call's text crossed the switch in the clear"


def third_host_is_denied(screen: Screen, world: World) -> None:
    visitor, warehouse = world.agents["visitor"], world.agents["warehouse"]
    address = mesh_address(warehouse)
    with screen.step("visitor may ping warehouse, as the policy says"):
        done = visitor.host.run("ping", "-c", "1", "-W", "5", address)
        screen.fact("ping", next(line for line in done.stdout.splitlines() if "time=" in line))
    with screen.step("visitor may not call the tool: its own kernel drops the packets"):
        before = dropped_packets(visitor.host)
        screen.fact("connecting", attempt(visitor, address))
        screen.fact("dropped by", grown(visitor, before), "green")
    with screen.step("Nor without its own rules: the kernel of warehouse drops the packets"):
        with frozen(visitor):
            visitor.host.run("nft", "delete", "table", "inet", "wardmesh")
            screen.command("kill -STOP agentd; nft delete table inet wardmesh        (on visitor, as root)")
            before = dropped_packets(warehouse.host)
            screen.fact("connecting", attempt(visitor, address))
            screen.fact("dropped by", grown(warehouse, before), "green")
        begin = time.monotonic()
        eventually(lambda: has_table(visitor), timeout=20, what="visitor's table, put back by agentd")
        screen.fact(
            "afterwards", f"agentd put the rules back {(time.monotonic() - begin) * 1000:.0f} ms after it ran on"
        )


def attempt(agent: Agent, address: str) -> str:
    """Try to reach the tool, which must fail; says how it did."""

    def connect() -> str | None:
        try:
            socket.create_connection((address, MCP_PORT), timeout=PATIENCE).close()
        except TimeoutError:
            return f"no answer within {PATIENCE:.0f} s"
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error)
        return None

    outcome = agent.host.call(connect)
    assert outcome is not None, f"{agent.host.name} reached {address}:{MCP_PORT}, which the policy does not allow"
    return outcome


def grown(agent: Agent, before: dict[str, int]) -> str:
    """Which drop counters of the host grew, and by how much; raises AssertionError if none did."""
    after = dropped_packets(agent.host)
    more = {name: count - before[name] for name, count in after.items() if count > before[name]}
    assert more, f"no drop rule of {agent.host.name} counted a packet"
    counts = ", ".join(f"{count} more packets in {name}" for name, count in more.items())
    return f"inet wardmesh of {agent.host.name}: {counts}"


@contextlib.contextmanager
def frozen(agent: Agent) -> Iterator[None]:
    """The daemon stopped, as by somebody with root who does not want to be corrected."""
    os.kill(agent.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(agent.process.pid, signal.SIGCONT)


def has_table(agent: Agent) -> bool:
    return agent.host.run("nft", "list", "table", "inet", "wardmesh", check=False).returncode == 0


def is_wireguard(packet: bytes) -> bool:
    """An Ethernet frame of IPv4 with UDP from or to WireGuard's port."""
    if len(packet) < 42 or packet[12:14] != b"\x08\x00" or packet[23] != 17:
        return False
    begin = 14 + (packet[14] & 0x0F) * 4
    ports = (int.from_bytes(packet[begin : begin + 2]), int.from_bytes(packet[begin + 2 : begin + 4]))
    return WIREGUARD_PORT in ports
