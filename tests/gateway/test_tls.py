"""Services over TLS: who is greeted and who is not, and what is shown to them."""

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from cryptography import x509
from mcp.client.client import Client as SdkClient

from agentd.gateway.certificates import Certificates
from agentd.gateway.http.limits import HttpLimits
from controller.wire.mcp import HttpUpstream, Service
from controller.wire.netmap import Netmap
from tests.gateway.agent import HELD, Agent, netmap, refused_at
from tests.gateway.authority import NAME, Authority
from tests.gateway.following import START, Gateway
from tests.gateway.harness import ALICE, BOUND, STRANGER, Client, Lab, Running, free_port, soon, tool
from tests.gateway.upstream import Seen

Mode = Literal["legacy", "2026-07-28"]
SLOW = HttpLimits(head_seconds=0.5, linger=0.2, tick=0.02)


async def served(lab: Lab, authority: Authority, tmp_path: Path, **more: Any) -> tuple[Running, int]:
    """A gateway with `svc` over TLS; and the port."""
    port = free_port()
    upstream = more.pop("upstream", None) or await lab.upstream()
    certificates = authority.write(tmp_path / "tls")
    return await lab.gateway(upstream, certificates=certificates, tls_port=port, **more), port


def shown(client: Client) -> int:
    """The serial number of the certificate that the client was shown."""
    der = client.writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(der).serial_number


# --- talking


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_an_sdk_client_needs_the_ca_in_its_environment_and_nothing_else(
    lab: Lab,
    authority: Authority,
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: Literal["legacy", "2026-07-28"],
) -> None:
    _, port = await served(lab, authority, tmp_path, upstream=server)
    ca = tmp_path / "ca.pem"
    ca.write_text(authority.ca.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(ca))
    async with SdkClient(f"https://127.0.0.1:{port}/mcp", mode=mode) as client:
        added: Any = await client.call_tool("add", {"a": 2, "b": 3})
        assert added.structured_content == {"result": 5}


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_call_by_name_reaches_the_upstream_with_the_same_identity_as_without_tls(
    lab: Lab, authority: Authority, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    upstream = await lab.upstream()
    running, port = await served(lab, authority, tmp_path, upstream=upstream)
    context = authority.client
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    client = await lab.connect(ALICE, port, ssl=context, server_hostname=NAME)
    client.host = f"{NAME}:{port}"
    assert (await client.call(tool())).status == 200
    plain = await lab.client(running)
    assert (await plain.call(tool())).status == 200
    over_tls, without = upstream.seen
    for name in ("wardmesh-node", "wardmesh-node-id", "wardmesh-tags"):
        assert over_tls.get(name) == without.get(name) is not None
    tls = client.writer.get_extra_info("ssl_object")
    assert (tls.version(), tls.selected_alpn_protocol()) == (str(version.name).replace("_", "."), "http/1.1")


async def test_the_host_header_may_name_the_tls_port_and_no_other(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    _, port = await served(lab, authority, tmp_path)
    client = await lab.connect(ALICE, port, ssl=authority.client, server_hostname=NAME)
    for host, status in ((f"{NAME}:{port}", 200), (f"{NAME}:1", 421)):
        client.host = host
        assert (await client.call(tool())).status == status, host


async def test_events_come_as_they_are_sent_and_large_bodies_come_whole(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    more = asyncio.Event()

    async def stream(seen: Seen) -> None:
        seen.start_events()
        seen.chunk(b": first\n\n")
        await more.wait()
        seen.chunk(b"data: " + b"x" * 2_000_000 + b"\n\n")
        seen.end_chunks()

    upstream = await lab.upstream(stream)
    _, port = await served(lab, authority, tmp_path, upstream=upstream)
    client = await lab.connect(ALICE, port, ssl=authority.client, server_hostname=NAME)
    data, headers = tool(text="y" * 1_000_000)
    client.send("POST", data, headers)
    status, _ = await client.head()
    assert (status, await client.chunk()) == (200, b": first\n\n")
    more.set()
    assert len(await client.chunks()) > 2_000_000
    assert len(upstream.seen[0].body) == len(data)


# --- greeting


async def test_a_client_that_asks_for_another_name_and_verifies_nothing_is_told_that_it_is_wrong_here(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    _, port = await served(lab, authority, tmp_path)
    context = authority.client
    context.check_hostname = False
    client = await lab.connect(ALICE, port, ssl=context, server_hostname="other.mesh.internal")
    client.host = f"other.mesh.internal:{port}"
    assert (await client.call(tool())).status == 421


async def test_a_client_that_does_not_know_the_ca_or_asked_for_another_host_does_not_accept_it(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    authority.hosts = ("other.mesh.internal",)
    _, port = await served(lab, authority, tmp_path)
    for context, why in (
        (authority.client, "Hostname mismatch"),
        (ssl.create_default_context(cadata=Authority().ca.pem), "self-signed certificate|unable to get local issuer"),
    ):
        with pytest.raises(ssl.SSLCertVerificationError, match=why):
            await lab.connect(ALICE, port, ssl=context, server_hostname=NAME)


async def test_tls_1_1_is_refused(lab: Lab, authority: Authority, tmp_path: Path) -> None:
    _, port = await served(lab, authority, tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.ca.pem)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await lab.connect(ALICE, port, ssl=context, server_hostname=NAME)


async def test_plain_http_is_told_to_use_https(lab: Lab, authority: Authority, tmp_path: Path) -> None:
    running, port = await served(lab, authority, tmp_path)
    client = await lab.connect(ALICE, port)
    answer = await client.call(tool())
    assert (answer.status, b"https://" in answer.body) == (400, True)
    assert await client.rest() == b""
    assert running.records.all == []


async def test_a_stranger_is_not_greeted(lab: Lab, authority: Authority, tmp_path: Path) -> None:
    _, port = await served(lab, authority, tmp_path)
    for options in ({"ssl": authority.client, "server_hostname": NAME}, {}):
        with suppress(ConnectionError, ssl.SSLError):
            client = await lab.connect(STRANGER, port, **options)
            assert await client.rest() == b""
            assert not options, "the handshake was completed"


@pytest.mark.parametrize("beginning", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"])
async def test_a_slow_handshake_is_cut(lab: Lab, authority: Authority, tmp_path: Path, beginning: bytes) -> None:
    _, port = await served(lab, authority, tmp_path, http=SLOW)
    client = await lab.connect(ALICE, port)
    client.writer.write(beginning)
    assert await asyncio.wait_for(client.rest(), BOUND) == b""


async def test_who_greets_counts_among_the_connections(lab: Lab, authority: Authority, tmp_path: Path) -> None:
    running, port = await served(lab, authority, tmp_path, http=HttpLimits(connections=3, tick=0.05))
    (server,) = (one.server for one in running.runtime._running.values())
    silent = [await lab.connect(ALICE, port) for _ in range(3)]
    await soon(lambda: not server.has_room())
    refused = await lab.connect(ALICE, port)
    assert await refused.rest() == b""
    await silent.pop().close()
    await soon(server.has_room)
    client = await lab.connect(ALICE, port, ssl=authority.client, server_hostname=NAME)
    assert (await client.call(tool())).status == 200


async def test_a_gateway_that_stops_waits_for_no_greeting(lab: Lab, authority: Authority, tmp_path: Path) -> None:
    running, port = await served(lab, authority, tmp_path)
    client = await lab.connect(ALICE, port)
    await asyncio.wait_for(running.runtime.close(0), BOUND)
    assert await client.rest() == b""


# --- the certificate


async def test_a_new_certificate_is_shown_to_new_connections_and_disturbs_no_other(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    _, port = await served(lab, authority, tmp_path)
    old = await lab.connect(ALICE, port, ssl=authority.client, server_hostname=NAME)
    before = shown(old)
    authority.write(tmp_path / "tls")

    async def renewed() -> bool:
        client = await lab.connect(ALICE, port, ssl=authority.client, server_hostname=NAME)
        found = shown(client)
        await client.close()
        return found != before

    async with asyncio.timeout(BOUND):
        while not await renewed():
            await asyncio.sleep(0.05)
    assert (await old.call(tool())).status == 200


async def test_without_a_certificate_the_service_answers_without_tls_only(
    lab: Lab, authority: Authority, tmp_path: Path
) -> None:
    port = free_port()
    certificates = Certificates(tmp_path / "tls", None)
    running = await lab.gateway(await lab.upstream(), certificates=certificates, tls_port=port)
    assert (await (await lab.client(running)).call(tool())).status == 200
    assert refused_at(port)
    assert "is not there" in running.runtime.tls_problems()["svc"]
    authority.write(tmp_path / "tls")
    await soon(lambda: not refused_at(port))
    assert running.runtime.tls_problems() == {}


# --- the whole process, with agentd


def over_tls(port: int, tls_port: int, upstream: HttpUpstream, **more: Any) -> Netmap:
    service = Service(name="svc", addresses=(HELD,), port=port, tls_port=tls_port, names=(NAME,), upstream=upstream)
    return netmap(port, upstream, services={"svc": service}, **more)


async def test_every_worker_shows_the_certificate_that_the_first_one_had_signed_before_the_service_came(
    lab: Lab, agent: Agent, gateway: Gateway, authority: Authority, tmp_path: Path
) -> None:
    upstream, port, tls_port = await lab.upstream(), free_port(), free_port()
    where = HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")
    agent.sign = authority.sign
    agent.serving.adopt(over_tls(port, tls_port, where, held=()))
    await agent.start()
    await gateway.start("--workers", "2")
    file = tmp_path / "state" / "tls" / "svc.pem"
    await soon(file.exists, START)
    assert refused_at(tls_port)
    agent.serving.adopt(over_tls(port, tls_port, where, revision=2))
    await soon(lambda: gateway.said(f"port={tls_port}") == 2, START)
    for _ in range(8):
        client = await lab.connect("127.0.0.1", tls_port, ssl=authority.client, server_hostname=NAME)
        client.host = f"{NAME}:{tls_port}"
        assert (await client.call(tool())).status == 200
        await client.close()
    assert authority.asked == ["svc"]


async def test_why_there_is_no_certificate_is_said_to_agentd_and_the_service_is_well_without(
    lab: Lab, agent: Agent, gateway: Gateway, authority: Authority
) -> None:
    upstream, port, tls_port = await lab.upstream(), free_port(), free_port()
    authority.refusal = "the controller at https://192.0.2.1 cannot be reached"
    agent.sign = authority.sign
    agent.serving.adopt(over_tls(port, tls_port, HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")))
    await agent.start()
    await gateway.start()
    await soon(lambda: [one.tls_error for one in agent.serving.services()] == [authority.refusal], START)
    await soon(lambda: agent.serving.health() == {"svc": None}, START)
    authority.refusal = None
    await soon(lambda: [one.tls_error for one in agent.serving.services()] == [None], START)
    await soon(lambda: not refused_at(tls_port), START)
