"""Links, addresses and routes, as the system's own tools see them afterwards. Needs no WireGuard."""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest

from agentd.kernel.links import GROUP, ROUTE_PROTOCOL, Links, host_networks, local_addresses
from agentd.model import KernelError, Network, Route
from tests.lab import Host, Lab

pytestmark = pytest.mark.host_kernel
LINK = "ours0"
ADDRESS, ADDRESS6 = Network.host("100.64.0.1"), Network.host("fd77::1")
ROUTE = Route(Network.parse("100.64.0.0/16"), ADDRESS)
ROUTE6 = Route(Network.parse("fd77::/48"), ADDRESS6)


@pytest.fixture
def host() -> Iterator[Host]:
    with Lab() as lab:
        yield lab.host("host", lab.switch("net"))


@pytest.fixture
def links(host: Host) -> Iterator[Links]:
    links = host.call(Links)
    links.create(LINK, "bridge")
    links.configure(LINK, mtu=1420, up=True)
    yield links
    links.close()


def test_a_link_is_ours_from_its_first_moment(host: Host, links: Links) -> None:
    link = links.find(LINK)
    assert link is not None
    assert (link.kind, link.mtu, link.up, link.ours) == ("bridge", 1420, True, True)
    assert LINK in host.run("ip", "link", "show", "group", str(GROUP)).stdout


def test_a_link_that_is_not_there_is_none_and_removing_it_is_no_error(links: Links) -> None:
    assert links.find("nothing0") is None
    links.remove("nothing0")
    with pytest.raises(KernelError, match="nothing0 is gone"):
        links.configure("nothing0", up=True)


def test_a_link_of_another_program_is_not_removed(links: Links) -> None:
    with pytest.raises(KernelError, match="eth0 was not made by agentd"):
        links.remove("eth0")
    assert links.find("eth0") is not None


def test_a_kind_that_the_kernel_does_not_know_is_refused_with_its_words(links: Links) -> None:
    with pytest.raises(KernelError, match=r"creating link x0 \(nonsense\).*Unknown device type"):
        links.create("x0", "nonsense")


def test_addresses_come_and_go_any_number_of_times(host: Host, links: Links) -> None:
    for _ in range(2):
        links.add_address(LINK, ADDRESS)
        links.add_address(LINK, ADDRESS6)
    assert links.addresses(links.index(LINK)) == ({ADDRESS, ADDRESS6}, set())
    assert "nodad" in host.run("ip", "-6", "address", "show", LINK).stdout
    for _ in range(2):
        links.remove_address(LINK, ADDRESS)
        links.remove_address(LINK, ADDRESS6)
    assert links.addresses(links.index(LINK)) == (set(), set())


def test_a_held_address_is_deprecated_usable_at_once_and_can_become_an_own_one(host: Host, links: Links) -> None:
    for _ in range(2):
        links.add_address(LINK, ADDRESS, held=True)
        links.add_address(LINK, ADDRESS6, held=True)
    assert links.addresses(links.index(LINK)) == (set(), {ADDRESS, ADDRESS6})
    shown = host.run("ip", "-6", "-o", "address", "show", LINK, "to", str(ADDRESS6)).stdout
    assert "nodad" in shown
    assert "deprecated" in shown
    assert "tentative" not in shown
    with host.socket(socket.AF_INET6) as server:
        server.bind((ADDRESS6.address, 8000))
    links.add_address(LINK, ADDRESS)
    links.add_address(LINK, ADDRESS6)
    assert links.addresses(links.index(LINK)) == ({ADDRESS, ADDRESS6}, set())


def test_nothing_is_said_from_a_held_address_although_it_would_be_the_nearest(host: Host, links: Links) -> None:
    links.add_address(LINK, ADDRESS6)
    links.add_address(LINK, Network.host("2001:db8:77::9"), held=True)
    host.run("ip", "route", "add", "2001:db8:77::/64", "dev", LINK)
    (route,) = json.loads(host.run("ip", "-j", "route", "get", "2001:db8:77::1").stdout)
    assert route["prefsrc"] == ADDRESS6.address


def test_routes_carry_our_protocol_and_the_source(host: Host, links: Links) -> None:
    for network in (ADDRESS, ADDRESS6):
        links.add_address(LINK, network)
    for route in (ROUTE, ROUTE6):
        links.put_route(LINK, route, replace=False)
    assert links.routes(links.index(LINK)) == {ROUTE, ROUTE6}
    assert (
        "100.64.0.0/16 dev ours0 scope link src 100.64.0.1"
        in host.run("ip", "route", "show", "proto", str(ROUTE_PROTOCOL)).stdout
    )
    assert (
        "fd77::/48 dev ours0 src fd77::1" in host.run("ip", "-6", "route", "show", "proto", str(ROUTE_PROTOCOL)).stdout
    )


def test_a_route_changes_its_source_in_place(links: Links) -> None:
    changed = []
    for route, new in ((ROUTE, "100.64.0.2"), (ROUTE6, "fd77::2")):
        links.add_address(LINK, route.source)
        links.put_route(LINK, route, replace=False)
        links.add_address(LINK, Network.host(new))
        changed.append(Route(route.destination, Network.host(new)))
        links.put_route(LINK, changed[-1], replace=True)
    assert links.routes(links.index(LINK)) == set(changed)
    for route in changed * 2:
        links.remove_route(LINK, route)
    assert links.routes(links.index(LINK)) == set()


def test_a_route_gets_an_mtu_and_loses_it_in_place(links: Links) -> None:
    for route in (ROUTE, ROUTE6):
        links.add_address(LINK, route.source)
        for mtu in (1280, 1240, 0):
            links.put_route(LINK, replace(route, mtu=mtu), replace=mtu != 1280)
            assert replace(route, mtu=mtu) in links.routes(links.index(LINK))
        links.remove_route(LINK, route)
    assert links.routes(links.index(LINK)) == set()


@pytest.mark.parametrize("route", [ROUTE, ROUTE6], ids=["ipv4", "ipv6"])
def test_a_route_of_another_program_is_not_replaced(host: Host, links: Links, route: Route) -> None:
    host.run("ip", "route", "add", str(route.destination), "dev", "eth0")
    links.add_address(LINK, route.source)
    with pytest.raises(KernelError, match=f"another route to {route.destination}.*remove that route"):
        links.put_route(LINK, route, replace=False)
    assert links.routes(links.index(LINK)) == set()


def test_a_host_with_many_routes_has_only_ours_read(host: Host, links: Links) -> None:
    lines = "\n".join(f"route add 198.51.{n // 256}.{n % 256}/32 dev eth0" for n in range(3000))
    host.run("ip", "-batch", "-", stdin=lines)
    links.add_address(LINK, ADDRESS)
    links.put_route(LINK, ROUTE, replace=False)
    assert links.routes(links.index(LINK)) == {ROUTE}
    assert len(links.all_routes()) > 3000


def test_local_addresses_are_the_hosts_own_without_ours(host: Host, links: Links) -> None:
    links.add_address(LINK, ADDRESS)
    found = {(one.link, one.address, one.prefix_length) for one in host.call(local_addresses)}
    assert ("eth0", host.address, 26) in found
    assert ("eth0", host.address6, 64) in found
    assert ("lo", "127.0.0.1", 8) in found
    assert LINK not in {link for link, _, _ in found}


def test_host_networks_are_addresses_and_routes_without_ours_and_the_default(host: Host, links: Links) -> None:
    links.add_address(LINK, ADDRESS)
    links.put_route(LINK, ROUTE, replace=False)
    host.run("ip", "route", "add", "10.9.0.0/16", "dev", "eth0")
    host.run("ip", "route", "add", "default", "via", "192.0.2.60")
    found = {(one.prefix, one.link) for one in host.call(host_networks)}
    assert {("192.0.2.0/26", "eth0"), ("10.9.0.0/16", "eth0"), ("2001:db8::/64", "eth0")} <= found
    assert not {prefix for prefix, _ in found} & {"100.64.0.0/16", "0.0.0.0/0", "::/0"}
