"""The process behind the userspace backend: found again, started again, ended for good, explained when it fails."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentd.kernel import process
from agentd.kernel.links import Links
from agentd.kernel.userspace import socket_path
from agentd.model import KernelError
from tests.kernel.maps import Member
from tests.kernel.nodes import Node, OnHost, pair
from tests.lab import Lab, eventually

pytestmark = pytest.mark.host_kernel
PEER = Member(2, endpoints=("192.0.2.2:51820",))


@pytest.fixture
def node() -> Iterator[Node]:
    with Lab() as lab:
        node = Node(lab.host("host", lab.switch("net")), 1, "userspace")
        try:
            yield node
        finally:
            node.end()


def pid_of(node: Node) -> int:
    socket = node.host.call(lambda: socket_path("wardmesh0"))
    found = subprocess.run(
        ["pgrep", "-f", f"wireguard-go -f {socket.stem}$"], capture_output=True, text=True, check=False
    )
    return int(found.stdout or 0)


def test_the_backend_names_itself(node: Node) -> None:
    assert node.observe().backend == "userspace"
    assert node.reconciler.backend == "userspace"


def test_two_hosts_of_one_machine_may_have_links_of_one_name() -> None:
    with pair("userspace") as (left, right):
        assert pid_of(left) != pid_of(right)
        assert left.ping(right.member.address)


def test_a_restarted_daemon_finds_the_process_again(node: Node) -> None:
    node.meet(PEER)
    before = pid_of(node)
    node.restart()
    assert node.meet(PEER).messages == 0
    assert pid_of(node) == before


def test_a_process_that_died_is_started_again(node: Node) -> None:
    node.meet(PEER)
    before = pid_of(node)
    with node.watching() as reasons:
        os.kill(before, signal.SIGKILL)
        eventually(lambda: reasons and node.plan() == [])
    assert pid_of(node) not in {0, before}
    assert set(node.observe().peers) == {PEER.public_key}


def test_a_process_that_is_deaf_to_asking_is_ended_all_the_same(node: Node) -> None:
    node.meet(PEER)
    os.kill(pid_of(node), signal.SIGSTOP)
    node.remove()
    assert pid_of(node) == 0
    assert node.host.call(Links).find("wardmesh0") is None


def test_the_private_key_is_in_no_argument_or_environment(node: Node) -> None:
    node.meet(PEER)
    pid = pid_of(node)
    secret = node.member.private_key
    for name in ("cmdline", "environ"):
        shown = Path("/proc", str(pid), name).read_bytes()
        assert secret.hex().encode() not in shown
        assert secret not in shown


def test_a_program_that_fails_is_an_error_with_its_words(monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
    find = process.find
    monkeypatch.setattr(process, "find", lambda name: "/bin/false" if name == "wireguard-go" else find(name))
    with pytest.raises(KernelError, match=r"wireguard-go ended with 1 \(no message\): it needs CAP_NET_ADMIN"):
        node.meet(PEER)
    assert node.observe().link is None
    assert not node.observe().table_present


def test_without_the_program_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, node: Node) -> None:
    monkeypatch.setattr(process, "find", lambda program: None)
    with pytest.raises(KernelError, match="wireguard-go is not installed: install the package wireguard-go"):
        node.restart()
    monkeypatch.undo()
    node.restart()


def test_the_first_link_of_a_name_is_not_the_second() -> None:
    with Lab() as lab:
        there = OnHost(lab.host("host"))
        names = there.host.call(lambda: [socket_path(name).name for name in ("wardmesh0", "wardmesh1")])
        assert len(set(names)) == 2
        assert all(len(name.removesuffix(".sock")) < 16 for name in names)
        there.end()
