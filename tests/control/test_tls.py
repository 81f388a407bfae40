"""The server's certificate and the clients': what is asked for, what is believed, and what is renewed by itself."""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.types import Receive, Scope, Send

from controller.identity.ca import CertificateAuthority, node_id_of
from controller.identity.peer_certificate import TLS13, node_id, tls_version
from controller.identity.proxy import ProxiedClients, parse_client_cert
from controller.server import Running, running
from controller.settings import Settings
from controller.state_dir import StateDir
from controller.tls import IssuedCertificate, OwnCertificate, ServerTls, TlsError, certificate_hosts
from controller.wire.enrol import JoinString

from .hosts import new_node
from .support import Client, MovableClock, trust


def presented(port: int, context: ssl.SSLContext) -> x509.Certificate:
    """The certificate that the server shows now."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        der = secured.getpeercert(binary_form=True)
    assert der
    return x509.load_der_x509_certificate(der)


Ask = Callable[..., Awaitable[dict[str, Any]]]


class TestServerCertificate:
    async def test_is_for_the_urls_host_and_this_machine(self, settings: Settings, clock: MovableClock) -> None:
        async with running(replace(settings, url="https://mesh.example.com:8443"), clock) as controller:
            certificate = await asyncio.to_thread(presented, controller.port, trust(controller))
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == ["mesh.example.com", "localhost"]
        assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
        assert certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(days=15)

    def test_hosts_include_the_listen_address(self) -> None:
        assert certificate_hosts("https://a.example", "192.0.2.1")[0] == "a.example"
        assert "192.0.2.1" in certificate_hosts("https://a.example", "192.0.2.1")
        assert "0.0.0.0" not in certificate_hosts("https://a.example", "0.0.0.0")
        assert "2001:db8::1" in certificate_hosts("https://[2001:db8::1]:8443", "::")

    async def test_is_replaced_in_the_live_context(self, tmp_path: Path, clock: MovableClock) -> None:
        clock.advance(days=-8)
        state = StateDir(tmp_path / "state")
        state.prepare()
        authority = CertificateAuthority.create("mesh", clock())
        tls = ServerTls(IssuedCertificate(authority, ["127.0.0.1"], state, clock), clients=authority)
        client = ssl.create_default_context(cadata=authority.pem)
        async with serving(tls.context) as port:
            before = await asyncio.to_thread(presented, port, client)
            assert tls.refresh() is False
            clock.advance(days=8)
            assert tls.refresh() is True
            after = await asyncio.to_thread(presented, port, client)
        assert after.serial_number != before.serial_number
        assert after.not_valid_after_utc > before.not_valid_after_utc

    async def test_does_not_change_the_pinned_one(self, settings: Settings, clock: MovableClock) -> None:
        async with running(settings, clock) as first:
            sha256 = first.context.authority.sha256
        clock.advance(days=30)
        async with running(settings, clock) as second:
            assert second.context.authority.sha256 == sha256
            assert second.first_token is None


@asynccontextmanager
async def serving(context: ssl.SSLContext) -> AsyncIterator[int]:
    async def close(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(close, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class TestOwnCertificate:
    @pytest.fixture
    def files(self, tmp_path: Path) -> tuple[Path, Path, Path]:
        authority = CertificateAuthority.create("corporate", datetime.now(UTC))
        certificate, key = authority.issue_server(
            ["localhost", "127.0.0.1"], now=datetime.now(UTC), lifetime=timedelta(1)
        )
        paths = tmp_path / "own.pem", tmp_path / "own.key", tmp_path / "root.pem"
        for path, content in zip(paths, (certificate, key, authority.pem.encode()), strict=True):
            path.write_bytes(content)
        return paths

    async def test_with_its_root_is_pinned_by_join_strings(
        self, settings: Settings, clock: MovableClock, files: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        certificate, key, root = files
        own = replace(settings, tls_cert=certificate, tls_key=key, tls_ca=root)
        async with running(own, clock) as controller:
            context = ssl.create_default_context(cafile=str(root))
            base = f"https://127.0.0.1:{controller.port}"
            headers = {"authorization": f"Bearer {controller.first_token}"}
            async with httpx.AsyncClient(base_url=base, verify=context, headers=headers) as client:
                join = JoinString.decode((await client.post("/api/v1/enrolment-keys", json={})).json()["join"])
                assert (await client.get("/ca.pem")).text == root.read_text()
            assert join.ca == x509.load_pem_x509_certificate(root.read_bytes()).fingerprint(hashes.SHA256()).hex()

    async def test_without_its_root_is_left_to_the_hosts_trust_store(
        self, settings: Settings, clock: MovableClock, files: tuple[Path, Path, Path]
    ) -> None:
        certificate, key, root = files
        async with running(replace(settings, tls_cert=certificate, tls_key=key), clock) as controller:
            assert controller.context.trust.join == "system"
            context = ssl.create_default_context(cafile=str(root))
            async with httpx.AsyncClient(verify=context) as client:
                assert (await client.get(f"https://127.0.0.1:{controller.port}/ca.pem")).status_code == 404

    def test_is_loaded_again_when_its_file_changes(self, files: tuple[Path, Path, Path]) -> None:
        authority = CertificateAuthority.create("mesh", datetime.now(UTC))
        tls = ServerTls(OwnCertificate(*files), clients=authority)
        assert tls.refresh() is False
        content = files[0].read_bytes()
        files[0].unlink()
        assert tls.refresh() is False
        files[0].write_bytes(content)
        assert tls.refresh() is True

    @pytest.mark.parametrize("broken", [0, 1, 2])
    def test_a_file_that_cannot_be_used_is_named(self, files: tuple[Path, Path, Path], broken: int) -> None:
        files[broken].write_text("nonsense")
        authority = CertificateAuthority.create("mesh", datetime.now(UTC))
        with pytest.raises(TlsError, match=files[broken].name):
            ServerTls(OwnCertificate(*files), clients=authority)


class TestClientCertificates:
    async def attempt(self, controller: Running, context: ssl.SSLContext) -> int:
        async with httpx.AsyncClient(verify=context) as client:
            response = await client.get(f"https://127.0.0.1:{controller.port}/api/v1/health")
        return response.status_code

    async def test_people_need_none_and_may_speak_tls_1_2(self, controller: Running) -> None:
        context = trust(controller)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        assert await self.attempt(controller, context) == 200

    async def test_tls_1_1_is_refused(self, controller: Running) -> None:
        context = trust(controller)
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(httpx.ConnectError):
            await self.attempt(controller, context)

    async def test_one_of_another_ca_is_refused(
        self, admin: Client, anyone: Client, controller: Running, tmp_path: Path, clock: MovableClock
    ) -> None:
        host = await new_node(admin, anyone, "web")
        other = CertificateAuthority.create("mesh", clock())
        forged = other.issue_node(
            host.identity.public_key(),
            node_id=host.enrolled.node_id,
            mesh_id=controller.context.mesh.id,
            now=clock(),
            lifetime=timedelta(hours=1),
        )
        host.enrolled = host.enrolled.model_copy(update={"certificate": forged})
        with pytest.raises(httpx.TransportError):
            await self.attempt(controller, host.tls(controller, tmp_path))

    async def test_an_expired_one_is_refused(
        self, admin: Client, anyone: Client, controller: Running, tmp_path: Path, clock: MovableClock
    ) -> None:
        clock.advance(hours=-74)
        host = await new_node(admin, anyone, "web")
        with pytest.raises(httpx.TransportError):
            await self.attempt(controller, host.tls(controller, tmp_path))

    async def test_one_issued_by_a_slow_clock_is_good(
        self, admin: Client, anyone: Client, controller: Running, tmp_path: Path, clock: MovableClock
    ) -> None:
        clock.advance(hours=24)
        host = await new_node(admin, anyone, "web")
        assert await self.attempt(controller, host.tls(controller, tmp_path)) == 200

    async def test_the_servers_own_is_no_clients(self, controller: Running, settings: Settings) -> None:
        context = trust(controller)
        context.load_cert_chain(settings.state_dir / "tls.pem", settings.state_dir / "tls.key")
        with pytest.raises(httpx.TransportError):
            await self.attempt(controller, context)

    def test_only_a_node_certificate_names_a_node(self, clock: MovableClock) -> None:
        authority = CertificateAuthority.create("mesh", clock())
        server, _ = authority.issue_server(["x"], now=clock(), lifetime=timedelta(1))
        assert node_id_of(authority.certificate) is None
        assert node_id_of(x509.load_pem_x509_certificate(server)) is None


class TestProxies:
    """The middleware is asked directly: which proxy speaks is the address of a TCP connection."""

    @pytest.fixture
    async def certificate(self, admin: Client, anyone: Client) -> tuple[str, bytes]:
        host = await new_node(admin, anyone, "web")
        der = ssl.PEM_cert_to_DER_cert(host.enrolled.certificate)
        return host.enrolled.node_id, b":" + base64.b64encode(der) + b":"

    @pytest.fixture
    def through(self, controller: Running, clock: MovableClock) -> Ask:
        async def unused(*_message: Any) -> Any:
            raise AssertionError("a scope is all that it looks at")

        async def ask(client: str, *headers: tuple[bytes, bytes], kind: str = "http") -> dict[str, object]:
            seen: dict[str, object] = {}

            async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
                seen.update(scope)

            middleware = ProxiedClients(
                app,
                proxies=["192.0.2.0/24"],
                authority=controller.context.authority,
                mesh_id=controller.context.mesh.id,
                now=clock,
            )
            scope = {"type": kind, "client": (client, 1234), "headers": list(headers), "scheme": "https"}
            await middleware(scope, unused, unused)
            return seen

        return ask

    @pytest.mark.parametrize("kind", ["http", "websocket"])
    @pytest.mark.parametrize("client", ["192.0.2.5", "::ffff:192.0.2.5"])
    async def test_a_trusted_ones_certificate_is_believed(
        self, through: Ask, certificate: tuple[str, bytes], client: str, kind: str
    ) -> None:
        scope = await through(
            client, (b"client-cert", certificate[1]), (b"x-forwarded-for", b"198.51.100.9"), kind=kind
        )
        assert node_id(scope) == certificate[0]
        assert tls_version(scope) == TLS13
        assert scope["client"][0] == "198.51.100.9"

    async def test_another_ones_headers_are_removed(self, through: Ask, certificate: tuple[str, bytes]) -> None:
        scope = await through(
            "198.51.100.1", (b"client-cert", certificate[1]), (b"x-forwarded-for", b"192.0.2.1"), (b"host", b"x")
        )
        assert node_id(scope) is None
        assert scope["client"] == ("198.51.100.1", 1234)
        assert scope["headers"] == [(b"host", b"x")]

    async def test_an_expired_certificate_is_not_believed(
        self, through: Ask, certificate: tuple[str, bytes], clock: MovableClock
    ) -> None:
        clock.advance(hours=73)
        assert node_id(await through("192.0.2.5", (b"client-cert", certificate[1]))) is None

    async def test_a_certificate_of_another_ca_is_not_believed(
        self, through: Ask, controller: Running, clock: MovableClock
    ) -> None:
        other = CertificateAuthority.create("mesh", clock())
        forged = other.issue_node(
            ec.generate_private_key(ec.SECP256R1()).public_key(),
            node_id="n",
            mesh_id=controller.context.mesh.id,
            now=clock(),
            lifetime=timedelta(hours=1),
        )
        value = b":" + base64.b64encode(ssl.PEM_cert_to_DER_cert(forged)) + b":"
        assert node_id(await through("192.0.2.5", (b"client-cert", value))) is None

    async def test_two_certificates_are_none(self, through: Ask, certificate: tuple[str, bytes]) -> None:
        field = (b"client-cert", certificate[1])
        assert node_id(await through("192.0.2.5", field, field)) is None

    @pytest.mark.parametrize("value", [b"", b":", b"::", b"nonsense", b":nonsense:", b":AAAA:", b":\xff:"])
    def test_garbage_is_refused(self, value: bytes) -> None:
        with pytest.raises(ValueError):
            parse_client_cert(value)


def test_private_keys_are_never_in_a_repr() -> None:
    authority = CertificateAuthority.create("mesh", datetime.now(UTC))
    assert "PRIVATE" not in repr(authority)
