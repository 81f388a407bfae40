"""The laboratory does what its README promises, on real namespaces."""

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Host, Lab, Switch, eventually


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", address, check=False).returncode == 0


def namespaces() -> str:
    return subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout


def receive_one(host: Host, address: str) -> socket.socket:
    receiver = host.socket(kind=socket.SOCK_DGRAM)
    receiver.bind((address, 5000))
    receiver.settimeout(2)
    return receiver


def test_hosts_of_a_switch_reach_each_other_over_both_families() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        a, b = lab.host("a", net), lab.host("b", net)
        assert reaches(a, b.address)
        assert reaches(a, b.address6)


def test_what_the_kernel_refuses_is_an_error_with_its_reason() -> None:
    with Lab() as lab:
        host = lab.host("host", lab.switch("net"))
        with host.machine.wires() as wires, pytest.raises(FileExistsError):
            wires.bridge("eth0")


def test_hosts_of_two_switches_do_not_reach_each_other_without_a_router() -> None:
    with Lab() as lab:
        a, b = lab.host("a", lab.switch("one")), lab.host("b", lab.switch("two"))
        assert not reaches(a, b.address)


def test_a_router_joins_switches_also_for_hosts_that_come_later() -> None:
    with Lab() as lab:
        one, two = lab.switch("one"), lab.switch("two")
        a = lab.host("a", one)
        lab.router("r", one, two)
        b = lab.host("b", two)
        assert reaches(a, b.address)
        assert reaches(a, b.address6)


Home = tuple[Host, Host, Host, Switch]


@pytest.fixture
def home_and_server() -> Iterator[Home]:
    with Lab() as lab:
        internet, home = lab.switch("internet"), lab.switch("home")
        server, inside = lab.host("server", internet), lab.host("inside", home)
        router = lab.nat("nat", inside=home, outside=internet)
        yield inside, server, router, internet


def test_a_nat_router_hides_the_inside_behind_its_own_address(home_and_server: Home) -> None:
    inside, server, router, internet = home_and_server
    with receive_one(server, server.address) as receiver, inside.socket(kind=socket.SOCK_DGRAM) as sender:
        sender.bind(("0.0.0.0", 40000))
        sender.sendto(b"hello", (server.address, 5000))
        _, source = receiver.recvfrom(100)
    assert source == (router.port(internet).address, 40000)


def test_a_nat_router_lets_answers_in_and_nothing_else(home_and_server: Home) -> None:
    inside, server, router, internet = home_and_server
    public = router.port(internet).address
    stranger = server.socket(kind=socket.SOCK_DGRAM)
    with receive_one(server, server.address) as receiver, inside.socket(kind=socket.SOCK_DGRAM) as sender, stranger:
        sender.bind(("0.0.0.0", 40000))
        sender.settimeout(2)
        sender.sendto(b"question", (server.address, 5000))
        receiver.recvfrom(100)
        stranger.sendto(b"unasked", (public, 40000))  # another source port: address and port-dependent filtering
        receiver.sendto(b"answer", (public, 40000))
        assert sender.recv(100) == b"answer"


def test_a_nat_router_drops_what_the_outside_begins(home_and_server: Home) -> None:
    _, server, router, internet = home_and_server
    assert not reaches(server, router.port(internet).address)


def test_impairment_delays_packets_both_ways_and_can_be_taken_back() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        a, b = lab.host("a", net), lab.host("b", net)
        a.impair(delay_ms=100)
        reply = a.run("ping", "-c1", "-W2", b.address).stdout
        assert float(reply.split("time=")[1].split()[0]) >= 200
        a.impair()
        reply = a.run("ping", "-c2", "-i0.2", b.address).stdout
        assert float(reply.split("time=")[2].split()[0]) < 100


def test_an_unplugged_host_is_unreachable_until_it_is_plugged_in() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        a, b = lab.host("a", net), lab.host("b", net)
        b.unplug()
        assert not reaches(a, b.address)
        b.plug()
        eventually(lambda: reaches(a, b.address))


def test_readdressing_leaves_only_the_new_addresses() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        a, b = lab.host("a", net), lab.host("b", net)
        old = b.address
        b.readdress()
        assert reaches(a, b.address)
        assert reaches(a, b.address6)
        assert not reaches(a, old)


def test_each_host_has_its_own_name_run_directory_and_links() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        a, b = lab.host("a", net), lab.host("b", net)
        a.run("sh", "-c", "mkdir /run/daemon && touch /run/daemon/socket")
        assert b.run("ls", "/run").stdout == ""
        assert [host.run("uname", "-n").stdout.strip() for host in (a, b)] == ["a", "b"]
        assert set(a.run("ls", "/sys/class/net").stdout.split()) == {"eth0", "lo"}


def test_commands_run_where_the_test_runs() -> None:
    with Lab() as lab:
        assert lab.host("a").run("pwd").stdout.strip() == str(Path.cwd())


def test_a_failing_command_shows_its_output() -> None:
    with Lab() as lab, pytest.raises(AssertionError, match="ended with 3\nwhy"):
        lab.host("a").run("sh", "-c", "echo why; exit 3")


def test_entering_a_host_moves_the_thread_and_brings_it_back() -> None:
    here = Path("/proc/thread-self/ns/net")
    before = here.readlink()
    with Lab() as lab:
        with lab.host("a").enter():
            assert here.readlink() != before
        assert here.readlink() == before


def test_two_labs_with_the_same_names_live_side_by_side() -> None:
    with Lab() as one, Lab() as two:
        first, second = one.host("a", one.switch("net")), two.host("a", two.switch("net"))
        assert first.address == second.address
        first.run("ip", "link", "add", "only-here", "type", "veth")
        assert "only-here" not in second.run("ip", "link").stdout


def test_nothing_stays_after_an_exception(tmp_path: Path) -> None:
    lab = Lab()

    def use_and_fail() -> None:
        with lab:
            host = lab.host("a", lab.switch("net"))
            pids.append(host.start("sleep", "1000").pid)
            # A daemon that left its parent and its session, as wireguard-go does.
            script = f"echo $$ > {tmp_path}/pid; exec sleep 1000"
            host.start("setsid", "--fork", "sh", "-c", script)
            pids.append(int(eventually((tmp_path / "pid").read_text)))
            raise ZeroDivisionError

    pids: list[int] = []
    (tmp_path / "pid").touch()
    with pytest.raises(ZeroDivisionError):
        use_and_fail()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}/ns/net").exists() for pid in pids)
    assert lab.prefix not in namespaces()
    assert not lab.directory.exists()


def test_a_switch_says_its_prefixes() -> None:
    with Lab() as lab:
        net: Switch = lab.switch("net", "203.0.113.0/24", "2001:db8:7::/64")
        assert lab.host("a", net).address == "203.0.113.1"
        assert lab.host("b", net).address6 == "2001:db8:7::2"
