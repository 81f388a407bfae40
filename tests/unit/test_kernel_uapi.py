"""The configuration protocol of wireguard-go, as text."""

import base64

from agentd.kernel.userspace import decode_uapi, encode_uapi
from agentd.model import NO_PRESHARED_KEY, Endpoint, Network
from agentd.operations import PeerChange, SetDevice

PRIVATE = bytes.fromhex("a8dac1d8a70a751f0f699fb14ba1cff6b79f4fbd2e2c3aef33c7d3f7d6cda34d")
PUBLIC = "Q5AYIGEbSG4nSyB8YUaLrz8Me7kTMdQnCdJSCmlrJH4="
KEY = base64.b64encode(bytes(range(32))).decode()
HEX = bytes(range(32)).hex()


def test_a_device_change_names_the_private_key_and_nothing_that_is_unset() -> None:
    assert encode_uapi([SetDevice(public_key=PUBLIC)], PRIVATE) == f"set=1\nprivate_key={PRIVATE.hex()}\n\n"


def test_an_added_peer_has_all_its_fields() -> None:
    change = PeerChange(
        "add",
        "a",
        KEY,
        endpoint=Endpoint("2001:db8::1", 51820),
        keepalive=25,
        preshared_key=bytes([1] * 32),
        allowed_ips=(Network.parse("100.64.0.1/32"), Network.parse("fd00::1/128")),
        replace_allowed_ips=True,
    )
    assert encode_uapi([change], PRIVATE).splitlines() == [
        "set=1",
        f"public_key={HEX}",
        f"preshared_key={'01' * 32}",
        "endpoint=[2001:db8::1]:51820",
        "persistent_keepalive_interval=25",
        "replace_allowed_ips=true",
        "allowed_ip=100.64.0.1/32",
        "allowed_ip=fd00::1/128",
        "",
    ]


def test_a_change_does_not_create_and_clears_what_is_zero() -> None:
    change = PeerChange("change", "a", KEY, keepalive=0, preshared_key=NO_PRESHARED_KEY)
    assert encode_uapi([change], PRIVATE).splitlines()[2:-1] == [
        "update_only=true",
        f"preshared_key={'00' * 32}",
        "persistent_keepalive_interval=0",
    ]


def test_a_removal_is_nothing_else() -> None:
    assert encode_uapi([PeerChange("remove", "", KEY)], PRIVATE).splitlines()[1:-1] == [
        f"public_key={HEX}",
        "remove=true",
    ]


def test_the_answer_is_read_whole() -> None:
    device = decode_uapi(
        f"private_key={PRIVATE.hex()}\nlisten_port=51820\nfwmark=0\n"
        f"public_key={HEX}\npreshared_key={'00' * 32}\nprotocol_version=1\nendpoint=[2001:db8::1]:4242\n"
        "last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=500000000\ntx_bytes=3\nrx_bytes=4\n"
        "persistent_keepalive_interval=25\nallowed_ip=100.64.0.1/32\nallowed_ip=fd00::1/128\n"
        f"public_key={'ff' * 32}\nerrno=0\n\n"
    )
    assert device.listen_port == 51820
    assert len(device.peers) == 2
    peer = device.peers[KEY]
    assert (peer.endpoint, peer.last_handshake, peer.keepalive) == (Endpoint("2001:db8::1", 4242), 1700000000.5, 25)
    assert (peer.tx_bytes, peer.rx_bytes, peer.preshared_key) == (3, 4, NO_PRESHARED_KEY)
    assert {str(network) for network in peer.allowed_ips} == {"100.64.0.1/32", "fd00::1/128"}


def test_the_device_without_a_key_has_no_public_key() -> None:
    assert decode_uapi("listen_port=1\nerrno=0\n\n").public_key == ""
