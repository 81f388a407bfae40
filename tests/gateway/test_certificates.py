"""How the gateway keeps the certificate of a service: when it is made, renewed, replaced, refused and removed."""

import stat
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from agentd.gateway.certificates import Certificates
from controller.wire.mcp import HttpUpstream, Service
from tests.gateway.agent import HELD
from tests.gateway.authority import HOSTS, NAME, Authority

SERVICE = Service(
    name="svc", addresses=(HELD,), names=(NAME, "svc"), tls_port=443, upstream=HttpUpstream(url="http://127.0.0.1:9/")
)


class Kept:
    """What keeps the certificate of SERVICE, at a time that a test moves."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.authority = authority
        self.file = directory / "svc.pem"
        self.certificates = Certificates(directory, authority.certify, now=lambda: authority.now)
        self.certificates.adopt({"svc": SERVICE})

    @property
    def certificate(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.file.read_bytes())


@pytest.fixture
def kept(tmp_path: Path, authority: Authority) -> Kept:
    return Kept(tmp_path / "tls", authority)


async def test_the_key_is_private_and_a_new_one_each_time(kept: Kept, authority: Authority) -> None:
    assert kept.certificates.context("svc") is None
    assert await kept.certificates.look()
    assert stat.S_IMODE(kept.file.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.file.parent.stat().st_mode) == 0o700
    first = kept.certificate.public_key()
    assert isinstance(first, ec.EllipticCurvePublicKey)
    authority.now += timedelta(hours=60)
    assert not await kept.certificates.look()
    assert kept.certificate.public_key() != first


async def test_it_is_renewed_when_a_third_of_its_life_remains_and_not_before(kept: Kept, authority: Authority) -> None:
    begin = authority.now
    for hours, asked in ((0, 1), (0, 1), (47, 1), (49, 2), (72, 2)):
        authority.now = begin + timedelta(hours=hours)
        await kept.certificates.look()
        assert len(authority.asked) == asked, hours


async def test_one_that_ended_is_said_and_replaced(kept: Kept, authority: Authority) -> None:
    await kept.certificates.look()
    authority.now += timedelta(days=30)
    assert "ended at" in kept.certificates.problems()["svc"]
    await kept.certificates.look()
    assert kept.certificates.problems() == {}
    assert kept.certificate.not_valid_after_utc > authority.now


async def test_one_for_other_names_or_addresses_is_replaced(kept: Kept, authority: Authority) -> None:
    await kept.certificates.look()
    authority.hosts = (*HOSTS, "127.0.0.6")
    kept.certificates.adopt({"svc": SERVICE.model_copy(update={"addresses": (HELD, "127.0.0.6")})})
    await kept.certificates.look()
    assert len(authority.asked) == 2


async def test_what_is_on_the_disk_is_used_after_a_restart(kept: Kept, authority: Authority, tmp_path: Path) -> None:
    await kept.certificates.look()
    authority.refusal = "the controller is away"
    again = Certificates(tmp_path / "tls", authority.certify, now=lambda: authority.now)
    again.adopt({"svc": SERVICE})
    assert again.context("svc") is not None
    await again.look()
    assert len(authority.asked) == 1


async def test_a_damaged_file_is_replaced(kept: Kept, tmp_path: Path, authority: Authority) -> None:
    await kept.certificates.look()
    kept.file.write_bytes(kept.file.read_bytes()[:100])
    again = Certificates(tmp_path / "tls", authority.certify, now=lambda: authority.now)
    again.adopt({"svc": SERVICE})
    assert again.context("svc") is None
    assert await again.look()
    assert again.problems() == {}


async def test_a_refusal_is_said_and_not_asked_for_in_a_tight_loop(kept: Kept, authority: Authority) -> None:
    authority.refusal = "'n1' may not serve 'svc'"
    for _ in range(3):
        assert not await kept.certificates.look()
    assert kept.certificates.problems() == {"svc": authority.refusal}
    assert authority.asked == ["svc"]


async def test_a_certificate_for_another_key_is_not_taken(kept: Kept, authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    certificate = authority.ca.issue_service(key, HOSTS, now=authority.now, lifetime=authority.lifetime)

    async def certify(_service: str, _csr: str) -> str:
        return certificate

    other = Certificates(kept.file.parent, certify)
    other.adopt({"svc": SERVICE})
    await other.look()
    assert "another key" in other.problems()["svc"]
    assert not kept.file.exists()


async def test_the_key_of_a_service_that_is_served_here_no_more_is_removed(kept: Kept) -> None:
    await kept.certificates.look()
    kept.certificates.adopt({})
    assert not kept.file.exists()
    assert kept.certificates.context("svc") is None
