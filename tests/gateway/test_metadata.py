"""An upstream that asks for OAuth tokens itself: what it says of them reaches the caller, and nothing else opens."""

import json

import pytest

from agentd.gateway.metadata import Metadata
from agentd.gateway.passing import Guard
from agentd.gateway.types import AuditEvent
from controller.wire.mcp import HttpUpstream, Service, StdioUpstream
from tests.gateway.harness import BOB, Lab, body, tool
from tests.gateway.upstream import Behaviour, Seen

WELL_KNOWN = "/.well-known/oauth-protected-resource"
METADATA = {"resource": "http://svc.mesh.internal/mcp", "authorization_servers": ["https://as.example"]}


def wanting_tokens(challenge: str) -> Behaviour:
    """Refuses posts with this challenge until they bring a token; serves metadata everywhere."""

    async def behaviour(seen: Seen) -> None:
        if seen.method == "GET":
            seen.reply(json.dumps(METADATA).encode())
        elif seen.get("authorization") != "Bearer good":
            seen.reply(b"", "401 Unauthorized", "text/plain", www_authenticate=challenge)
        else:
            seen.result(resultType="complete", content=[])

    return behaviour


@pytest.mark.parametrize("legacy", [True, False])
async def test_a_challenge_passes_and_so_does_the_token(lab: Lab, legacy: bool) -> None:
    challenge = f'Bearer resource_metadata="http://svc.mesh.internal{WELL_KNOWN}/mcp", scope="a b"'
    running = await lab.gateway(await lab.upstream(wanting_tokens(challenge)))
    client = await lab.client(running)
    request = (body("tools/call", 1, None, name="add", arguments={}), {}) if legacy else tool()
    refused = await client.call(request)
    assert (refused.status, refused.get("www-authenticate"), refused.body) == (401, challenge, b"")
    assert (await client.call(request, authorization="Bearer good")).json["result"]["content"] == []


async def test_metadata_is_found_where_the_callers_url_says(lab: Lab) -> None:
    upstream = await lab.upstream(wanting_tokens("Bearer"))
    running = await lab.gateway(f"http://127.0.0.1:{upstream.port}/api/mcp?x=1")
    client = await lab.client(running)
    for path in (f"{WELL_KNOWN}/mcp", WELL_KNOWN):
        answer = await client.ask("GET", path=path)
        assert (answer.status, answer.json) == (200, METADATA)
    assert [seen.target for seen in upstream.seen] == [f"{WELL_KNOWN}/api/mcp", WELL_KNOWN]
    assert [record.call.name for record in running.records.of(AuditEvent.CALL_ALLOWED) if record.call] == [
        f"{WELL_KNOWN}/mcp",
        WELL_KNOWN,
    ]


async def test_metadata_elsewhere_is_found_once_the_challenge_has_named_it(lab: Lab) -> None:
    upstream = await lab.upstream()
    running = await lab.gateway(upstream)
    url = f"http://svc.mesh.internal:{running.port}/meta/data.json?v=1"
    upstream.behaviour = wanting_tokens(f'Bearer realm="x", resource_metadata="{url}"')
    client = await lab.client(running)
    assert (await client.ask("GET", path="/meta/data.json?v=1")).status == 404
    client = await lab.client(running)
    assert (await client.call(tool())).status == 401
    assert (await client.ask("GET", path="/meta/data.json?v=1")).json == METADATA
    assert (await client.ask("GET", path="/meta/data.json?v=2")).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
async def test_metadata_can_only_be_read(lab: Lab, method: str) -> None:
    upstream = await lab.upstream(wanting_tokens("Bearer"))
    running = await lab.gateway(upstream)
    client = await lab.client(running)
    client.send(method, path=WELL_KNOWN)
    assert (await client.head())[0] == 404
    assert upstream.seen == []


async def test_somebody_without_any_grant_reads_no_metadata(lab: Lab) -> None:
    upstream = await lab.upstream(wanting_tokens("Bearer"))
    running = await lab.gateway(upstream)
    assert (await (await lab.client(running, BOB)).ask("GET", path=WELL_KNOWN)).status == 403
    assert upstream.seen == []


def service(upstream: HttpUpstream | StdioUpstream) -> Service:
    return Service(name="svc", addresses=("192.0.2.7",), port=80, names=("svc.mesh.internal",), upstream=upstream)


def known(upstream: HttpUpstream | StdioUpstream) -> Metadata:
    described = service(upstream)
    return Metadata(described, b"/mcp", Guard(described))


@pytest.mark.parametrize(
    "named",
    [
        'resource_metadata="http://127.0.0.1:3000/x"',
        'resource_metadata="http://svc.mesh.internal.evil.example/x"',
        'resource_metadata="http://user@svc.mesh.internal/x"',
        'resource_metadata="http://[/x"',
        'resource_metadata="//svc.mesh.internal/x"',
        'resource_metadata="/x"',
        'resource_metadata=""',
        "resource_metadata=http://svc.mesh.internal/x",
        'error="resource_metadata"',
    ],
)
def test_a_challenge_that_names_no_url_of_the_service_opens_nothing(named: str) -> None:
    metadata = known(HttpUpstream(url="http://127.0.0.1:3000/mcp"))
    metadata.learn(f"Bearer {named}".encode())
    assert metadata.find(b"/x") is None


def test_an_upstream_cannot_name_paths_without_end() -> None:
    metadata = known(HttpUpstream(url="http://127.0.0.1:3000/mcp"))
    for number in range(100):
        metadata.learn(b'Bearer resource_metadata="http://192.0.2.7/%d"' % number)
    assert [number for number in range(100) if metadata.find(b"/%d" % number)] == list(range(92, 100))


def test_a_server_on_standard_input_and_output_has_no_metadata() -> None:
    assert known(StdioUpstream(command=("server",))).find(WELL_KNOWN.encode()) is None
