"""Which endpoints a host offers, and in which order it tries those of others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.model import LocalAddress
from agentd.paths.candidates import candidates
from agentd.paths.choose import Chooser

MESH = ("100.80.0.0/16", "fd00:1234::/48")


def own(link: str, *addresses: str) -> list[LocalAddress]:
    split = (address.split("/") for address in addresses)
    return [LocalAddress(link=link, address=address, prefix_length=int(length)) for address, length in split]


def test_own_addresses_are_offered_with_the_port_public_first() -> None:
    addresses = own("eth0", "192.168.1.7/24", "8.8.4.4/24", "2a00::7/64")
    offered = candidates(addresses, listen_port=4500, mesh=MESH)
    assert offered == ("8.8.4.4:4500", "[2a00::7]:4500", "192.168.1.7:4500")


def test_announced_endpoints_come_first_as_written_and_once() -> None:
    addresses = own("eth0", "10.0.0.7/24")
    offered = candidates(addresses, listen_port=51820, mesh=MESH, announced=["10.0.0.7:51820", "8.8.4.4:443"])
    assert offered == ("10.0.0.7:51820", "8.8.4.4:443")


@pytest.mark.parametrize(
    "link",
    [
        "docker0",
        "docker_gwbridge",
        "br-0123456789ab",
        "veth1a2b3c",
        "virbr0",
        "vnet3",
        "cni0",
        "cni-podman0",
        "flannel.1",
    ],
)
def test_networks_of_containers_are_not_offered(link: str) -> None:
    assert candidates(own(link, "172.17.0.1/16"), listen_port=51820, mesh=MESH) == ()


@pytest.mark.parametrize("link", ["br-lan", "br0", "eth0", "bond0.5", "wlan0", "enp0s31f6", "vlan7"])
def test_the_administrators_own_bridges_are_offered(link: str) -> None:
    assert candidates(own(link, "10.0.0.7/24"), listen_port=51820, mesh=MESH) == ("10.0.0.7:51820",)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1/8", "::1/128", "169.254.7.7/16", "fe80::7/64", "0.0.0.0/0", "224.0.0.1/4", "::ffff:10.0.0.1/128"],
)
def test_addresses_that_no_other_host_can_use_are_not_offered(address: str) -> None:
    assert candidates(own("eth0", address), listen_port=51820, mesh=MESH) == ()


def test_mesh_addresses_are_not_offered_from_any_link() -> None:
    assert candidates(own("eth0", "100.80.0.9/32", "fd00:1234::9/128"), listen_port=51820, mesh=MESH) == ()


def test_a_network_that_the_host_is_on_comes_before_other_private_ones() -> None:
    endpoints = ["10.9.0.1:51820", "192.168.1.9:51820"]
    assert Chooser(own("eth0", "192.168.1.7/24")).order(endpoints) == ("192.168.1.9:51820", "10.9.0.1:51820")


def test_a_family_that_the_host_lacks_comes_last() -> None:
    endpoints = ["[2a00::9]:51820", "8.8.4.4:51820"]
    assert Chooser(own("eth0", "192.168.1.7/24")).order(endpoints) == ("8.8.4.4:51820", "[2a00::9]:51820")


def test_link_local_addresses_are_no_sign_of_ipv6() -> None:
    endpoints = ["[2a00::9]:51820", "8.8.4.4:51820"]
    assert Chooser(own("eth0", "192.168.1.7/24", "fe80::7/64")).order(endpoints)[0] == "8.8.4.4:51820"


@given(
    st.permutations(["8.8.4.4:1", "10.0.0.1:1", "192.168.1.9:1", "[2a00::9]:1", "[fd77::9]:1"]),
    st.sampled_from([[], own("eth0", "192.168.1.7/24"), own("eth0", "192.168.1.7/24", "2a00::1/64")]),
)
def test_choosing_only_orders(endpoints: list[str], addresses: list[LocalAddress]) -> None:
    assert sorted(Chooser(addresses).order(endpoints)) == sorted(endpoints)


def test_the_best_is_chosen_or_none() -> None:
    chooser = Chooser(own("eth0", "192.168.1.7/24"))
    assert chooser.choose(["10.9.0.1:51820", "192.168.1.9:51820"]) == "192.168.1.9:51820"
    assert chooser.choose([]) is None
