"""When a certificate is renewed, on any clock, and how two clocks are told apart."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.x509.oid import NameOID

from agentd.clock import describe_clocks, parse_date, skew
from agentd.renew import due

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "n1")])


def certificate(begin: datetime, end: datetime) -> x509.Certificate:
    key = generate_private_key(SECP256R1())
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 1, begin, end)
    return builder.sign(key, hashes.SHA256())


def test_a_certificate_is_renewed_when_a_third_of_its_life_remains() -> None:
    issued = certificate(NOW - timedelta(hours=48), NOW + timedelta(days=30))
    assert due(issued) == NOW + timedelta(days=20)


def test_a_short_life_is_not_spent_on_renewing() -> None:
    issued = certificate(NOW - timedelta(hours=48), NOW + timedelta(hours=24))
    assert due(issued) == NOW + timedelta(hours=16)


def test_a_certificate_that_is_not_dated_back_is_renewed_in_its_life() -> None:
    issued = certificate(NOW, NOW + timedelta(hours=1))
    assert NOW < due(issued) <= NOW + timedelta(hours=1)


@pytest.mark.parametrize("header", [None, "", "yesterday", "Fri, 99 Nov 2026 12:00:00 GMT"])
def test_a_date_that_cannot_be_read_is_none(header: str | None) -> None:
    assert parse_date(header) is None


def test_a_date_header_is_utc() -> None:
    assert parse_date("Fri, 20 Nov 2026 12:00:00 GMT") == NOW


@pytest.mark.parametrize(
    ("there", "ahead"),
    [
        (None, timedelta(0)),
        (NOW + timedelta(minutes=4), timedelta(0)),
        (NOW + timedelta(days=1), timedelta(days=-1)),
        (NOW - timedelta(days=1), timedelta(days=1)),
    ],
)
def test_skew_is_what_somebody_would_notice(there: datetime | None, ahead: timedelta) -> None:
    assert skew(NOW, there) == ahead


def test_both_clocks_are_told() -> None:
    told = describe_clocks(NOW, NOW + timedelta(days=1))
    assert "2026-11-20 12:00 UTC" in told
    assert "2026-11-21 12:00 UTC" in told
    assert "timedatectl" in told
