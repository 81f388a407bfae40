"""The agents' stream, end to end: a real controller, real TLS, real WebSocket clients. No agentd."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

from controller import server
from controller.api import stream as stream_module
from controller.server import Running, running
from controller.settings import Settings
from controller.wire.netmap import Netmap, fold
from controller.wire.stream import (
    PROTOCOL,
    STREAM_PATH,
    Applied,
    Bye,
    ControllerFrame,
    DeltaFrame,
    Hello,
    HostReport,
    Report,
    Snapshot,
    controller_frame,
)

from .hosts import Host, new_node, wireguard_key
from .support import Client, MovableClock, trust

POLICY = "grants: [{from: tag:agents, to: tag:tools, ip: [tcp:443]}]"


class Agent:
    """The other end of a stream: folds what it is sent."""

    def __init__(self, socket: ClientConnection, host: Host) -> None:
        self.socket = socket
        self.host = host
        self.netmap: Netmap | None = None

    def report(self, **changes: Any) -> HostReport:
        facts = {"agent_version": "0.1.0", "public_key": self.host.public_key, "endpoints": ("192.0.2.7:51820",)}
        return HostReport(**(facts | changes))

    async def say(self, frame: Hello | Report | Applied | str) -> None:
        await self.socket.send(frame if isinstance(frame, str) else frame.model_dump_json())

    async def hello(self, held: Netmap | None = None, **changes: Any) -> ControllerFrame:
        """Greet, and take the first frame."""
        self.netmap = held
        revision, mesh, timeline = (
            (None, None, "") if held is None else (held.revision, held.mesh.id, held.mesh.timeline)
        )
        await self.say(Hello(revision=revision, mesh=mesh, timeline=timeline, report=self.report(**changes)))
        return await self.take()

    async def take(self) -> ControllerFrame:
        async with asyncio.timeout(10):
            frame = controller_frame.validate_json(await self.socket.recv())
        if isinstance(frame, Snapshot):
            self.netmap = frame.netmap
        elif isinstance(frame, DeltaFrame):
            assert self.netmap is not None
            self.netmap = fold(self.netmap, frame.delta)
        return frame

    async def take_until(self, condition: Callable[[Netmap], bool]) -> Netmap:
        while self.netmap is None or not condition(self.netmap):
            frame = await self.take()
            assert not isinstance(frame, Bye), frame
        return self.netmap

    async def bye(self) -> Bye:
        """Read on to the Bye, and to the close that follows it."""
        frame = await self.take()
        while not isinstance(frame, Bye):
            frame = await self.take()
        async with asyncio.timeout(10):
            with pytest.raises(ConnectionClosed):
                await self.socket.recv()
        return frame


@asynccontextmanager
async def agent(
    controller: Running, host: Host, directory: Path, context: ssl.SSLContext | None = None, protocol: str = PROTOCOL
) -> AsyncIterator[Agent]:
    async with connect(
        f"wss://127.0.0.1:{controller.port}{STREAM_PATH}",
        ssl=context or host.tls(controller, directory),
        subprotocols=[Subprotocol(protocol)] if protocol else None,
    ) as socket:
        yield Agent(socket, host)


@pytest.fixture
async def put_policy(admin: Client) -> Callable[[str], Any]:
    async def put(text: str) -> None:
        current = await admin.get("/policy")
        answer = await admin.put("/policy", json={"text": text}, headers={"if-match": current.headers["etag"]})
        assert answer.is_success, answer.text

    return put


@pytest.fixture
async def caller(admin: Client, anyone: Client, put_policy: Callable[[str], Any]) -> Host:
    await put_policy(POLICY)
    return await new_node(admin, anyone, "caller", tags=["tag:agents"])


@pytest.fixture
async def tool(admin: Client, anyone: Client) -> Host:
    return await new_node(admin, anyone, "tool", tags=["tag:tools"])


def node_id(host: Host) -> str:
    assert host.enrolled is not None
    return host.enrolled.node_id


async def patch(admin: Client, host: Host, **changes: Any) -> None:
    path = f"/nodes/{node_id(host)}"
    tag = (await admin.get(path)).headers["etag"]
    answer = await admin.patch(path, json=changes, headers={"if-match": tag})
    assert answer.is_success, answer.text


async def delete(admin: Client, host: Host) -> None:
    path = f"/nodes/{node_id(host)}"
    answer = await admin.delete(path, headers={"if-match": (await admin.get(path)).headers["etag"]})
    assert answer.is_success, answer.text


async def seen(admin: Client, host: Host, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The node over REST, once it fulfils the condition."""
    async with asyncio.timeout(10):
        while True:
            node: dict[str, Any] = (await admin.get(f"/nodes/{node_id(host)}")).json()
            if condition(node):
                return node
            await asyncio.sleep(0.02)


async def test_an_agent_gets_its_map_and_then_what_changes(
    controller: Running, admin: Client, anyone: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        first = await there.hello()
        assert isinstance(first, Snapshot)
        assert first.netmap.node.id == node_id(caller)
        assert first.netmap.peers == {}
        tool = await new_node(admin, anyone, "tool", tags=["tag:tools"])
        netmap = await there.take_until(lambda m: bool(m.peers))
        assert netmap.peers[node_id(tool)].public_key == tool.public_key
        assert netmap.sets["tag:tools"].addresses == set(netmap.peers[node_id(tool)].addresses)
        assert netmap == controller.context.hub.netmap(node_id(caller))
        other = await new_node(admin, anyone, "other", tags=["tag:other"])
        await delete(admin, tool)
        netmap = await there.take_until(lambda m: not m.peers)
        assert node_id(other) not in netmap.peers


async def test_what_is_in_force_is_known_over_rest(
    controller: Running, admin: Client, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello(backend="userspace")
        assert there.netmap is not None
        await there.say(Applied(revision=there.netmap.revision))
        node = await seen(admin, caller, lambda n: n["in_force"] is not None)
        assert node["online"]
        assert node["in_force"] == there.netmap.revision
        assert node["backend"] == "userspace"
        await patch(admin, tool, name="renamed")
        await there.take_until(lambda m: "renamed" in {p.name for p in m.peers.values()})
        assert (await admin.get("/status")).json()["behind"] == 1
        await there.say(Applied(revision=there.netmap.revision, error="nft refused the table"))
        node = await seen(admin, caller, lambda n: n["error"] is not None)
        assert node["error"] == "nft refused the table"
        await there.say(Applied(revision=there.netmap.revision))
        await seen(admin, caller, lambda n: n["error"] is None)
        assert (await admin.get("/status")).json()["behind"] == 0
    await seen(admin, caller, lambda n: not n["online"])


async def test_both_hosts_learn_each_others_key_and_endpoint(
    controller: Running, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as one, agent(controller, tool, tmp_path) as other:
        await one.hello(endpoints=("192.0.2.1:51820",))
        await other.hello(endpoints=("192.0.2.2:51820",))
        await one.take_until(lambda m: "192.0.2.2:51820" in m.peers[node_id(tool)].endpoints)
        tool.public_key = wireguard_key()
        await other.say(Report(report=other.report(endpoints=("192.0.2.3:51820",))))
        netmap = await one.take_until(lambda m: "192.0.2.3:51820" in m.peers[node_id(tool)].endpoints)
        assert netmap.peers[node_id(tool)].public_key == tool.public_key


async def test_an_agent_that_comes_back_gets_one_delta(
    controller: Running, admin: Client, anyone: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        held = there.netmap
    for number in range(3):
        await new_node(admin, anyone, f"tool{number}", tags=["tag:tools"])
    async with agent(controller, caller, tmp_path) as back:
        first = await back.hello(held)
        assert isinstance(first, DeltaFrame)
        assert len(first.delta.peers) == 3
        assert back.netmap == controller.context.hub.netmap(node_id(caller))


@pytest.mark.parametrize("version", ["the same", "another"])
async def test_an_agent_that_comes_back_to_a_restarted_controller_of_the_same_version_is_continued(
    settings: Settings, clock: MovableClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    async with (
        running(settings, clock) as first,
        Client(first, token=first.first_token) as admin,
        Client(first) as anyone,
    ):
        await admin.put("/policy", json={"text": POLICY}, headers={"if-match": "*"})
        host = await new_node(admin, anyone, "caller", tags=["tag:agents"])
        gone = await new_node(admin, anyone, "gone", tags=["tag:tools"])
        async with agent(first, host, tmp_path) as there:
            await there.hello()
            held = there.netmap
        await delete(admin, gone)
        tool = await new_node(admin, anyone, "tool", tags=["tag:tools"])
    if version == "another":
        monkeypatch.setattr(server, "VERSION", "99.0")
    async with running(settings, clock) as second, agent(second, host, tmp_path) as back:
        answer = await back.hello(held)
        assert isinstance(answer, DeltaFrame if version == "the same" else Snapshot)
        assert back.netmap == second.context.hub.netmap(node_id(host))
        assert set(back.netmap.peers) == {node_id(tool)}


async def test_a_second_stream_of_the_same_node_replaces_the_first(
    controller: Running, admin: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as first:
        await first.hello()
        async with agent(controller, caller, tmp_path) as second:
            assert isinstance(await second.hello(), Snapshot)
            assert (await first.bye()).reason == "replaced"
            await second.say(Applied(revision=second.netmap.revision if second.netmap else 0))
            await seen(admin, caller, lambda n: n["online"] and n["in_force"] is not None)


async def test_a_removed_node_is_told_and_not_let_in_again(
    controller: Running, admin: Client, caller: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        await delete(admin, caller)
        bye = await there.bye()
        assert (bye.reason, bye.retry) == ("removed", False)
    async with agent(controller, caller, tmp_path) as again:
        assert isinstance(await again.hello(), Bye)


async def test_a_disabled_node_is_told_and_comes_back_when_it_is_enabled(
    controller: Running, admin: Client, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there, agent(controller, tool, tmp_path) as peer:
        await there.hello()
        await peer.hello()
        await patch(admin, caller, state="disabled")
        bye = await there.bye()
        assert (bye.reason, bye.retry) == ("disabled", True)
        await peer.take_until(lambda m: not m.peers)
        held = there.netmap
        async with agent(controller, caller, tmp_path) as refused:
            frame = await refused.hello()
            assert isinstance(frame, Bye)
            assert frame.reason == "disabled"
        await patch(admin, caller, state="active")
        async with agent(controller, caller, tmp_path) as back:
            await back.hello(held)
            assert back.netmap is not None
            assert node_id(tool) in back.netmap.peers


async def test_a_node_that_waits_for_approval_sees_itself_only(
    controller: Running, admin: Client, anyone: Client, tool: Host, put_policy: Callable[[str], Any], tmp_path: Path
) -> None:
    await put_policy(POLICY)
    waiting = await new_node(admin, anyone, "waiting", tags=["tag:agents"], approved=False)
    async with agent(controller, waiting, tmp_path) as there:
        first = await there.hello()
        assert isinstance(first, Snapshot)
        assert (first.netmap.peers, first.netmap.rules) == ({}, {})
        await patch(admin, waiting, state="active")
        netmap = await there.take_until(lambda m: bool(m.peers))
        assert netmap.peers.keys() == {node_id(tool)}


async def test_a_policy_that_is_replaced_reaches_the_host(
    controller: Running, caller: Host, tool: Host, put_policy: Callable[[str], Any], tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        await put_policy("grants: []")
        netmap = await there.take_until(lambda m: not m.peers)
        assert (netmap.rules, netmap.sets) == ({}, {})


async def test_a_controller_that_stops_says_so(settings: Settings, clock: MovableClock, tmp_path: Path) -> None:
    async with running(settings, clock) as controller:
        async with Client(controller, token=controller.first_token) as admin, Client(controller) as anyone:
            host = await new_node(admin, anyone, "caller")
        manager = agent(controller, host, tmp_path)
        there = await manager.__aenter__()
        await there.hello()
    try:
        bye = await there.bye()
        assert (bye.reason, bye.retry) == ("shutdown", True)
    finally:
        await manager.__aexit__(None, None, None)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ("{", "cannot be read"),
        ('{"type": "snapshot"}', "cannot be read"),
        ('{"type": "applied"}', "revision"),
        (Applied(revision=1).model_dump_json(), "must be hello"),
        (json.dumps({"type": "hello", "report": {"agent_version": "x" * 200_000, "public_key": "k"}}), "longer than"),
    ],
)
async def test_a_bad_first_frame_is_answered_with_the_reason(
    controller: Running, caller: Host, tmp_path: Path, frame: str, words: str
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.say(frame)
        bye = await there.bye()
        assert bye.reason == "protocol"
        assert words in bye.detail
        assert there.socket.close_code == 1002


@pytest.mark.parametrize("frame", [b"binary", "[]", '{"type": "applied", "revision": "x"}', "second hello"])
async def test_a_bad_later_frame_is_answered_with_the_reason(
    controller: Running, admin: Client, caller: Host, tmp_path: Path, frame: str | bytes
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        await there.hello()
        hello = Hello(report=there.report()).model_dump_json()
        await there.socket.send(hello if frame == "second hello" else frame)
        assert (await there.bye()).reason == "protocol"
        await seen(admin, caller, lambda n: not n["online"])


async def test_a_key_that_another_node_has_is_refused(
    controller: Running, caller: Host, tool: Host, tmp_path: Path
) -> None:
    async with agent(controller, caller, tmp_path) as there:
        frame = await there.hello(public_key=tool.public_key)
        assert isinstance(frame, Bye)
        assert "public key" in frame.detail


async def test_silence_is_ended(
    controller: Running, caller: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "HELLO_WITHIN", 0.05)
    async with agent(controller, caller, tmp_path) as there:
        assert "no hello" in (await there.bye()).detail


async def test_a_person_without_a_certificate_gets_an_http_error(
    controller: Running, caller: Host, tmp_path: Path
) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with agent(controller, caller, tmp_path, context=trust(controller)):
            pass
    assert caught.value.response.status_code == 401
    assert "certificate-required" in bytes(caught.value.response.body or b"").decode()


async def test_tls_1_2_is_refused(controller: Running, caller: Host, tmp_path: Path) -> None:
    context = caller.tls(controller, tmp_path)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(InvalidStatus) as caught:
        async with agent(controller, caller, tmp_path, context=context):
            pass
    assert "TLS 1.3" in bytes(caught.value.response.body or b"").decode()


@pytest.mark.parametrize("protocol", ["", "wardmesh.v2"])
async def test_another_subprotocol_is_refused(controller: Running, caller: Host, tmp_path: Path, protocol: str) -> None:
    with pytest.raises(InvalidStatus) as caught:
        async with agent(controller, caller, tmp_path, protocol=protocol):
            pass
    assert PROTOCOL in bytes(caught.value.response.body or b"").decode()
