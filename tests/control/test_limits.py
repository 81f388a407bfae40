"""What one client, one enrolment key and one node may do in a while: refused early, with a wait, and nobody else is."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from controller.server import running
from controller.settings import Settings

from .hosts import Host, new_key, new_node
from .streams import agent
from .support import Client, trust


def is_too_many(response: httpx.Response) -> bool:
    return response.status_code == 429 and response.json()["type"] == "urn:wardmesh:problem:too-many-requests"


async def test_a_client_with_too_many_requests_waits_and_others_do_not(settings: Settings) -> None:
    async with running(replace(settings, client_rate=1)) as controller, Client(controller) as client:
        answers = [await client.get("/health") for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        answers = await asyncio.gather(*(client.get("/health") for _ in range(50)))
        refused = next(answer for answer in answers if is_too_many(answer))
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["content-type"] == "application/problem+json"
        assert "127.0.0.1" in refused.json()["detail"]
        elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2", verify=trust(controller))
        async with Client(controller, transport=elsewhere) as other:
            assert (await other.get("/health")).status_code == 200


async def test_an_enrolment_key_with_too_many_joins_waits_and_others_do_not(settings: Settings) -> None:
    async with (
        running(replace(settings, key_rate=1)) as controller,
        Client(controller, token=controller.first_token) as admin,
        Client(controller) as anyone,
    ):
        one, other = [await new_key(admin, uses=None) for _ in range(2)]
        host = Host("host")
        answers = await asyncio.gather(*(host.ask(anyone, one) for _ in range(60)))
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if is_too_many(answer))
        assert one not in refused.text
        assert (await Host("another").ask(anyone, other)).status_code == 200


async def test_a_node_that_opens_too_many_streams_waits_and_others_do_not(settings: Settings, tmp_path: Path) -> None:
    async with (
        running(replace(settings, stream_rate=2)) as controller,
        Client(controller, token=controller.first_token) as admin,
        Client(controller) as anyone,
    ):
        host, other = [await new_node(admin, anyone, name) for name in ("host", "other")]
        async with agent(controller, host, tmp_path) as first:
            await first.hello()
            with pytest.raises(InvalidStatus) as refused:
                async with agent(controller, host, tmp_path):
                    pass
            assert refused.value.response.status_code == 429
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30
            async with agent(controller, other, tmp_path) as another:
                await another.hello()


@pytest.mark.parametrize(("path", "size"), [("/tokens", 16 * 1024), ("/policy/check", 64 * 1024)])
async def test_the_operator_says_how_large_a_body_may_be(settings: Settings, path: str, size: int) -> None:
    chosen = replace(settings, body_limit=16 * 1024, policy_limit=64 * 1024)
    async with running(chosen) as controller, Client(controller, token=controller.first_token) as admin:
        json = {"content-type": "application/json"}
        fits = await admin.post(path, content=b" " * size, headers=json)
        assert fits.status_code in {400, 422}, "it was read"
        refused = await admin.post(path, content=b" " * (size + 1), headers=json)
        assert refused.status_code == 413
        assert refused.json()["type"] == "urn:wardmesh:problem:too-large"
        assert str(size) in refused.json()["detail"]
