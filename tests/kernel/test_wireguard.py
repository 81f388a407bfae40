"""What is written to a WireGuard device is what is read from it: one test class for both backends."""

import base64
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from agentd.kernel.device import Device, DeviceChange
from agentd.kernel.links import GROUP, Links
from agentd.kernel.userspace import UserspaceDevice, socket_path
from agentd.kernel.wireguard import KernelDevice
from agentd.model import NO_PRESHARED_KEY, Endpoint, Network, ObservedDevice, ObservedPeer
from agentd.operations import PeerChange, SetDevice
from tests.kernel.maps import public_key
from tests.kernel.nodes import BACKENDS, OnHost
from tests.lab import Host, Lab

NAME = "wg-test"
PRIVATE = os.urandom(32)
KEYS = [base64.b64encode(os.urandom(32)).decode() for _ in range(1000)]


class Bench(OnHost):
    """A device on a host, for a test to write to and read from."""

    def __init__(self, host: Host, backend: str) -> None:
        super().__init__(host)
        self.links, self.device = self.call(lambda: self._open(backend))

    async def _open(self, backend: str) -> tuple[Links, Device]:
        links = Links()
        kernel = KernelDevice.open(links) if backend == "kernel" else None
        await (device := kernel or UserspaceDevice(links, 1420)).create(NAME)
        return links, device

    def write(self, *changes: DeviceChange) -> int:
        return self.call(lambda: self.device.write(NAME, changes, PRIVATE))

    def read(self) -> ObservedDevice:
        device = self.call(lambda: self.device.read(NAME))
        assert device is not None
        return device

    def peer(self, index: int = 0) -> ObservedPeer:
        return self.read().peers[KEYS[index]]

    def end(self) -> None:
        self.call(lambda: self.device.remove(NAME))
        self.device.close()
        self.links.close()
        super().end()


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(Network.parse(text) for text in texts)


def put(index: int, *prefixes: str, **fields: Any) -> PeerChange:
    return PeerChange("add", "", KEYS[index], allowed_ips=networks(*prefixes), **fields)


def change(index: int, *prefixes: str, **fields: Any) -> PeerChange:
    return PeerChange("change", "", KEYS[index], allowed_ips=networks(*prefixes), **fields)


@pytest.mark.parametrize("backend", BACKENDS)
class TestDevice:
    @pytest.fixture
    def bench(self, backend: str) -> Iterator[Bench]:
        with Lab() as lab:
            bench = Bench(lab.host("host", lab.switch("net")), backend)
            try:
                yield bench
            finally:
                bench.end()

    def test_a_new_link_is_down_and_bears_our_mark(self, bench: Bench) -> None:
        link = bench.links.find(NAME)
        assert link is not None
        assert (link.kind, link.up, link.ours) == (bench.device.link_kind, False, True)
        assert f"group {GROUP}" in bench.host.run("ip", "link", "show", NAME).stdout

    def test_key_and_port(self, bench: Bench) -> None:
        assert bench.read().public_key == ""
        assert bench.write(SetDevice(public_key="any", listen_port=4242)) == 1
        assert (bench.read().public_key, bench.read().listen_port) == (public_key(PRIVATE), 4242)

    def test_every_field_of_a_peer(self, bench: Bench) -> None:
        secret = os.urandom(32)
        endpoint = Endpoint("192.0.2.9", 51820)
        bench.write(put(0, "10.1.0.0/16", "fd01::/64", endpoint=endpoint, keepalive=25, preshared_key=secret))
        # A keepalive is sent at once where the device is up already, and counts.
        assert replace(bench.peer(), tx_bytes=0) == ObservedPeer(
            public_key=KEYS[0],
            allowed_ips=frozenset(networks("10.1.0.0/16", "fd01::/64")),
            endpoint=endpoint,
            keepalive=25,
            preshared_key=secret,
        )

    def test_an_ipv6_endpoint(self, bench: Bench) -> None:
        endpoint = Endpoint("2001:db8::9", 51820)
        bench.write(put(0, endpoint=endpoint))
        assert bench.peer().endpoint == endpoint

    def test_a_link_local_endpoint_is_of_one_link(self, bench: Bench, backend: str) -> None:
        endpoint = Endpoint("fe80::9", 51820, bench.links.index(NAME))
        bench.write(put(0, endpoint=endpoint))
        # wireguard-go takes the scope and does not tell it.
        assert bench.peer().endpoint == (endpoint if backend == "kernel" else endpoint._replace(scope=0))

    def test_unset_fields_stay(self, bench: Bench) -> None:
        bench.write(
            put(0, "10.1.0.0/16", keepalive=25, endpoint=Endpoint("192.0.2.9", 1), preshared_key=os.urandom(32))
        )
        before = bench.peer()
        bench.write(change(0))
        assert bench.peer() == before

    def test_keepalive_and_preshared_key_are_cleared(self, bench: Bench) -> None:
        bench.write(put(0, keepalive=25, preshared_key=os.urandom(32)))
        bench.write(change(0, keepalive=0, preshared_key=NO_PRESHARED_KEY))
        assert (bench.peer().keepalive, bench.peer().preshared_key) == (0, NO_PRESHARED_KEY)

    def test_allowed_ips_are_added_to_and_replaced(self, bench: Bench) -> None:
        bench.write(put(0, "10.1.0.0/16", "10.2.0.0/16"))
        bench.write(change(0, "10.3.0.0/16"))
        assert bench.peer().allowed_ips == set(networks("10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"))
        bench.write(change(0, "10.2.0.0/16", replace_allowed_ips=True))
        assert bench.peer().allowed_ips == set(networks("10.2.0.0/16"))
        bench.write(change(0, replace_allowed_ips=True))
        assert bench.peer().allowed_ips == set()

    def test_a_change_does_not_bring_back_a_peer_that_vanished(self, bench: Bench) -> None:
        bench.write(change(0, "10.1.0.0/16", keepalive=25))
        assert bench.read().peers == {}

    def test_removing_is_for_one_peer_and_twice_is_harmless(self, bench: Bench) -> None:
        bench.write(put(0), put(1))
        for _ in range(2):
            bench.write(PeerChange("remove", "", KEYS[0]))
            assert set(bench.read().peers) == {KEYS[1]}

    def test_peers_are_replaced_with_one_flag(self, bench: Bench) -> None:
        bench.write(put(0), put(1))
        assert bench.write(SetDevice(replace_peers=True), put(2)) == 1
        assert set(bench.read().peers) == {KEYS[2]}

    def test_a_thousand_peers(self, bench: Bench) -> None:
        peers = [put(n, f"10.{n // 256}.{n % 256}.0/24", f"fd00:{n:x}::/32", keepalive=n + 1) for n in range(1000)]
        messages = bench.write(*peers)
        assert messages < 10
        found = bench.read().peers
        assert {key: peer.keepalive for key, peer in found.items()} == {KEYS[n]: n + 1 for n in range(1000)}
        assert all(found[one.public_key].allowed_ips == set(one.allowed_ips) for one in peers)

    def test_a_peer_with_more_allowed_ips_than_one_message_holds(self, bench: Bench) -> None:
        many = [f"10.{high}.{low}.0/32" for high in (1, 2) for low in range(255)]
        many += [f"fd00:{n:x}::/64" for n in range(600)]
        bench.write(put(0, "10.9.0.0/16", keepalive=3), put(1, *many, keepalive=4), put(2, "10.8.0.0/16", keepalive=5))
        found = bench.read().peers
        assert found[KEYS[1]].allowed_ips == set(networks(*many))
        assert [found[KEYS[n]].keepalive for n in range(3)] == [3, 4, 5]
        bench.write(change(1, *many[:-1], replace_allowed_ips=True))
        assert bench.peer(1).allowed_ips == set(networks(*many[:-1]))

    def test_a_link_that_is_gone_is_no_device(self, bench: Bench) -> None:
        bench.call(lambda: bench.device.remove(NAME))
        assert bench.links.find(NAME) is None
        assert bench.call(lambda: bench.device.read(NAME)) is None
        assert not bench.host.call(lambda: socket_path(NAME)).exists()
        bench.call(lambda: bench.device.remove(NAME))
