"""How a host becomes a node: the good way once, and every bad input that a person or an attacker may send."""

import asyncio
import hashlib
import ssl
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.identity.ca import CertificateAuthority
from controller.server import Running
from controller.wire.enrol import JoinString

from .hosts import Host, make_csr, map_of, new_key, new_node, wireguard_key
from .support import Client, MovableClock


def problem(response: httpx.Response) -> str:
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["type"]).removeprefix("urn:wardmesh:problem:")


async def test_the_join_string_pins_the_certificate_that_signed_the_servers(admin: Client, controller: Running) -> None:
    join = JoinString.decode((await admin.post("/enrolment-keys", json={})).json()["join"])
    assert join.url == f"https://127.0.0.1:{controller.port}"
    async with httpx.AsyncClient(verify=False) as unverified:
        pem = (await unverified.get(f"{join.url}/ca.pem")).text
    assert hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest() == join.ca
    async with httpx.AsyncClient(verify=ssl.create_default_context(cadata=pem)) as pinned:
        assert (await pinned.get(f"{join.url}/api/v1/health")).json()["status"] == "ok"


async def test_a_host_becomes_a_node(admin: Client, anyone: Client, controller: Running) -> None:
    host = await new_node(admin, anyone, "web", tags=["tag:tools"])
    node = (await admin.get(f"/nodes/{host.enrolled.node_id}")).json()
    assert (node["name"], node["state"], node["tags"]) == ("web", "active", ["tag:tools"])
    assert node["public_key"] == host.public_key
    assert tuple(node["addresses"]) == host.enrolled.addresses
    assert host.enrolled.mesh == controller.context.mesh
    assert map_of(controller, host.enrolled.node_id).node.name == "web"


async def test_the_certificate_says_which_node_of_which_mesh(
    admin: Client, anyone: Client, controller: Running
) -> None:
    host = await new_node(admin, anyone, "web")
    certificate = x509.load_pem_x509_certificate(host.enrolled.certificate.encode())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    now = datetime.now(UTC)
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == host.enrolled.node_id
    uri = f"wardmesh://{controller.context.mesh.id}/node/{host.enrolled.node_id}"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [uri]
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert certificate.public_key() == host.identity.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(host.enrolled.ca.encode()))
    assert certificate.not_valid_before_utc < now - timedelta(hours=47)
    assert now + timedelta(hours=71) < certificate.not_valid_after_utc < now + timedelta(hours=73)


async def test_of_fifty_hosts_with_a_one_shot_key_one_joins(admin: Client, anyone: Client) -> None:
    key = await new_key(admin)
    responses = await asyncio.gather(*(Host(f"h{n}").ask(anyone, key) for n in range(50)))
    assert sorted(response.status_code for response in responses) == [200] + [403] * 49
    assert {problem(response) for response in responses if response.status_code == 403} == {"enrolment-key-used-up"}
    assert len((await admin.get("/nodes")).json()["items"]) == 1


async def test_a_key_with_a_use_limit_admits_so_many(admin: Client, anyone: Client) -> None:
    key = await new_key(admin, uses=3)
    responses = await asyncio.gather(*(Host(f"h{n}").ask(anyone, key) for n in range(6)))
    assert sorted(response.status_code for response in responses) == [200] * 3 + [403] * 3
    [shown] = (await admin.get("/enrolment-keys")).json()["items"]
    assert (shown["used"], shown["uses"]) == (3, 3)


async def test_an_unknown_key_is_refused(anyone: Client) -> None:
    response = await Host("h").ask(anyone, "wmk_0123456789_nonsense")
    assert (response.status_code, problem(response)) == (403, "enrolment-key-unknown")
    assert "wardmesh key create" in response.json()["detail"]


async def test_an_expired_key_is_refused(admin: Client, anyone: Client, clock: MovableClock) -> None:
    key = await new_key(admin, ttl=60)
    clock.advance(seconds=61)
    response = await Host("h").ask(anyone, key)
    assert problem(response) == "enrolment-key-expired"


async def test_a_revoked_key_is_refused(admin: Client, anyone: Client) -> None:
    created = (await admin.post("/enrolment-keys", json={})).json()
    assert (await admin.delete(f"/enrolment-keys/{created['key']['id']}")).status_code == 204
    response = await Host("h").ask(anyone, JoinString.decode(created["join"]).key)
    assert problem(response) == "enrolment-key-revoked"
    assert (await admin.get(f"/enrolment-keys/{created['key']['id']}")).json()["revoked"] is not None


async def test_a_refused_host_does_not_use_the_key_up(admin: Client, anyone: Client) -> None:
    await new_node(admin, anyone, "web")
    key = await new_key(admin)
    assert problem(await Host("web").ask(anyone, key)) == "name-taken"
    assert (await Host("web2").ask(anyone, key)).status_code == 200


async def test_a_host_that_lost_the_answer_gets_the_same_node(admin: Client, anyone: Client) -> None:
    key = await new_key(admin)
    host = Host("web")
    first, second = await asyncio.gather(host.ask(anyone, key), host.ask(anyone, key))
    third = await host.ask(anyone, key)
    assert {response.status_code for response in (first, second, third)} == {200}
    assert len({response.json()["node_id"] for response in (first, second, third)}) == 1
    [shown] = (await admin.get("/enrolment-keys")).json()["items"]
    assert shown["used"] == 1
    assert [entry["action"] for entry in (await admin.get("/audit")).json()["items"]][:2] == [
        "host:node:enrol",
        "admin:key:create",
    ]


async def test_an_identity_that_is_a_node_cannot_join_with_another_key(admin: Client, anyone: Client) -> None:
    host = await new_node(admin, anyone, "web")
    response = await host.ask(anyone, await new_key(admin), name="other", public_key=wireguard_key())
    assert (response.status_code, problem(response)) == (409, "identity-in-use")
    assert "agentd leave" in response.json()["detail"]


async def test_a_repeated_enrolment_with_another_wireguard_key_is_refused(admin: Client, anyone: Client) -> None:
    key = await new_key(admin, uses=5)
    host = Host("web")
    await host.enrol(anyone, key)
    assert problem(await host.ask(anyone, key, public_key=wireguard_key())) == "identity-in-use"


async def test_a_node_that_was_deleted_may_join_again_with_a_new_key(admin: Client, anyone: Client) -> None:
    host = await new_node(admin, anyone, "web")
    await admin.delete(f"/nodes/{host.enrolled.node_id}")
    before = host.enrolled.node_id
    assert (await host.enrol(anyone, await new_key(admin))).node_id != before


async def test_an_unapproved_key_makes_a_node_that_waits(admin: Client, anyone: Client, controller: Running) -> None:
    host = await new_node(admin, anyone, "web", approved=False)
    assert host.enrolled.state == "pending"
    assert map_of(controller, host.enrolled.node_id).peers == {}
    assert (await admin.get("/status")).json()["pending"] == 1


async def test_a_duplicate_name_comes_with_a_free_one(admin: Client, anyone: Client) -> None:
    await new_node(admin, anyone, "web")
    await new_node(admin, anyone, "web-2")
    response = await Host("web").ask(anyone, await new_key(admin))
    assert (response.status_code, response.json()["errors"]) == (409, [{"free": "web-3"}])
    assert "'web-3' is free" in response.json()["detail"]


async def test_the_free_name_of_a_very_long_one_is_still_a_label(admin: Client, anyone: Client) -> None:
    name = "a" * 63
    await new_node(admin, anyone, name)
    response = await Host(name).ask(anyone, await new_key(admin))
    assert response.json()["errors"] == [{"free": "a" * 61 + "-2"}]


async def test_a_public_key_in_use_is_refused(admin: Client, anyone: Client) -> None:
    host = await new_node(admin, anyone, "web")
    response = await Host("other").ask(anyone, await new_key(admin), public_key=host.public_key)
    assert (response.status_code, problem(response)) == (409, "public-key-in-use")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "Web"}, "not a DNS label"),
        ({"name": "a_b"}, "not a DNS label"),
        ({"name": "-a"}, "not a DNS label"),
        ({"name": "a" * 64}, "not a DNS label"),
        ({"name": ""}, "not a DNS label"),
        ({"name": "w\u0435b"}, "only looks like"),
        ({"public_key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, "low-order"),
        ({"public_key": "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, "low-order"),
        ({"public_key": "tooshort"}, "44 base64"),
        ({"addresses": ["100.88.0.0"]}, "reserved"),
        ({"addresses": ["100.88.0.1"]}, "reserved"),
        ({"addresses": ["100.88.255.255"]}, "reserved"),
        ({"addresses": ["192.0.2.1"]}, "outside the mesh"),
        ({"addresses": ["2001:db8::1"]}, "outside the mesh"),
        ({"addresses": ["nonsense"]}, "not an IP address"),
        ({"endpoints": ["192.0.2.1"]}, "not an endpoint"),
        ({"csr": "nonsense"}, "cannot be read"),
        ({"csr": make_csr(ec.generate_private_key(ec.SECP384R1()))}, "not P-256"),
        ({"surprise": 1}, "Extra inputs"),
    ],
)
async def test_bad_input_is_refused_with_a_sentence(
    admin: Client, anyone: Client, changes: dict[str, object], says: str
) -> None:
    response = await Host("web").ask(anyone, await new_key(admin), **changes)
    assert response.status_code == 422
    assert says in response.json()["detail"]
    assert (await admin.get("/nodes")).json()["items"] == []


async def test_a_csr_of_a_key_type_that_we_do_not_issue_for_is_refused(admin: Client, anyone: Client) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, None)
    pem = csr.public_bytes(Encoding.PEM)
    response = await Host("web").ask(anyone, await new_key(admin), csr=pem.decode())
    assert problem(response) == "bad-csr"


async def test_a_csr_that_its_key_did_not_sign_is_refused(admin: Client, anyone: Client) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(Host("x").csr.replace("CERTIFICATE REQUEST", "CERTIFICATE")))
    der[-1] ^= 1
    forged = ssl.DER_cert_to_PEM_cert(bytes(der)).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    response = await Host("web").ask(anyone, await new_key(admin), csr=forged)
    assert problem(response) == "bad-csr"


async def test_a_requested_address_is_given(admin: Client, anyone: Client) -> None:
    host = Host("web")
    answer = await host.enrol(anyone, await new_key(admin), addresses=["100.88.7.7"])
    assert answer.addresses[0] == "100.88.7.7"
    response = await Host("other").ask(anyone, await new_key(admin), addresses=["100.88.7.7"])
    assert (response.status_code, problem(response)) == (409, "address-taken")


class TestRenewal:
    async def renew(self, client: Client, host: Host, **changes: str) -> httpx.Response:
        body = {"certificate": host.enrolled.certificate, "csr": host.csr, **changes}
        return await client.post("/renew", json=body)

    async def test_gives_the_next_certificate(self, admin: Client, anyone: Client, clock: MovableClock) -> None:
        host = await new_node(admin, anyone, "web")
        clock.advance(hours=48)
        response = await self.renew(anyone, host)
        assert response.status_code == 200
        old, new = (
            x509.load_pem_x509_certificate(pem.encode())
            for pem in (host.enrolled.certificate, response.json()["certificate"])
        )
        assert new.not_valid_after_utc - old.not_valid_after_utc == pytest.approx(
            timedelta(hours=48), abs=timedelta(seconds=5)
        )
        assert new.subject == old.subject
        assert new.public_key() == old.public_key()

    async def test_works_long_after_expiry(self, admin: Client, anyone: Client, clock: MovableClock) -> None:
        host = await new_node(admin, anyone, "web")
        clock.advance(days=90)
        assert (await self.renew(anyone, host)).status_code == 200

    async def test_works_while_waiting_for_approval(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "web", approved=False)
        assert (await self.renew(anyone, host)).status_code == 200

    async def test_is_refused_after_deletion(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "web")
        await admin.delete(f"/nodes/{host.enrolled.node_id}")
        response = await self.renew(anyone, host)
        assert (response.status_code, problem(response)) == (403, "node-removed")

    async def test_is_refused_while_disabled(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "web")
        await admin.patch(f"/nodes/{host.enrolled.node_id}", json={"state": "disabled"}, headers={"if-match": "*"})
        response = await self.renew(anyone, host)
        assert (response.status_code, problem(response)) == (403, "node-disabled")

    async def test_is_refused_with_another_key(self, admin: Client, anyone: Client) -> None:
        host = await new_node(admin, anyone, "web")
        assert problem(await self.renew(anyone, host, csr=Host("thief").csr)) == "bad-csr"

    async def test_is_refused_for_a_certificate_of_another_ca(
        self, admin: Client, anyone: Client, controller: Running
    ) -> None:
        host = await new_node(admin, anyone, "web")
        other = CertificateAuthority.create("mesh", datetime.now(UTC))
        forged = other.issue_node(
            host.identity.public_key(),
            node_id=host.enrolled.node_id,
            mesh_id=controller.context.mesh.id,
            now=datetime.now(UTC),
            lifetime=timedelta(hours=1),
        )
        assert problem(await self.renew(anyone, host, certificate=forged)) == "bad-certificate"

    @pytest.mark.parametrize(
        "certificate", ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    )
    async def test_is_refused_for_garbage(self, anyone: Client, certificate: str) -> None:
        response = await anyone.post("/renew", json={"certificate": certificate, "csr": Host("x").csr})
        assert problem(response) == "bad-certificate"

    async def test_is_refused_for_the_cas_own_certificate(self, anyone: Client, controller: Running) -> None:
        body = {"certificate": controller.context.authority.pem, "csr": Host("x").csr}
        assert problem(await anyone.post("/renew", json=body)) == "bad-certificate"
