"""Certificates of services: nodes get one for what policy lets them serve, for its names, and for nothing else."""

import ipaddress
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from controller.server import Running
from controller.settings import Settings
from controller.wire.stream import Snapshot

from .hosts import Host, make_csr, new_node
from .serving import POLICY
from .streams import agent, patch
from .support import Client, MovableClock
from .test_policy_use import put


@pytest.fixture
async def host(admin: Client, anyone: Client) -> Host:
    """One that may serve github, and the policy that says so."""
    made = await new_node(admin, anyone, "tools1", tags=["tag:tools"])
    await put(admin, POLICY)
    return made


async def ask(
    controller: Running, directory: Path, host: Host, name: str = "github", csr: str | None = None
) -> httpx.Response:
    """What the controller answers to this host."""
    tls = host.tls(controller, directory)
    csr = csr or make_csr(ec.generate_private_key(ec.SECP256R1()))
    async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{controller.port}/api/v1", verify=tls) as itself:
        return await itself.post(f"/services/{name}/certificate", json={"csr": csr})


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:wardmesh:problem:")


def read(answer: httpx.Response) -> x509.Certificate:
    assert answer.status_code == 200, answer.text
    return x509.load_pem_x509_certificate(answer.json()["certificate"].encode())


async def test_it_is_for_the_names_and_addresses_of_the_service_and_for_servers_only(
    controller: Running, admin: Client, host: Host, clock: MovableClock, settings: Settings, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = read(await ask(controller, tmp_path, host, csr=make_csr(key)))
    certificate.verify_directly_issued_by(controller.context.authority.certificate)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = (await admin.get("/services/github")).json()["addresses"]
    assert set(names) == {
        x509.DNSName("github.mesh.internal"),
        *(x509.IPAddress(ipaddress.ip_address(one)) for one in addresses),
    }
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    left = certificate.not_valid_after_utc - clock()
    assert settings.node_lifetime - timedelta(minutes=10) < left <= settings.node_lifetime


async def test_every_host_that_may_serve_gets_one_before_it_holds_the_service(
    controller: Running, admin: Client, anyone: Client, host: Host, tmp_path: Path
) -> None:
    other = await new_node(admin, anyone, "tools2", tags=["tag:tools"])
    found = [read(await ask(controller, tmp_path, one)) for one in (host, other, host)]
    assert len({certificate.serial_number for certificate in found}) == 3


@pytest.mark.parametrize(
    ("tags", "name", "expected"),
    [
        (["tag:agents"], "github", (409, "node-cannot-serve")),
        ([], "github", (409, "node-cannot-serve")),
        (["tag:tools"], "gitlab", (404, "not-found")),
        (["tag:tools"], "db", (404, "not-found")),
    ],
)
async def test_nobody_gets_one_for_what_it_may_not_serve(
    controller: Running,
    admin: Client,
    anyone: Client,
    tmp_path: Path,
    tags: list[str],
    name: str,
    expected: tuple[int, str],
) -> None:
    node = await new_node(admin, anyone, "node", tags=tags)
    await put(admin, POLICY.replace("grants:", "  db: {on: tag:tools, port: 5432}\ngrants:"))
    answer = await ask(controller, tmp_path, node, name)
    assert refusal(answer) == expected
    assert "certificate" not in answer.json()


async def test_a_node_that_is_disabled_or_waits_or_was_removed_gets_none(
    controller: Running, admin: Client, anyone: Client, host: Host, tmp_path: Path
) -> None:
    waiting = await new_node(admin, anyone, "waiting", tags=["tag:tools"], approved=False)
    assert refusal(await ask(controller, tmp_path, waiting)) == (409, "node-cannot-serve")
    await patch(admin, host, state="disabled")
    assert refusal(await ask(controller, tmp_path, host)) == (403, "node-disabled")
    await patch(admin, host, state="active")
    assert (await ask(controller, tmp_path, host)).status_code == 200
    assert (await admin.delete(f"/nodes/{host.enrolled.node_id}")).status_code == 204
    assert refusal(await ask(controller, tmp_path, host)) == (403, "node-removed")


async def test_when_policy_takes_the_service_away_the_next_one_is_refused(
    controller: Running, admin: Client, host: Host, tmp_path: Path
) -> None:
    assert (await ask(controller, tmp_path, host)).status_code == 200
    await put(admin, POLICY.replace("on: [tag:tools]", "on: [tag:others]"))
    assert refusal(await ask(controller, tmp_path, host)) == (409, "node-cannot-serve")


async def test_a_token_is_not_enough_not_even_an_admins(admin: Client, anyone: Client, host: Host) -> None:
    for client in (admin, anyone):
        answer = await client.post("/services/github/certificate", json={"csr": host.csr})
        assert refusal(answer) == (401, "certificate-required")


def _of_another_curve() -> str:
    return make_csr(ec.generate_private_key(ec.SECP384R1()))


@pytest.mark.parametrize("csr", ["not a request", _of_another_curve()])
async def test_a_request_that_is_none_is_refused(controller: Running, host: Host, tmp_path: Path, csr: str) -> None:
    assert refusal(await ask(controller, tmp_path, host, csr=csr)) == (422, "bad-csr")


async def test_it_opens_no_stream(controller: Running, host: Host, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (await ask(controller, tmp_path, host, csr=make_csr(key))).json()["certificate"]
    file = tmp_path / "service.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(certificate.encode() + key.private_bytes(encoding, form, serialization.NoEncryption()))
    context = ssl.create_default_context(cadata=controller.context.authority.pem)
    context.load_cert_chain(file)
    # OpenSSL refuses it at once: it is not for clients (RFC 5280 section 4.2.1.12).
    with pytest.raises(httpx.TransportError):
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{controller.port}/api/v1", verify=context) as itself:
            await itself.post("/services/github/certificate", json={"csr": make_csr(key)})


async def test_hosts_get_the_ca_that_services_are_trusted_by_with_their_map(
    controller: Running, admin: Client, host: Host, tmp_path: Path
) -> None:
    async with agent(controller, host, tmp_path) as stream:
        first: Any = await stream.hello()
    assert isinstance(first, Snapshot)
    assert first.netmap.mesh.ca == controller.context.authority.pem
    assert (await admin.get("/status")).json()["mesh"]["ca"] == controller.context.authority.pem
    assert first.netmap.services["github"].tls_port == 443
