"""One map applied, applied again, changed, refused, disturbed and removed, over both backends."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agentd.model import KernelError, MapError
from tests.kernel.maps import Member, allow, netmap
from tests.kernel.nodes import BACKENDS, Node, pair
from tests.lab import Lab, eventually

OTHERS = [Member(number, endpoints=(f"192.0.2.{number}:51820",)) for number in range(10, 40)]


@pytest.fixture(params=BACKENDS)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    with Lab() as lab:
        node = Node(lab.host("host", lab.switch("net")), 1, request.param)
        try:
            yield node
        finally:
            node.end()


def state(node: Node) -> str:
    """Everything that agentd makes, as the system's own tools show it, without what counts or ages."""
    commands = ("ip -o link", "ip -o address", "ip route", "ip -6 route", "nft -s list ruleset")
    lines = [line for command in commands for line in node.host.run(*command.split()).stdout.splitlines()]
    # The cable and the kernel's own link-local addresses come up in their own time.
    return "\n".join(line for line in lines if "eth0" not in line and "fe80::" not in line)


# --- apply ------------------------------------------------------------------------------------------------------------


def test_applying_twice_writes_once(node: Node) -> None:
    first = node.meet(*OTHERS)
    assert first.messages > 0
    assert first.nft_transactions == 1
    again = node.meet(*OTHERS)
    assert (again.operations, again.messages, again.nft_transactions) == ((), 0, 0)


def test_one_more_peer_is_one_message_and_one_transaction(node: Node) -> None:
    node.meet(*OTHERS[:-1])
    applied = node.meet(*OTHERS)
    assert (applied.messages, applied.nft_transactions) == (1, 1)


def test_one_changed_peer_is_one_message_and_no_transaction(node: Node) -> None:
    node.meet(*OTHERS)
    applied = node.meet(*OTHERS[:-1], replace(OTHERS[-1], keepalive=25))
    assert (applied.messages, applied.nft_transactions) == (1, 0)


def test_a_restart_finds_everything_in_place_but_writes_the_table_anew(node: Node) -> None:
    node.meet(*OTHERS)
    node.restart()
    applied = node.meet(*OTHERS)
    assert (applied.messages, applied.nft_transactions) == (0, 1)


def test_the_plan_says_what_apply_will_do_and_does_nothing(node: Node) -> None:
    before = state(node)
    wanted = netmap(node.member, *OTHERS)
    planned = node.call(lambda: node.reconciler.plan(wanted))
    assert state(node) == before
    assert node.apply(wanted).operations == planned


def test_what_is_observed_is_what_was_applied(node: Node) -> None:
    node.meet(OTHERS[0])
    found = node.observe()
    assert found.backend == node.settings.backend
    assert found.device is not None
    assert (found.device.public_key, found.device.listen_port) == (node.member.public_key, 51820)
    assert {str(network) for network in found.addresses} == {"100.64.0.1/32", "fd77:7761:7264::1/128"}
    assert {str(route) for route in found.routes} == {
        "100.64.0.0/16 src 100.64.0.1",
        "fd77:7761:7264::/48 src fd77:7761:7264::1",
    }
    assert found.table_present


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["own key", "overlap"])
def test_a_map_that_no_kernel_can_have_changes_nothing(node: Node, trouble: str) -> None:
    node.meet(OTHERS[0])
    before = state(node)
    bad = {
        "own key": replace(OTHERS[1], private_key=node.member.private_key),
        "overlap": replace(OTHERS[1], address=OTHERS[0].address),
    }[trouble]
    with pytest.raises(MapError):
        node.meet(OTHERS[0], bad)
    assert state(node) == before
    assert node.meet(OTHERS[0]).operations == ()


def test_a_link_of_that_name_that_is_not_ours_is_left_alone(node: Node) -> None:
    node.host.run("ip", "link", "add", "wardmesh0", "type", "bridge")
    before = state(node)
    with pytest.raises(KernelError, match=r"'wardmesh0' is taken by a bridge link .* choose another name"):
        node.meet(OTHERS[0])
    assert state(node) == before
    assert node.remove() == []
    assert state(node) == before


def test_a_route_of_another_program_to_the_mesh_is_left_alone_and_everything_undone(node: Node) -> None:
    node.host.run("ip", "route", "add", "100.64.0.0/16", "dev", "eth0")
    before = state(node)
    with pytest.raises(KernelError, match=r"another route to 100\.64\.0\.0/16"):
        node.meet(OTHERS[0])
    assert state(node) == before


def test_when_nft_refuses_the_previous_state_stays(node: Node) -> None:
    node.meet(OTHERS[0])
    before = state(node)
    # A rule of ours that nft cannot load: the port is none. Model and wire would not let it through.
    bad = allow("in", "tcp", 443).model_copy(update={"ports": ((70000, 70000),)})
    with pytest.raises(KernelError, match="nft refused table inet wardmesh"):
        node.meet(*OTHERS, rules=[bad])
    assert state(node) == before
    assert node.meet(OTHERS[0]).operations == ()


def test_when_a_later_step_fails_the_earlier_ones_are_undone(node: Node) -> None:
    node.meet(*OTHERS)
    before = state(node)
    peers = node.observe().peers
    # The new own address cannot get its route: somebody routes the mesh's prefix elsewhere, with the same metric.
    node.host.run("ip", "route", "del", "100.64.0.0/16", "dev", "wardmesh0")
    node.host.run("ip", "route", "add", "100.64.0.0/16", "dev", "eth0")
    with pytest.raises(KernelError, match="another route"):
        node.apply(netmap(Member(1, node.member.private_key, address="100.64.9.9"), *OTHERS[:3]))
    assert set(node.observe().peers) == set(peers)
    node.host.run("ip", "route", "del", "100.64.0.0/16", "dev", "eth0")
    node.meet(*OTHERS)
    assert state(node) == before


def test_a_key_that_cannot_be_set_is_not_kept(node: Node) -> None:
    node.meet(OTHERS[0])
    node.host.run("ip", "link", "del", "wardmesh0")
    eventually(lambda: node.observe().link is None)
    node.host.run("ip", "link", "add", "wardmesh0", "type", "bridge")
    with pytest.raises(KernelError):
        node.call(lambda: node.reconciler.set_private_key(os.urandom(32)))
    node.host.run("ip", "link", "del", "wardmesh0")
    node.meet(OTHERS[0])
    device = node.observe().device
    assert device is not None
    assert device.public_key == node.member.public_key


@pytest.mark.host_kernel
def test_a_host_without_ipv6_is_told_so_and_nothing_is_half_done() -> None:
    with Lab() as lab:
        host = lab.host("host", lab.switch("net"))
        for scope in ("all", "default"):
            host.machine.sysctl(f"net.ipv6.conf.{scope}.disable_ipv6", 1)
        node = Node(host, 1, "userspace")
        try:
            before = state(node)
            with pytest.raises(KernelError, match=r"adding address fd77:7761:7264::1/128 .* IPv6 is off on this host"):
                node.meet(OTHERS[0])
            assert state(node) == before
        finally:
            node.end()


APPLY_ONCE = """
import asyncio, sys
from agentd.reconcile import KernelError, LinkSettings, Reconciler
from tests.kernel.maps import Member, netmap

async def main():
    reconciler = Reconciler(LinkSettings(backend="userspace"), bytes(range(32)))
    await reconciler.start()
    applied = await reconciler.apply(netmap(Member(1), Member(2)))
    print(len(applied.operations), len(await reconciler.remove()))
    await reconciler.close()

try:
    asyncio.run(main())
except KernelError as error:
    print(error)
    sys.exit(3)
"""


@pytest.mark.host_kernel
@pytest.mark.parametrize(
    ("capabilities", "code", "said"),
    [("-all,+net_admin", 0, "10 2"), ("-all", 3, "needs CAP_NET_ADMIN: run agentd as root")],
)
def test_one_capability_is_needed_and_enough(capabilities: str, code: int, said: str) -> None:
    with Lab() as lab:
        host = lab.host("host", lab.switch("net"))
        drop = ("setpriv", f"--bounding-set={capabilities}", "--no-new-privs")
        ended = host.run(*drop, sys.executable, "-c", APPLY_ONCE, check=False)
        assert (ended.returncode, said in ended.stdout) == (code, True), ended.stdout + ended.stderr


# --- drift ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "disturbance",
    [
        "nft flush ruleset",
        "nft delete table inet wardmesh",
        "nft flush chain inet wardmesh input",
        "nft delete element inet wardmesh from4 { 100.64.0.10 }",
        "nft insert rule inet wardmesh input accept",
        "ip link del wardmesh0",
        "ip link set wardmesh0 down",
        "ip link set wardmesh0 mtu 1300",
        "ip address del 100.64.0.1/32 dev wardmesh0",
        "ip address add 100.64.7.7/32 dev wardmesh0",
        "ip route del 100.64.0.0/16 dev wardmesh0",
        "ip -6 route del fd77:7761:7264::/48 dev wardmesh0",
    ],
)
def test_what_somebody_else_changes_is_back_within_a_second(node: Node, disturbance: str) -> None:
    node.meet(*OTHERS)
    before = state(node)
    with node.watching() as reasons:
        started = time.monotonic()
        node.host.run(*disturbance.split())
        eventually(lambda: reasons and node.plan() == [])
    assert node.put_back - started < 1
    if disturbance != "ip link del wardmesh0":  # a new link has another index
        assert state(node) == before


def test_what_does_not_concern_us_is_not_heard(node: Node) -> None:
    node.meet(*OTHERS)
    with node.watching() as reasons:
        node.host.run("nft", "add table inet other; add chain inet other input; add rule inet other input drop")
        node.host.run("ip", "link", "add", "br0", "type", "bridge")
        node.host.run("ip", "address", "add", "198.51.100.1/24", "dev", "br0")
        node.host.run("ip", "route", "add", "203.0.113.0/24", "dev", "eth0")
        assert node.meet(*OTHERS[:5]).operations
        node.host.run("ip", "address", "del", "100.64.0.1/32", "dev", "wardmesh0")
        eventually(lambda: reasons)
    assert reasons == ["add address 100.64.0.1/32; add route 100.64.0.0/16 src 100.64.0.1"]


# --- remove -----------------------------------------------------------------------------------------------------------


def test_remove_leaves_nothing(node: Node) -> None:
    before = state(node)
    processes = node.host.run("pgrep", "-x", "wireguard-go", check=False).stdout
    node.meet(*OTHERS)
    assert state(node) != before
    assert [str(operation).split(" (")[0] for operation in node.remove()] == [
        "remove link wardmesh0",
        "remove table inet wardmesh",
    ]
    assert state(node) == before
    assert node.host.run("pgrep", "-x", "wireguard-go", check=False).stdout == processes
    assert node.remove() == []


def test_remove_works_for_a_daemon_that_has_not_applied_anything(node: Node) -> None:
    before = state(node)
    node.meet(*OTHERS)
    node.restart()
    assert node.remove()
    assert state(node) == before


@pytest.mark.host_kernel
def test_closing_leaves_the_tunnel_working() -> None:
    with pair("userspace") as (left, right):
        left.call(left.reconciler.close)
        assert right.ping(left.member.address)
        left.restart()
