"""Calls through the gateway, across the lab and kernel tunnels, by the service's name: what each caller may, and sees.

Both protocol eras, with the SDK's client and server; the last tests take the holder away while calls go on.
"""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from operator import methodcaller
from typing import Any

import pytest

from agentd.gateway.types import Code
from controller.wire.call_records import CallEntry
from controller.wire.services import CallQuestion
from tests.kernel.gateway_world import SLOW, Caller, Tools, World, lines
from tests.lab import eventually
from tests.lab.processes import Process

MODES = {"auto": "2026-07-28", "legacy": "2025-11-25"}
ERAS = {"auto": "modern", "legacy": "legacy"}
STEPS = (
    "list",
    'add {"a": 2, "b": 3}',
    "secret",
    'read {"path": "/project/readme"}',
    'read {"path": "/project/../etc/passwd"}',
    "identity",
)
POLICY = """
services:
  github: {on: [tag:tools], mcp: {upstream: "http://127.0.0.1:3000/mcp"}}
grants:
  - from: [tag:agents]
    to: [svc:github]
    mcp: {tools: [add, count, identity, read, where], args: {read: {path: {under: /project}}}}
  - from: [tag:tools]
    to: [svc:github]
    mcp: {tools: [where]}
"""
WITHOUT_COUNT = POLICY.replace("add, count,", "add,")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with World.with_policy(POLICY) as world:
        yield world


@pytest.fixture(scope="module", params=MODES)
def told(world: World, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What a client of each era got: the protocol, then what became of each of STEPS."""
    before = len(world.holder().server)
    answers = world.caller.call(*STEPS, mode=request.param)
    assert answers[0] == {"protocol": MODES[request.param]}
    assert "secret was called" not in "\n".join(world.holder().server.output.splitlines()[before:])
    return answers[1:]


def test_a_granted_tool_answers(told: list[dict[str, Any]]) -> None:
    assert told[1] == {"answer": 5}


def test_lists_show_what_the_caller_may_use(told: list[dict[str, Any]]) -> None:
    assert sorted(told[0]["tools"]) == ["add", "count", "identity", "read", "where"]


def test_a_denied_tool_is_an_error_that_names_the_grant_needed(told: list[dict[str, Any]]) -> None:
    assert told[2]["error"] == Code.DENIED
    assert "a grant to svc:github with mcp: {tools: [secret]} for caller" in told[2]["message"]


def test_a_denied_argument_is_an_error_that_names_the_argument(told: list[dict[str, Any]]) -> None:
    assert told[3] == {"answer": "content of /project/readme"}
    assert told[4]["error"] == Code.ARGUMENT_DENIED
    assert "path" in told[4]["message"]


def test_the_server_is_told_who_calls_and_nothing_that_the_caller_made_up(world: World, told: list[Any]) -> None:
    node = world.controller.node("caller")
    assert told[5]["answer"] == {
        "wardmesh-node": "caller",
        "wardmesh-node-id": node.id,
        "wardmesh-tags": "tag:agents",
    }


def test_explain_says_of_each_call_what_the_gateway_did(world: World, told: list[dict[str, Any]]) -> None:
    for what, outcome in list(zip(STEPS, told, strict=True))[1:]:
        tool, _, arguments = what.partition(" ")
        question = CallQuestion(source="caller", service="github", tool=tool, arguments=json.loads(arguments or "{}"))
        explained = world.controller.ask(methodcaller("explain_call", question))
        assert explained.allowed is ("answer" in outcome), what
        assert explained.reason is None or outcome["message"].startswith(explained.reason)


def address_of(world: World) -> str:
    return world.service().addresses[0]


def raw_answer(tools: Tools, source: str, address: str) -> bytes:
    """What a plain request gets that comes from `source` of the host that holds the service."""
    with tools.agent.host.socket(socket.AF_INET) as client:
        client.settimeout(SLOW)
        client.bind((source, 0))
        client.connect((address, 80))
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nhost: github.mesh.internal\r\n\r\n")
            return client.recv(1000)
    return b""


def test_an_address_that_is_nobody_gets_no_answer(world: World) -> None:
    holder = world.holder()
    assert raw_answer(holder, holder.agent.host.address, address_of(world)) == b""


def test_a_process_of_the_holder_calls_as_the_host_that_it_is_on(world: World) -> None:
    holder = world.holder()
    steps = ("list", "where", "secret")
    ran = holder.agent.host.run(*world.caller.command(*steps), timeout=SLOW)
    _, listed, where, secret = lines(ran.stdout)
    assert listed == {"tools": ["where"]}
    assert where == {"answer": holder.name}
    assert secret["error"] == Code.DENIED
    (entry, *_) = world.recorded(lambda entry: entry.record.call is not None, caller=holder.name)
    assert entry.record.caller is not None
    assert entry.record.caller.address in {str(address) for address in holder.agent.status()["addresses"]}


def test_a_host_without_a_grant_reaches_nobody(world: World) -> None:
    with world.outsider.agent.host.socket(socket.AF_INET) as client:
        client.settimeout(2)
        with pytest.raises(OSError, match=r"timed out|Operation not permitted|unreachable"):
            client.connect((address_of(world), 80))


def dns_answer(caller: Caller, name: str) -> bytes:
    """What the agentd of the caller's host says when it is asked for the IPv4 address of a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    with caller.agent.host.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(SLOW)
        client.connect(("127.0.0.1", 5354))
        client.send(b"\0\1\1\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1")
        return client.recv(512)


def test_dns_answers_for_a_service_on_hosts_that_may_call_it_alone(world: World) -> None:
    found = dns_answer(world.caller, "github.mesh.internal")
    assert (found[3] & 0xF, found[-4:]) == (0, socket.inet_aton(address_of(world)))
    assert dns_answer(world.outsider, "github.mesh.internal")[3] & 0xF == 3, "the outsider was told of the service"
    assert dns_answer(world.outsider, "outsider.mesh.internal")[3] & 0xF == 0


def begin_counting(world: World, name: str, mode: str) -> tuple[Process, Tools]:
    """A call that streams progress, and the host at which it does."""
    holder = world.holder()
    client = world.caller.start(f'count {{"name": "{name}"}}', mode=mode)
    client.wait_for_line(r'"progress": [1-9]', SLOW)
    holder.server.wait_for_line(f"began {name}", SLOW)
    return client, holder


def ended_with(client: Process) -> dict[str, Any]:
    """The error that ended a client's call."""
    client.wait_for_line(r'"(error|answer)": ', SLOW)
    return lines(client.stdout)[-1]


@pytest.mark.parametrize("mode", MODES)
def test_a_changed_policy_ends_a_running_stream_at_both_ends(world: World, mode: str) -> None:
    client, holder = begin_counting(world, f"revoked-{mode}", mode)
    world.put_policy(WITHOUT_COUNT)
    try:
        error = ended_with(client)
        assert error["error"] == Code.DENIED
        assert "policy no longer allows" in error["message"]
        holder.server.wait_for_line(f"cancelled revoked-{mode}", SLOW)
        world.recorded(lambda entry: entry.record.event == "gateway:stream:revoked" and era(entry) == ERAS[mode])
    finally:
        world.put_policy(POLICY)


def era(entry: CallEntry) -> str | None:
    return entry.record.call.era if entry.record.call is not None else None


def test_a_grant_with_an_end_ends_a_running_stream_then(world: World) -> None:
    client, holder = begin_counting(world, "expiring", "auto")
    ends = int(time.time()) + 4
    when = datetime.fromtimestamp(ends, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    counting = f'  - {{from: [tag:agents], to: [svc:github], mcp: {{tools: [count]}}, expires: "{when}"}}\n'
    world.put_policy(WITHOUT_COUNT + counting)
    try:
        assert ended_with(client)["error"] == Code.DENIED
        assert time.time() >= ends
        holder.server.wait_for_line("cancelled expiring", SLOW)
    finally:
        world.put_policy(POLICY)


def test_a_temporary_grant_of_a_tool_ends_its_stream_while_the_controller_is_away(world: World) -> None:
    client, holder = begin_counting(world, "temporary", "auto")
    made = json.loads(
        world.controller.wardmesh(
            *("grant", "--from", "tag:agents", "--to", "svc:github", "--tool", "count"),
            *("--ttl", "10s", "--reason", "for a test", "--json"),
        )
    )
    world.put_policy(WITHOUT_COUNT)
    try:
        world.controller.process.kill()
        assert ended_with(client)["error"] == Code.DENIED
        assert time.time() >= datetime.fromisoformat(made["expires"]).timestamp()
        holder.server.wait_for_line("cancelled temporary", SLOW)
        assert world.caller.call('count {"name": "too-late"}')[1]["error"] == Code.DENIED
    finally:
        world.controller.process.kill()
        world.controller.restart()
        world.put_policy(POLICY)
        world.wait_whole()
    shown = json.loads(world.controller.wardmesh("grant", "show", made["id"], "--json"))
    assert (shown["state"], shown["mcp"]["tools"]) == ("ended", ["count"])


def test_a_call_by_https_trusts_the_meshs_ca_alone(world: World) -> None:
    ca = world.caller.agent.host.directory / "mesh-ca.pem"
    ca.write_text(world.caller.agent.run("ca"))
    answers = world.caller.call_over_tls('add {"a": 2, "b": 3}', "secret", ca=ca)
    assert answers[1] == {"answer": 5}
    assert answers[2]["error"] == Code.DENIED
    with pytest.raises(AssertionError, match="CERTIFICATE_VERIFY_FAILED"):
        world.caller.call_over_tls("list", ca=None)


def test_a_service_that_is_moved_answers_at_the_other_host_while_it_is_used(world: World) -> None:
    client = world.caller.start("where", again=True)
    try:
        for _ in range(2):
            before, after = world.holder(), world.other()
            client.wait_for_line(f'"answer": "{before.name}"', SLOW, len(client))
            world.move(after)
            moved = time.monotonic()
            client.wait_for_line(f'"answer": "{after.name}"', SLOW, len(client))
            print(f"{after.name} answered {time.monotonic() - moved:.1f} s after the move")
            eventually(partial(world.is_held_by, after), SLOW)
    finally:
        client.kill()


def restarted(tools: Tools, process: int) -> bool:
    """True when the host's gateway is another process than `process`, and is connected."""
    with contextlib.suppress(AssertionError):
        return tools.gateway_process() != process
    return False


def hold_with(world: World, tools: Tools) -> None:
    if world.holder() is not tools:
        world.wait_whole()
        world.move(tools)
    eventually(lambda: world.holder() is tools and world.service().healthy, SLOW)


def test_a_gateway_that_is_killed_is_back_and_no_record_is_lost(world: World) -> None:
    hold_with(world, world.tools[0])
    began = datetime.now(UTC)
    client = world.caller.start("where", again=True)
    try:
        client.wait_for_line('"answer"', SLOW)
        process = world.tools[0].gateway_process()
        facts = world.tools[0].agent.host.run("cat", f"/proc/{process}/status").stdout
        assert "CapEff:\t0000000000000000" in facts
        assert "NoNewPrivs:\t1" in facts
        os.kill(process, signal.SIGKILL)
        eventually(lambda: restarted(world.tools[0], process), SLOW, interval=0.3, what="another gateway")
        client.wait_for_line('"answer"', SLOW, len(client))
    finally:
        client.kill()
    answered = client.stdout.count('"answer"')
    eventually(
        lambda: allowed_since(world, began) >= answered,
        SLOW,
        interval=0.3,
        what="a record of each call that was answered",
    )
    world.wait_whole()


def allowed_since(world: World, began: datetime) -> int:
    found = world.calls(tool="where", caller="caller")
    return sum(entry.record.event == "gateway:call:allowed" and entry.record.time >= began for entry in found)


def test_a_stream_goes_on_while_agentd_restarts_where_the_gateway_is_a_service_of_its_own(world: World) -> None:
    other, tools = world.tools
    hold_with(world, tools)
    # A restart may take longer than the controller waits before it gives a service to another host that can answer.
    other.server.kill()
    eventually(lambda: not world.can_serve(other), SLOW, interval=0.3)
    client, _ = begin_counting(world, "agentd-restarts", "auto")
    try:
        tools.agent.process.stop()
        tools.agent.restart()
        tools.agent.wait_in_force()
        eventually(
            lambda: tools.gateway is not None and tools.gateway_process() == tools.gateway.pid,
            SLOW,
            what="the same gateway",
        )
        seen = len(client)
        client.wait_for_line('"progress"', SLOW, seen)
        assert lines(client.stdout)[1:] == [], "the call has ended"
    finally:
        client.kill()
        other.start_server()
    tools.server.wait_for_line("cancelled agentd-restarts", SLOW)
    world.wait_whole()


def test_when_the_holders_host_dies_the_next_call_is_answered_by_the_other(world: World) -> None:
    dying, other = world.holder(), world.other()
    client = world.caller.start("where", again=True)
    try:
        client.wait_for_line(f'"answer": "{dying.name}"', SLOW)
        dying.die()
        died = time.monotonic()
        client.wait_for_line(f'"answer": "{other.name}"', SLOW, len(client))
        print(f"{other.name} answered {time.monotonic() - died:.1f} s after {dying.name} had died")
    finally:
        client.kill()
        dying.revive()
    world.wait_whole()


@pytest.mark.usefixtures("told")
def test_what_happened_is_in_the_audit_of_calls(world: World) -> None:
    (message,) = {
        entry.record.decision.message
        for entry in world.recorded(lambda entry: entry.record.verdict == "denied", tool="secret")
        if entry.record.decision
    }
    assert "no grant lets you use tool 'secret'" in str(message)
    shown = world.controller.wardmesh("audit", "calls", "--denied", "--service", "github")
    assert "secret" in shown
    assert "caller" in shown
    everything = json.loads(world.controller.wardmesh("audit", "calls", "--all", "--limit", "1000", "--json"))
    hosts = {world.controller.node(tools.name).id for tools in world.tools}
    assert {entry["node"] for entry in everything} <= hosts
    assert {"gateway:call:allowed", "gateway:call:denied"} <= {entry["record"]["event"] for entry in everything}
