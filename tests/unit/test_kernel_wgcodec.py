"""Our WireGuard messages, read back by pyroute2's decoder, which knows nothing of our encoder."""

import base64
import os
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink.generic.wireguard import (
    WGDEVICE_F_REPLACE_PEERS,
    WGPEER_F_REMOVE_ME,
    WGPEER_F_REPLACE_ALLOWEDIPS,
    WGPEER_F_UPDATE_ONLY,
    wgmsg,
)

from agentd.kernel.device import DeviceChange
from agentd.kernel.wgcodec import FRAGMENT, decode_device, encode_changes
from agentd.model import NO_PRESHARED_KEY, Endpoint, Network
from agentd.operations import PeerChange, SetDevice

PRIVATE = bytes(range(32))
KEYS = [base64.b64encode(os.urandom(32)).decode() for _ in range(50)]


def decode(payload: bytes) -> Any:
    message = wgmsg(struct.pack("=IHHII", len(payload) + 16, 0, 0, 0, 0) + payload)
    message.decode()
    return message


def messages(*changes: DeviceChange, limit: int = FRAGMENT) -> list[Any]:
    payloads = list(encode_changes("wg0", changes, PRIVATE, limit=limit))
    assert all(len(payload) <= limit for payload in payloads)
    return [decode(payload) for payload in payloads]


def peers(message: Any) -> list[Any]:
    return message.get_attr("WGDEVICE_A_PEERS") or []


def allowed(peer: Any) -> list[str]:
    return [item["addr"] for item in peer.get_attr("WGPEER_A_ALLOWEDIPS") or []]


def add(index: int, *networks: str, **fields: Any) -> PeerChange:
    return PeerChange(
        "add", f"p{index}", KEYS[index], allowed_ips=tuple(Network.parse(network) for network in networks), **fields
    )


def test_no_changes_are_no_messages() -> None:
    assert messages() == []


def test_a_device_change_alone_is_one_message() -> None:
    (message,) = messages(SetDevice(public_key="x", listen_port=51820))
    assert message.get_attr("WGDEVICE_A_IFNAME") == "wg0"
    assert base64.b64decode(message.get_attr("WGDEVICE_A_PRIVATE_KEY")) == PRIVATE
    assert message.get_attr("WGDEVICE_A_LISTEN_PORT") == 51820
    assert message.get_attr("WGDEVICE_A_FLAGS") is None
    assert peers(message) == []


def test_unset_fields_are_absent_and_zero_is_written() -> None:
    (message,) = messages(
        PeerChange("change", "a", KEYS[0]),
        PeerChange("change", "b", KEYS[1], keepalive=0, preshared_key=NO_PRESHARED_KEY),
    )
    unset, zero = peers(message)
    assert [name for name, _ in unset["attrs"]] == ["WGPEER_A_PUBLIC_KEY", "WGPEER_A_FLAGS"]
    assert zero.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 0
    assert base64.b64decode(zero.get_attr("WGPEER_A_PRESHARED_KEY")) == NO_PRESHARED_KEY


@pytest.mark.parametrize(
    ("action", "replace", "flags"),
    [
        ("add", False, None),
        ("add", True, WGPEER_F_REPLACE_ALLOWEDIPS),
        ("change", False, WGPEER_F_UPDATE_ONLY),
        ("change", True, WGPEER_F_UPDATE_ONLY | WGPEER_F_REPLACE_ALLOWEDIPS),
        ("remove", False, WGPEER_F_UPDATE_ONLY | WGPEER_F_REMOVE_ME),
    ],
)
def test_flags_say_what_may_happen_to_the_peer(action: Any, replace: bool, flags: int | None) -> None:
    (message,) = messages(PeerChange(action, "a", KEYS[0], replace_allowed_ips=replace))
    assert peers(message)[0].get_attr("WGPEER_A_FLAGS") == flags


def test_allowed_ips_and_endpoints_of_both_families() -> None:
    (message,) = messages(
        add(0, "100.64.0.1/32", "fd00::/8", endpoint=Endpoint("192.0.2.1", 51820), keepalive=25),
        add(1, endpoint=Endpoint("2001:db8::1", 4242)),
    )
    four, six = peers(message)
    assert allowed(four) == ["100.64.0.1/32", "fd00::/8"]
    assert four.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") == 25
    assert (four.get_attr("WGPEER_A_ENDPOINT")["addr"], four.get_attr("WGPEER_A_ENDPOINT")["port"]) == (
        "192.0.2.1",
        51820,
    )
    assert (six.get_attr("WGPEER_A_ENDPOINT")["addr"], six.get_attr("WGPEER_A_ENDPOINT")["port"]) == (
        "2001:db8::1",
        4242,
    )


def test_the_scope_of_a_link_local_endpoint_is_in_host_order() -> None:
    (payload,) = encode_changes("wg0", [add(0, endpoint=Endpoint("fe80::1", 51820, scope=3))], PRIVATE)
    assert struct.pack("=I", 3) in payload
    assert decode_device([payload]).peers[KEYS[0]].endpoint == Endpoint("fe80::1", 51820, 3)


def test_replace_flags_are_in_the_first_fragment_only() -> None:
    networks = [f"10.{high}.{low}.0/24" for high in range(4) for low in range(100)]
    found = messages(
        SetDevice(public_key="x", replace_peers=True),
        add(0, *networks, replace_allowed_ips=True, keepalive=5),
        limit=2048,
    )
    assert len(found) > 3
    assert [message.get_attr("WGDEVICE_A_FLAGS") for message in found] == [WGDEVICE_F_REPLACE_PEERS] + [None] * (
        len(found) - 1
    )
    flags = [peers(message)[0].get_attr("WGPEER_A_FLAGS") for message in found if peers(message)]
    assert flags[0] == WGPEER_F_REPLACE_ALLOWEDIPS
    assert set(flags[1:]) == {WGPEER_F_UPDATE_ONLY}
    assert sum(message.get_attr("WGDEVICE_A_PRIVATE_KEY") is not None for message in found) == 1
    assert [network for message in found for peer in peers(message) for network in allowed(peer)] == networks


def test_a_fragment_without_room_for_a_peer_is_an_error() -> None:
    with pytest.raises(ValueError, match="no room for one peer"):
        messages(add(0, "10.0.0.0/8"), limit=60)


@given(
    counts=st.lists(st.integers(0, 60), max_size=12),
    limit=st.integers(160, 4000),
    device=st.booleans(),
)
def test_whatever_the_limit_every_peer_arrives_once_and_whole(counts: list[int], limit: int, device: bool) -> None:
    changes: list[DeviceChange] = [SetDevice(listen_port=1, replace_peers=True)] if device else []
    changes += [
        add(index, *(f"10.{index}.{n}.0/24" for n in range(count)), replace_allowed_ips=True, keepalive=index + 1)
        for index, count in enumerate(counts)
    ]
    arrived: dict[str, list[str]] = {}
    heads = 0
    for message in messages(*changes, limit=limit):
        for peer in peers(message):
            key = peer.get_attr("WGPEER_A_PUBLIC_KEY").decode()
            first = key not in arrived
            assert first == bool((peer.get_attr("WGPEER_A_FLAGS") or 0) & WGPEER_F_REPLACE_ALLOWEDIPS)
            heads += peer.get_attr("WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL") is not None
            arrived.setdefault(key, []).extend(allowed(peer))
    assert heads == len(counts)
    assert arrived == {
        KEYS[index]: [f"10.{index}.{n}.0/24" for n in range(count)] for index, count in enumerate(counts)
    }


def test_a_dump_in_parts_is_merged_peer_by_peer() -> None:
    parts = list(
        encode_changes(
            "wg0",
            [add(0, *(f"10.0.{n}.0/24" for n in range(200)), keepalive=7), add(1, "10.1.0.0/16")],
            PRIVATE,
            limit=2048,
        )
    )
    assert len(parts) > 2
    device = decode_device(parts)
    assert len(device.peers[KEYS[0]].allowed_ips) == 200
    assert device.peers[KEYS[0]].keepalive == 7
    assert device.peers[KEYS[1]].allowed_ips == {Network.parse("10.1.0.0/16")}
