"""The real MCP SDK, client and server, with the gateway between them: every mode that its client has."""

import asyncio
from typing import Any

import pytest
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError

from agentd.gateway.types import AuditEvent, Code
from tests.gateway import sdk_server
from tests.gateway.harness import Lab, Running, soon

MODES = ["auto", "legacy", "2026-07-28"]


def connect(running: Running, mode: str) -> Client:
    return Client(f"http://127.0.0.1:{running.port}/mcp", mode=mode)


@pytest.mark.parametrize("mode", MODES)
async def test_everything_a_client_does_works(lab: Lab, server: str, mode: str) -> None:
    running = await lab.gateway(server)
    steps: list[float] = []

    async def stepped(progress: float, total: float | None, message: str | None) -> None:
        steps.append(progress)

    async with connect(running, mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} >= {"add", "count", "secret"}
        added: Any = await client.call_tool("add", {"a": 2, "b": 3})
        assert added.structured_content == {"result": 5}
        counted: Any = await client.call_tool("count", {"to": 5}, progress_callback=stepped)
        assert counted.content[0].text == "done"
        await soon(lambda: steps == [0, 1, 2, 3, 4])  # the SDK hands them to a task of their own
        mirrored: Any = await client.call_tool("by_region", {"region": "w\u00e9st", "query": "q"})
        assert mirrored.content[0].text == "w\u00e9st:q"
        assert (await client.list_resources()).resources
        read: Any = await client.read_resource("test://one")
        assert read.contents[0].text == "1"
        prompt: Any = await client.get_prompt("greet", {"who": "you"})
        assert "you" in prompt.messages[0].content.text
        with pytest.raises(MCPError):
            await client.read_resource("test://none")
    problems = [record.outcome.problem for record in running.records.of(AuditEvent.CALL_ENDED) if record.outcome]
    assert set(problems) <= {None, "the client went away"}


@pytest.mark.parametrize("mode", MODES)
async def test_a_denied_call_is_an_error_and_the_client_goes_on(lab: Lab, server: str, mode: str) -> None:
    running = await lab.gateway(server)
    await running.adopt([{"id": "few", "peers": ["alice"], "services": ["svc"], "tools": ["add"]}], without_alice=True)
    async with connect(running, mode) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["add"]
        with pytest.raises(MCPError) as caught:
            await client.call_tool("secret", {})
        assert caught.value.error.code == Code.DENIED
        added: Any = await client.call_tool("add", {"a": 1, "b": 1})
        assert added.structured_content == {"result": 2}


@pytest.mark.parametrize("mode", MODES)
async def test_many_calls_at_once_are_not_mixed_up(lab: Lab, server: str, mode: str) -> None:
    running = await lab.gateway(server)
    async with connect(running, mode) as client:
        texts = [f"text {number}" for number in range(40)]
        answers: Any = await asyncio.gather(*(client.call_tool("echo", {"text": text}) for text in texts))
        assert [answer.content[0].text for answer in answers] == texts


async def test_a_cancelled_call_is_cancelled_in_the_server(lab: Lab, server: str) -> None:
    running = await lab.gateway(server)
    async with connect(running, "2026-07-28") as client:
        calling = asyncio.create_task(client.call_tool("count", {"to": 100_000, "name": "by-the-sdk"}))
        await soon(lambda: "by-the-sdk" in sdk_server.started)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        await soon(lambda: "by-the-sdk" in sdk_server.cancelled)
