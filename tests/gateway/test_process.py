"""The gateway as a process: started, told to read again, told to stop."""

import asyncio
import json
import signal
import socket
import stat
from typing import Any

import psutil
import pytest

from agentd.errors import AgentError
from agentd.gateway.sockets import listening
from tests.gateway.harness import BOUND, Client, Lab, free_port, soon, tool
from tests.gateway.processes import START, Process, call
from tests.gateway.upstream import Upstream


@pytest.fixture
def gateway(policy_gateway: Process) -> Process:
    return policy_gateway


async def test_it_serves_until_told_to_stop_and_leaves_nothing(lab: Lab, gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    assert await call(lab, gateway) == 200
    assert await gateway.stop() == 0
    with pytest.raises(ConnectionRefusedError):
        await lab.connect("127.0.0.1", gateway.port)
    assert stat.S_IMODE((gateway.state / "session.key").stat().st_mode) == 0o600


async def test_a_running_call_may_end_before_it_stops(lab: Lab, gateway: Process, upstream: Upstream) -> None:
    go_on = asyncio.Event()

    async def slow(seen: Any) -> None:
        await go_on.wait()
        seen.result(resultType="complete")

    upstream.behaviour = slow
    await gateway.start("--grace", "20")
    await gateway.ready()
    client = await lab.connect("127.0.0.1", gateway.port)
    client.send("POST", *tool())
    await soon(lambda: upstream.seen)
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    go_on.set()
    assert (await client.answer()).status == 200
    assert await asyncio.wait_for(gateway.process.wait(), START) == 0


async def test_a_changed_policy_is_in_force_without_a_restart(lab: Lab, gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    assert await call(lab, gateway) == 200
    gateway.write_policy(2, tools=["other"])
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    await soon(lambda: gateway.said("in force"))
    assert await call(lab, gateway) == -40300
    gateway.write_policy(3)
    await soon(lambda: gateway.said("in force") == 2)  # without a signal too
    assert await call(lab, gateway) == 200


async def test_a_policy_that_cannot_be_used_changes_nothing(lab: Lab, gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    gateway.policy.write_text('{"revision": 2, "services": {"svc": {}}}')
    await soon(lambda: gateway.said("services.svc"))
    assert await call(lab, gateway) == 200
    gateway.policy.unlink()
    await soon(lambda: gateway.said("cannot be read"))
    assert gateway.said("the previous policy stays in force") >= 2
    assert await call(lab, gateway) == 200


async def test_a_service_moves_to_another_port(lab: Lab, gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    old, gateway.port = gateway.port, free_port()
    gateway.write_policy(2)
    await soon(lambda: gateway.said("in force"))
    assert await call(lab, gateway) == 200
    with pytest.raises(ConnectionRefusedError):
        await lab.connect("127.0.0.1", old)


async def test_only_the_addresses_that_it_is_told_are_bound(gateway: Process) -> None:
    gateway.write_policy(1, addresses=["127.0.0.5", "192.0.2.77", "2001:db8::77"])
    await gateway.start()
    await gateway.ready()
    assert gateway.process is not None
    bound = {one.laddr.ip for one in psutil.Process(gateway.process.pid).net_connections("tcp")}
    assert bound == {"127.0.0.5", "192.0.2.77", "2001:db8::77"}, "nonlocal ones too, and no other"


async def test_a_session_outlives_a_restart(lab: Lab, gateway: Process, upstream: Upstream) -> None:
    async def behaviour(seen: Any) -> None:
        seen.reply(json.dumps({"jsonrpc": "2.0", "id": 0, "result": {}}).encode(), mcp_session_id="s1")

    upstream.behaviour = behaviour
    initialize = b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{}}'
    await gateway.start()
    await gateway.ready()
    client = await lab.connect("127.0.0.1", gateway.port)
    session = (await client.ask("POST", initialize)).get("mcp-session-id")
    await gateway.stop()
    await gateway.start()
    await gateway.ready(2)
    client = await lab.connect("127.0.0.1", gateway.port)
    ping = b'{"jsonrpc":"2.0","id":0,"method":"ping"}'
    assert (await client.ask("POST", ping, {"mcp-session-id": session or ""})).status == 200
    assert upstream.seen[-1].get("mcp-session-id") == "s1"


async def test_every_call_is_in_the_spool(lab: Lab, gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    for _ in range(5):
        assert await call(lab, gateway) == 200
    await gateway.stop()
    spooled = b"".join(path.read_bytes() for path in sorted((gateway.state / "spool").rglob("*")) if path.is_file())
    assert spooled.count(b"gateway:call:allowed") == 5
    assert spooled.count(b"gateway:call:ended") == 5


async def test_two_gateways_do_not_share_a_spool(gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    first = gateway.process
    await gateway.start()
    assert gateway.process is not None
    assert await asyncio.wait_for(gateway.process.wait(), START) == 1
    assert gateway.said("is in use by another gateway") == 1
    gateway.process = first


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda gateway: gateway.policy.unlink(), "cannot be read"),
        (lambda gateway: gateway.policy.write_text("{"), "is not one that this gateway knows"),
        (lambda gateway: gateway.callers.write_text("[{}]"), "is not a list of callers"),
        (lambda gateway: gateway.callers.unlink(), "cannot be read"),
        (lambda gateway: gateway.state.touch(), "cannot be"),
        (lambda gateway: (gateway.state.mkdir(), (gateway.state / "session.key").write_bytes(b"x")), "is damaged"),
    ],
    ids=["no policy", "damaged policy", "damaged callers", "no callers", "state is a file", "damaged key"],
)
async def test_what_it_cannot_start_with_is_one_sentence(gateway: Process, damage: Any, sentence: str) -> None:
    damage(gateway)
    await gateway.start()
    assert gateway.process is not None
    assert await asyncio.wait_for(gateway.process.wait(), START) == 1
    said = gateway.log.read_text()
    assert sentence in said
    assert "Traceback" not in said


async def test_an_address_in_use_is_said_and_taken_when_it_is_free(lab: Lab, gateway: Process) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", gateway.port))
        holder.listen()
        await gateway.start()
        await gateway.ready()
        assert gateway.said("cannot listen at 127.0.0.1") == 1
    await soon(lambda: gateway.said("info serving"), START)
    assert await call(lab, gateway) == 200


# --- sockets


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_every_address_is_no_address(address: str) -> None:
    with pytest.raises(AgentError, match="every address"):
        listening(address, 8080, processes=1)


def test_a_port_that_needs_a_privilege_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "listen", refuse)
    with pytest.raises(AgentError, match="ip_unprivileged_port_start"):
        listening("127.0.0.1", 0, processes=1)


async def test_a_process_holds_no_more_descriptors_after_many_calls(lab: Lab, gateway: Process) -> None:
    await gateway.start()
    await gateway.ready()
    assert gateway.process is not None
    process = psutil.Process(gateway.process.pid)
    assert await call(lab, gateway) == 200
    before = process.num_fds()
    clients: list[Client] = []
    for round_ in range(3):
        clients = [await lab.connect("127.0.0.1", gateway.port) for _ in range(100)]
        for client in clients:
            client.send("POST", *tool())
        for number, client in enumerate(clients):
            if number % 3 == round_:
                client.vanish()
            else:
                assert (await client.answer()).status == 200
                await client.close()
    await soon(lambda: process.num_fds() <= before + 2, BOUND)
