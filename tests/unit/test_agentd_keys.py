"""The host's keys: what WireGuard itself would accept, and nothing of them in an error."""

import base64

import pytest
from cryptography import x509

from agentd.keys import IdentityKey, KeyDamagedError, WireguardKey
from controller.wire.base import check_public_key


def test_a_wireguard_key_survives_its_text() -> None:
    key = WireguardKey.generate()
    again = WireguardKey.parse(key.text)
    assert (again.raw, again.public) == (key.raw, key.public)
    assert check_public_key(key.public)


def test_the_public_key_is_the_standards() -> None:
    """RFC 7748 section 6.1, Alice's keys."""
    private = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    assert WireguardKey.parse(base64.b64encode(private)).public == base64.b64encode(public).decode()


@pytest.mark.parametrize("text", [b"", b"\0\1\2", b"AAAA\n", WireguardKey.generate().text[:-3]])
def test_a_damaged_wireguard_key_is_refused_without_being_repeated(text: bytes) -> None:
    with pytest.raises(KeyDamagedError) as raised:
        WireguardKey.parse(text)
    assert text.decode(errors="replace").strip() == "" or text.decode(errors="replace").strip() not in str(raised.value)


def test_an_identity_key_survives_its_text() -> None:
    key = IdentityKey.generate()
    assert IdentityKey.parse(key.text).text == key.text


@pytest.mark.parametrize("text", [b"", b"-----BEGIN PRIVATE KEY-----\n", IdentityKey.generate().text[:60]])
def test_a_damaged_identity_key_is_refused(text: bytes) -> None:
    with pytest.raises(KeyDamagedError):
        IdentityKey.parse(text)


def test_a_request_proves_the_key() -> None:
    request = x509.load_pem_x509_csr(IdentityKey.generate().request("db-1").encode())
    assert request.is_signature_valid
