"""Real clients through the gateway: what they may do works, the rest is explained to them, and all is recorded."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent

from agentd.gateway.spool import SpoolReader
from controller.wire.mcp import ArgumentRule, HttpUpstream, Matches, McpGrant, ToolRules

from .processes import RunningGateway, conformance_tools, fixture_server, gateway

GRANT = McpGrant(
    id="some",
    peers=("tag:suite",),
    services=("fixture",),
    tools=("test_simple_*", "test_headers"),
    resources=("test://static-*",),
    args=(
        ToolRules(
            tools=("test_headers",), arguments=(ArgumentRule(argument="query", tests=(Matches(pattern="[a-z]+"),)),)
        ),
    ),
)
MAY_CALL = ["test_headers", "test_simple_text"]
TEXT = "This is a simple text response for testing."
NEEDED = "a grant to svc:fixture with mcp: {tools: [test_image_content]}"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with (
        fixture_server() as url,
        gateway(tmp_path_factory.mktemp("gateway"), HttpUpstream(url=url), GRANT) as started,
    ):
        yield started


@pytest.fixture(scope="module")
def tools() -> Path:
    return conformance_tools()


def decisions(running: RunningGateway) -> list[tuple[str, Any]]:
    lines = [json.loads(entry.payload) for entry in SpoolReader(running.spool).read(100_000)]
    return [
        (line["call"]["name"], line["decision"])
        for line in lines
        if line.get("call", {}).get("name") and "decision" in line
    ]


async def use(client: Client) -> None:
    """What every client must find behind the gateway."""
    assert sorted(tool.name for tool in (await client.list_tools()).tools) == MAY_CALL
    assert sorted(r.uri for r in (await client.list_resources()).resources) == [
        "test://static-binary",
        "test://static-text",
    ]
    answer = await client.call_tool("test_simple_text", {})
    assert [block.text for block in answer.content if isinstance(block, TextContent)] == [TEXT]
    with pytest.raises(MCPError) as denied:
        await client.call_tool("test_image_content", {})
    assert NEEDED in denied.value.message
    with pytest.raises(MCPError, match="argument 'query' must match"):
        await client.call_tool("test_headers", {"query": "DROP TABLE"})
    assert not (await client.call_tool("test_headers", {"query": "harmless"})).is_error
    with pytest.raises(MCPError, match="no grant lets you use resource"):
        await client.read_resource("test://watched-resource")


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_python_sdk(running: RunningGateway, mode: str) -> None:
    async with Client(running.url, mode=mode) as client:
        await use(client)
    found = decisions(running)
    assert ("test_simple_text", {"allow": "some"}) in found
    assert ("test_image_content", 40300) in [(name, decision.get("deny")) for name, decision in found]
    assert ("test_headers", 40301) in [(name, decision.get("deny")) for name, decision in found]


async def test_mcp_remote(running: RunningGateway, tools: Path, tmp_path: Path) -> None:
    command = StdioServerParameters(
        command=str(tools / "node/bin/node"),
        args=[
            str(tools / "node_modules/mcp-remote/dist/proxy.js"),
            running.url,
            "--allow-http",
            "--transport",
            "http-only",
        ],
        env={"HOME": str(tmp_path), "MCP_REMOTE_CONFIG_DIR": str(tmp_path / "auth")},
    )
    async with Client(stdio_client(command), mode="legacy") as client:
        await use(client)


class Inspector:
    """The TypeScript SDK's inspector, by its command line."""

    def __init__(self, tools: Path, url: str, home: Path) -> None:
        package = tools / "node_modules/@modelcontextprotocol/inspector"
        self._command = [str(tools / "node/bin/node"), str(package / "clients/launcher/build/index.js"), "--cli", url]
        self._command += ["--transport", "http"]
        self._environment = {**os.environ, "HOME": str(home), "NO_COLOR": "1"}

    def __call__(self, method: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._command, "--method", method, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def inspector(running: RunningGateway, tools: Path, tmp_path: Path) -> Inspector:
    return Inspector(tools, running.url, tmp_path)


def test_the_inspector_lists_what_it_may_use(inspector: Inspector) -> None:
    done = inspector("tools/list")
    assert done.returncode == 0, done.stderr
    assert sorted(tool["name"] for tool in json.loads(done.stdout)["tools"]) == MAY_CALL


def test_the_inspector_calls_what_it_may(inspector: Inspector) -> None:
    done = inspector("tools/call", "--tool-name", "test_simple_text")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["content"][0]["text"] == TEXT
    read = inspector("resources/read", "--uri", "test://static-text")
    assert json.loads(read.stdout)["contents"][0]["uri"] == "test://static-text"


def test_the_inspector_is_told_what_it_lacks(inspector: Inspector) -> None:
    done = inspector("resources/read", "--uri", "test://watched-resource")
    assert done.returncode != 0
    assert "no grant lets you use resource" in done.stdout + done.stderr
