"""Joining a real controller: what works, and for everything that does not, one sentence and nothing half-done."""

import asyncio
import http.server
import os
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from agentd import https
from agentd.config import Config
from agentd.errors import AgentError, ControllerError
from agentd.join import HostFacts, Joined, choose_name, join
from agentd.model import HostNetwork, LocalAddress
from agentd.state import StateDir
from controller.server import Running, running
from controller.settings import Settings
from controller.wire.enrol import JoinString, JoinStringError
from controller.wire.rest import EnrolmentKeyCreated

from .support import Client, MovableClock

NOWHERE = HostFacts(addresses=(LocalAddress("eth0", "192.0.2.7", 24),), networks=())


@dataclass
class Host:
    """A host that may join: its state directory and what it was told."""

    state: StateDir
    said: list[str] = field(default_factory=list)

    async def join(self, text: str, facts: HostFacts = NOWHERE, name: str = "db-1") -> Joined:
        config = Config(name=name, state_dir=self.state.path)
        return await asyncio.to_thread(join, self.state, config, text, facts, say=self.said.append)

    def left_nothing(self) -> bool:
        return not self.state.path.exists()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(StateDir(tmp_path / "agentd"))


@pytest.fixture
def other(tmp_path: Path) -> Host:
    return Host(StateDir(tmp_path / "other"))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are counted here, not waited for."""
    monkeypatch.setattr(https, "_PAUSES", (0.05,) * 5)


async def key(admin: Client, **settings: object) -> str:
    answer = await admin.post("/enrolment-keys", json=settings)
    return EnrolmentKeyCreated.model_validate_json(answer.content).join


async def names(admin: Client) -> list[str]:
    return [node["name"] for node in (await admin.get("/nodes")).json()["items"]]


async def test_a_host_becomes_a_node(admin: Client, host: Host) -> None:
    joined = await host.join(await key(admin, tags=["tag:db"]))
    assert (joined.new, joined.state, joined.node.name) == (True, "active", "db-1")
    assert await names(admin) == ["db-1"]
    assert host.state.node() == joined.node
    found = sorted(path.name for path in host.state.path.iterdir())
    assert found == ["ca.pem", "certificate.pem", "identity.key", "lock", "node.json", "wireguard.key"]
    identity, certificate = host.state.identity_key(), host.state.certificate()
    assert identity is not None
    assert certificate is not None
    assert identity.certifies(certificate)


async def test_a_host_that_waits_for_approval_says_so(admin: Client, host: Host) -> None:
    assert (await host.join(await key(admin, approved=False))).state == "pending"


async def test_joining_the_same_mesh_again_changes_nothing(admin: Client, host: Host) -> None:
    first = await host.join(await key(admin))
    again = await host.join(await key(admin))
    assert (again.new, again.node) == (False, first.node)


async def test_joining_another_mesh_is_refused_by_name(
    admin: Client, host: Host, settings: Settings, tmp_path: Path
) -> None:
    joined = await host.join(await key(admin))
    elsewhere = Settings(state_dir=tmp_path / "elsewhere", listen=settings.listen)
    async with running(elsewhere) as second, Client(second, token=second.first_token) as its_admin:
        with pytest.raises(AgentError, match=r"already 'db-1' in the mesh .*: run `agentd leave` first"):
            await host.join(await key(its_admin))
    assert host.state.node() == joined.node


async def test_one_key_used_twice_at_the_same_moment_makes_one_node(admin: Client, host: Host, other: Host) -> None:
    text = await key(admin)
    results = await asyncio.gather(host.join(text), other.join(text, name="db-2"), return_exceptions=True)
    refused = [result for result in results if isinstance(result, AgentError)]
    assert len(refused) == 1
    assert "already used" in str(refused[0])
    assert [host.left_nothing(), other.left_nothing()].count(True) == 1


@pytest.mark.parametrize(
    "damage", [lambda t: t[:-1], lambda t: t[:20], lambda t: t[:30] + "A" + t[31:], lambda t: t + "x"]
)
async def test_a_damaged_join_string_is_recognised(admin: Client, host: Host, damage: Callable[[str], str]) -> None:
    with pytest.raises(JoinStringError, match="damaged"):
        await host.join(damage(await key(admin)))
    assert host.left_nothing()


async def test_a_join_string_for_another_ca_is_refused(admin: Client, host: Host) -> None:
    target = JoinString.decode(await key(admin))
    with pytest.raises(AgentError, match="from another controller, or somebody is in between; make a new one"):
        await host.join(target.model_copy(update={"ca": "0" * 64}).encode())
    assert host.left_nothing()


async def test_an_expired_key_is_refused(admin: Client, host: Host, clock: MovableClock) -> None:
    text = await key(admin, ttl=60)
    clock.advance(seconds=61)
    with pytest.raises(AgentError, match="expired"):
        await host.join(text)
    assert host.left_nothing()


async def test_a_used_up_key_is_refused(admin: Client, host: Host, other: Host) -> None:
    text = await key(admin)
    await other.join(text, name="db-2")
    with pytest.raises(AgentError, match="already used"):
        await host.join(text)
    assert host.left_nothing()


async def test_an_unknown_key_is_refused(admin: Client, host: Host) -> None:
    target = JoinString.decode(await key(admin))
    with pytest.raises(AgentError, match="does not know the enrolment key"):
        await host.join(target.model_copy(update={"key": target.key[:-4] + "AAAA"}).encode())
    assert host.left_nothing()


async def test_a_duplicate_name_is_refused(admin: Client, host: Host, other: Host) -> None:
    await other.join(await key(admin))
    with pytest.raises(AgentError, match="db-1"):
        await host.join(await key(admin))
    assert host.left_nothing()


@pytest.mark.parametrize(
    ("hostname", "reason"),
    [
        ("web_1", "'web_1' is not a DNS label"),
        ("-x", "is not a DNS label"),
        ("x" * 64, "is not a DNS label"),
        ("", "is not a DNS label"),
        ("d\u0430tabase", r"U\+0430"),
        ("db\uff11", "only looks like a plain letter"),
    ],
)
def test_a_host_name_that_is_no_label_says_what_to_pass(hostname: str, reason: str) -> None:
    with pytest.raises(AgentError, match=reason) as raised:
        choose_name(None, hostname)
    assert "--name" in str(raised.value)


def test_a_host_name_is_lowered_and_cut_at_the_first_dot() -> None:
    assert choose_name(None, "DB-1.example.com") == "db-1"


@pytest.mark.parametrize("family", [4, 6])
async def test_a_mesh_that_overlaps_the_hosts_networks_is_left_again(
    admin: Client, host: Host, controller: Running, family: int
) -> None:
    mesh = controller.context.mesh
    prefix = mesh.prefix4 if family == 4 else mesh.prefix6
    inside = prefix.replace("/16", "/24").replace("/10", "/24").replace("/48", "/64")
    facts = HostFacts(addresses=(), networks=(HostNetwork(inside, "eth7"),))
    with pytest.raises(
        AgentError, match=f"uses {prefix}, but this host already reaches {inside} through eth7"
    ) as raised:
        await host.join(await key(admin), facts)
    assert "the enrolment was undone" in str(raised.value)
    assert await names(admin) == []
    assert host.left_nothing()


async def test_an_interrupted_join_is_continued_with_the_same_node(
    admin: Client, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer was lost: the key is used up, but it was this host that used it."""
    text = await key(admin)
    post = https.Controller.post

    def lose_the_answer(*arguments: Any) -> None:
        post(*arguments)
        raise ControllerError("the connection broke")

    monkeypatch.setattr(https.Controller, "post", lose_the_answer)
    with pytest.raises(AgentError, match="the connection broke"):
        await host.join(text)
    assert host.state.node() is None
    monkeypatch.undo()
    assert (await host.join(text)).new
    assert await names(admin) == ["db-1"]


async def test_a_controller_that_restarts_in_mid_join_is_waited_for(
    settings: Settings, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(https, "_PAUSES", (0.2,) * 50)
    async with running(settings) as first, Client(first, token=first.first_token) as admin:
        text = await key(admin)
        port = first.port
    fixed = Settings(state_dir=settings.state_dir, listen=type(settings.listen)("127.0.0.1", port))
    task = asyncio.create_task(host.join(text))
    async with asyncio.timeout(20):
        while not host.said:
            await asyncio.sleep(0.01)
    assert "cannot be reached" in host.said[0]
    async with running(fixed):
        assert (await task).new


async def test_a_controller_that_is_away_is_named(host: Host) -> None:
    text = JoinString(url="https://127.0.0.1:1", ca="0" * 64, key="wmk_x").encode()
    with pytest.raises(AgentError, match=r"https://127.0.0.1:1 cannot be reached \(Connection refused\): check"):
        await host.join(text)


@pytest.mark.parametrize("days", [1, -1])
async def test_a_clock_that_is_off_by_a_day_is_told_and_still_joins(
    settings: Settings, host: Host, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """The host's clock cannot be moved, so the controller's is: its certificates and its Date header."""
    theirs = MovableClock()
    theirs.advance(days=days)
    monkeypatch.setattr(https, "parse_date", lambda _: theirs())
    async with running(settings, theirs) as controller, Client(controller, token=controller.first_token) as admin:
        assert (await host.join(await key(admin, ttl=86400))).new
    (warning,) = host.said
    assert f"{datetime.now(UTC):%Y-%m-%d}" in warning
    assert f"{theirs():%Y-%m-%d}" in warning
    assert "timedatectl" in warning


async def test_a_clock_that_is_off_by_a_week_is_told_with_both_clocks(
    settings: Settings, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = MovableClock()
    theirs.advance(days=7)
    monkeypatch.setattr(https, "parse_date", lambda _: theirs())
    async with running(settings, theirs) as controller:
        ca = x509.load_pem_x509_certificate(controller.context.authority.pem.encode()).fingerprint(SHA256()).hex()
        text = JoinString(url=controller.url, ca=ca, key="wmk_x").encode()
        with pytest.raises(AgentError, match=r"does not hold .*not yet valid.*this host's clock says") as raised:
            await host.join(text)
        assert f"{theirs():%Y-%m-%d}" in str(raised.value)
        assert host.left_nothing()


async def test_a_full_disk_is_noticed_before_the_key_is_used(
    admin: Client, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(AgentError, match="the disk is full: free some space and try again"):
        await host.join(await key(admin))
    assert await names(admin) == []
    assert host.left_nothing()


async def test_a_second_join_at_the_same_time_is_refused(admin: Client, host: Host) -> None:
    host.state.create()
    with host.state.lock(), pytest.raises(AgentError, match=r"another agentd .* is using"):
        await host.join(await key(admin))
    assert await names(admin) == []


@dataclass(frozen=True)
class Garbage:
    """What a server that is no controller answers: to GET /ca.pem, and to everything else."""

    ca: bytes | None  # None: its certificate, as a controller would
    other: bytes = b""
    status: int = 200
    endless: bool = False


@contextmanager
def answering(garbage: Garbage, directory: Path) -> Iterator[str]:
    """Run such a server with TLS; yields a join string that leads to it."""
    key, certificate = self_signed("127.0.0.1")
    pem = certificate.public_bytes(Encoding.PEM)
    (directory / "server.pem").write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first = self.path == "/ca.pem"
            body = (garbage.ca if garbage.ca is not None else pem) if first else garbage.other
            self.send_response(200 if first and garbage.ca is None else garbage.status)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)
                while garbage.endless:
                    self.wfile.write(b"x" * 65536)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "server.pem")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            url = f"https://127.0.0.1:{server.server_address[1]}"
            yield JoinString(url=url, ca=certificate.fingerprint(SHA256()).hex(), key="wmk_secret").encode()
        finally:
            server.shutdown()
            thread.join()


def self_signed(address: str) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    key = generate_private_key(SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return key, builder.sign(key, SHA256())


@pytest.mark.parametrize(
    ("garbage", "sentence"),
    [
        (
            Garbage(ca=b"<html>Welcome to nginx!</html>"),
            "not a wardmesh CA certificate .*it begins with '<html>Welcome",
        ),
        (Garbage(ca=b"\xff\x00" * 100), "not a wardmesh CA certificate"),
        (Garbage(ca=b""), "an empty answer"),
        (Garbage(ca=b"", endless=True), r"does not end \(more than 1024 KiB or 30 s\)"),
        (Garbage(ca=b"gone", status=404), r"does not answer like a wardmesh controller \(HTTP 404"),
        (Garbage(ca=b"", status=302), r"does not answer like a wardmesh controller \(HTTP 302"),
        (Garbage(ca=b"oops", status=502), r"is not able to answer now \(HTTP 502\): try again in a minute"),
        (Garbage(ca=None, other=b"<html>hello</html>"), "does not answer like a wardmesh controller"),
        (Garbage(ca=None, other=b'{"node_id": "n1"}'), "does not answer like a wardmesh controller"),
        (Garbage(ca=None, other=b"[" * 100_000), "does not answer like a wardmesh controller"),
        (Garbage(ca=None, other=b"{", endless=True), "does not end"),
        (Garbage(ca=None, other=b'{"detail": "x"}', status=403), r"does not answer like .* \(HTTP 403"),
    ],
)
async def test_garbage_is_called_garbage(host: Host, tmp_path: Path, garbage: Garbage, sentence: str) -> None:
    with answering(garbage, tmp_path) as text, pytest.raises(AgentError, match=sentence) as raised:
        await host.join(text)
    message = str(raised.value)
    assert "\n" not in message
    assert "127.0.0.1" in message
    assert "wmk_secret" not in message + "".join(host.said)
    assert host.state.node() is None


async def test_a_server_without_tls_is_recognised(host: Host) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        text = JoinString(url=f"https://127.0.0.1:{port}", ca="0" * 64, key="wmk_x").encode()
        with pytest.raises(AgentError, match=r"does not speak TLS 1\.3 as a wardmesh controller does"):
            await host.join(text)
