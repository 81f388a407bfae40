"""Scalars of the contract: what is a name, a tag, a key, an address; and what only looks like one."""

import base64
import ipaddress

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from controller.wire.base import (
    NodeName,
    check_address,
    check_endpoint,
    check_name,
    check_prefix,
    check_public_key,
    check_tag,
    format_endpoint,
    split_endpoint,
)

FIELD_PRIME = 2**255 - 19
ORDER_8 = (
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
)


def encode(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def exchange_refuses(raw: bytes) -> bool:
    """OpenSSL refuses an exchange whose result is all zero (RFC 7748 section 6.1)."""
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError:
        return True
    return False


def check_refuses(raw: bytes) -> bool:
    try:
        check_public_key(encode(raw))
    except ValueError as error:
        return "low-order" in str(error)
    return False


@pytest.mark.parametrize("name", ["a", "db1", "9", "a-b", "x" * 63, "xn--bcher-kva"])
def test_dns_labels_are_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "a-", "A", "a.b", "a_b", "x" * 64, "a b", "a\n", "a\0", "../etc", "tag:a", "*"]
)
def test_what_is_not_a_dns_label_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a DNS label"):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["\u0430gent", "db\uff11", "\u2170", "caf\u00e9", "a\u200bb", "\u0131nfra", "a\u00adb"]
)
def test_look_alikes_are_refused_and_named_by_code_point(name: str) -> None:
    with pytest.raises(ValueError, match=r"U\+[0-9A-F]{4}"):
        check_name(name)


@given(st.text(max_size=70))
def test_a_name_that_exists_is_ascii_and_survives_dns(name: str) -> None:
    try:
        TypeAdapter(NodeName).validate_python(name)
    except ValidationError:
        return
    assert name.encode("ascii").decode("idna") == name or name.startswith("xn--")
    assert 1 <= len(name) <= 63
    assert name == name.lower()


@pytest.mark.parametrize("tag", ["agents", "tag:", "tag:A", "Tag:a", "tag:a:b", "tag: a", ":a", "tag"])
def test_tags_are_written_with_their_prefix(tag: str) -> None:
    with pytest.raises(ValueError):
        check_tag(tag)


@pytest.mark.parametrize("top_bit", [0, 1])
@pytest.mark.parametrize("coordinate", [0, 1, *ORDER_8, *range(FIELD_PRIME - 1, 2**255)])
def test_small_and_non_canonical_coordinates_are_refused_exactly_when_an_exchange_refuses_them(
    coordinate: int, top_bit: int
) -> None:
    raw = (coordinate | top_bit << 255).to_bytes(32, "little")
    assert check_refuses(raw) == exchange_refuses(raw)


def test_every_point_of_small_order_is_refused() -> None:
    for coordinate in (0, 1, *ORDER_8, FIELD_PRIME - 1, FIELD_PRIME, FIELD_PRIME + 1):
        assert check_refuses(coordinate.to_bytes(32, "little"))


@given(st.binary(min_size=32, max_size=32))
def test_any_key_is_refused_exactly_when_an_exchange_refuses_it(raw: bytes) -> None:
    assert check_refuses(raw) == exchange_refuses(raw)


@pytest.mark.parametrize(
    "key", ["", "A" * 43, "A" * 44, encode(b"x" * 31), encode(b"x" * 33), encode(b"x" * 32)[:-1], "\u0410" * 44]
)
def test_what_is_not_a_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="44 base64 characters"):
        check_public_key(key)


def test_a_key_has_one_spelling_only() -> None:
    key = encode(b"\x02" * 32)
    other = key[:-2] + chr(ord(key[-2]) + 1) + "="
    assert base64.b64decode(other) == base64.b64decode(key)
    with pytest.raises(ValueError):
        check_public_key(other)


@given(st.ip_addresses())
def test_addresses_are_canonical(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    assert check_address(address.exploded) == str(address)


@pytest.mark.parametrize(
    "address", ["", "1.2.3", "1.2.3.4/32", "01.2.3.4", "fe80::1%eth0", "localhost", "1.2.3.4 ", "1"]
)
def test_what_is_not_an_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        check_address(address)


def test_a_prefix_has_no_host_bits() -> None:
    assert check_prefix("2001:DB8:0::/48") == "2001:db8::/48"
    with pytest.raises(ValueError, match="host bits"):
        check_prefix("192.0.2.1/24")


@given(st.ip_addresses(), st.integers(1, 65535))
def test_endpoints_round_trip(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = format_endpoint(str(address), port)
    assert split_endpoint(text) == (str(address), port)
    assert check_endpoint(text) == text


@pytest.mark.parametrize(
    "endpoint",
    [
        "192.0.2.1",
        "192.0.2.1:0",
        "192.0.2.1:65536",
        "2001:db8::1:51820",
        "[192.0.2.1]:1",
        ":1",
        "h:1",
        "[::1]",
        "[::1%lo]:1",
    ],
)
def test_what_is_not_an_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError):
        check_endpoint(endpoint)
