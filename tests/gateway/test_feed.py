"""The gateway that follows agentd: what it serves, what it says of it, and what holds while either is away."""

import asyncio
import os
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from agentd.errors import AgentError
from agentd.gateway_messages import ListenRequest
from agentd.local_api import WhoisRequest
from agentd.local_client import ask, listening_socket
from agentd.serving import gateway_policy
from controller.wire.mcp import HttpUpstream, StdioUpstream
from tests.gateway.agent import HELD, NOT_HELD, Agent, netmap, refused_at
from tests.gateway.following import START, Gateway
from tests.gateway.harness import BOUND, Lab, free_port, soon, tool
from tests.gateway.upstream import Upstream


async def serving(lab: Lab, agent: Agent, gateway: Gateway) -> tuple[int, Upstream, HttpUpstream]:
    """A gateway that serves `svc` for `agent`; returns its port and its upstream."""
    upstream, port = await lab.upstream(), free_port()
    where = HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")
    agent.serving.adopt(netmap(port, where))
    await agent.start()
    await gateway.start()
    await soon(lambda: agent.serving.health() == {"svc": None}, START)
    return port, upstream, where


async def call(lab: Lab, port: int) -> int:
    client = await lab.connect("127.0.0.1", port)
    answer = await client.call(tool())
    await client.close()
    return answer.status if "result" in answer.json else -answer.code


async def test_it_serves_what_agentd_says_and_follows_every_change(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    port, _, where = await serving(lab, agent, gateway)
    assert await call(lab, port) == 200
    agent.serving.adopt(netmap(port, where, revision=2, tools=("other",)))
    await soon(lambda: gateway.said("revision=2"))
    assert await call(lab, port) == -40300
    agent.serving.adopt(netmap(port, where, revision=3, services={}, calls={}))
    await soon(lambda: refused_at(port))


async def test_an_address_that_another_host_holds_is_not_bound_but_the_service_is_ready(
    lab: Lab, agent: Agent, gateway: Gateway
) -> None:
    port, _, where = await serving(lab, agent, gateway)
    agent.serving.adopt(netmap(port, where, revision=2, held=()))
    await soon(lambda: refused_at(port))
    await soon(lambda: agent.serving.health() == {"svc": None})
    agent.serving.adopt(netmap(port, where, revision=3))
    await soon(lambda: not refused_at(port))
    assert await call(lab, port) == 200


async def test_a_map_that_changes_nothing_for_the_gateway_is_not_sent(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    port, _, where = await serving(lab, agent, gateway)
    agent.serving.adopt(netmap(port, where, revision=2))
    agent.serving.adopt(netmap(port, where, revision=3, tools=("other",)))
    await soon(lambda: gateway.said("revision=3"))
    assert gateway.said("revision=2") == 0


async def test_an_upstream_that_is_down_is_said_and_forgotten_when_it_is_back(
    lab: Lab, agent: Agent, gateway: Gateway
) -> None:
    _, upstream, _ = await serving(lab, agent, gateway)
    port = upstream.port
    await upstream.close()
    await soon(lambda: "takes no connections" in (agent.serving.health()["svc"] or ""))
    await upstream.start(port)
    await soon(lambda: agent.serving.health() == {"svc": None})


async def test_a_command_that_is_not_there_is_said(agent: Agent, gateway: Gateway) -> None:
    agent.serving.adopt(netmap(free_port(), StdioUpstream(command=("no-such-server-here",))))
    await agent.start()
    await gateway.start()
    await soon(lambda: "'no-such-server-here' is not a program" in (agent.serving.health()["svc"] or ""), START)
    agent.serving.adopt(netmap(free_port(), StdioUpstream(command=(sys.executable, "-V")), revision=2))
    await soon(lambda: agent.serving.health() == {"svc": None})


async def test_an_address_in_use_makes_the_service_unable(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    _, _, where = await serving(lab, agent, gateway)
    with socket.socket() as holder:
        holder.bind((HELD, 0))
        holder.listen()
        agent.serving.adopt(netmap(holder.getsockname()[1], where, revision=2))
        await soon(lambda: "Address already in use" in (agent.serving.health()["svc"] or ""))


async def test_it_waits_for_an_agentd_that_is_not_there_yet(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    upstream, port = await lab.upstream(), free_port()
    await gateway.start()
    await soon(lambda: gateway.said("cannot be followed"), START)
    agent.serving.adopt(netmap(port, HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")))
    await agent.start()
    await soon(lambda: not refused_at(port), START)
    assert await call(lab, port) == 200
    assert gateway.said("cannot be followed") == 1


async def test_while_agentd_restarts_calls_go_on_and_its_next_word_counts(
    lab: Lab, agent: Agent, gateway: Gateway
) -> None:
    port, _, where = await serving(lab, agent, gateway)
    assert await call(lab, port) == 200
    await agent.stop()
    assert "no gateway is connected" in (agent.serving.health()["svc"] or "")
    await soon(lambda: gateway.said("cannot be followed"))
    assert await call(lab, port) == 200
    agent.serving.adopt(netmap(port, where, revision=2, tools=("other",)))
    await agent.start()
    await soon(lambda: gateway.said("revision=2"))
    assert await call(lab, port) == -40300


async def test_a_gateway_that_is_killed_is_noticed_at_once(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    await serving(lab, agent, gateway)
    before = agent.changes
    assert gateway.process is not None
    gateway.process.kill()
    await soon(lambda: agent.changes > before)
    await soon(lambda: "no gateway is connected" in (agent.serving.health()["svc"] or ""), BOUND)


async def test_a_gateway_that_hangs_is_not_taken_for_one_that_serves(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    await serving(lab, agent, gateway)
    clock = agent.serving.clock
    agent.serving.clock = lambda: clock() + 6
    (follower,) = agent.serving.followers
    assert follower.report is not None
    follower.report = (clock(), follower.report[1])
    assert "has said nothing for 6 s" in (agent.serving.health()["svc"] or "")


async def test_every_worker_follows_and_shares_the_socket(lab: Lab, agent: Agent, gateway: Gateway) -> None:
    upstream, port = await lab.upstream(), free_port()
    where = HttpUpstream(url=f"http://127.0.0.1:{upstream.port}/mcp")
    agent.serving.adopt(netmap(port, where))
    await agent.start()
    await gateway.start("--workers", "2")
    await soon(lambda: len(agent.serving.followers) == 2, START)
    await soon(lambda: gateway.said("info serving") == 2, START)
    assert await call(lab, port) == 200


# --- sockets that agentd opens


async def test_a_socket_is_opened_only_at_an_address_that_is_held(agent: Agent) -> None:
    port = free_port()
    agent.serving.adopt(netmap(port, HttpUpstream(url="http://127.0.0.1:9/mcp")))
    await agent.start()
    opened = await asyncio.to_thread(
        listening_socket, agent.path, ListenRequest(service="svc", address=HELD, port=port)
    )
    with opened:
        assert opened.getsockname() == (HELD, port)
        assert not os.get_inheritable(opened.fileno())
    for service, address, at, why in (
        ("svc", NOT_HELD, port, "is not an address that this host holds for"),
        ("other", HELD, port, "is not an address that this host holds for"),
        ("svc", HELD, port + 1, "is not a port of 'svc'"),
    ):
        request = ListenRequest(service=service, address=address, port=at)
        with pytest.raises(AgentError, match=why):
            await asyncio.to_thread(listening_socket, agent.path, request)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("user", "served"), [(65533, False), (65534, True)])
async def test_only_the_gateways_user_may_take_its_place(agent: Agent, user: int, served: bool) -> None:
    agent.serving.adopt(netmap(free_port(), HttpUpstream(url="http://127.0.0.1:9/mcp")))
    await agent.start(gateway_user=65534)
    agent.path.chmod(0o666)
    for directory in agent.path.parents:
        if directory.is_relative_to(tempfile.gettempdir()) and directory != Path(tempfile.gettempdir()):
            directory.chmod(0o755)
    script = (
        f"import os, socket; os.setuid({user}); s = socket.socket(socket.AF_UNIX); s.connect({str(agent.path)!r});"
        's.sendall(b\'{"request":"gateway"}\\n\'); print(s.makefile().readline())'
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert (b'"answer":"policy"' in output, b"is for the gateway" in output) == (served, not served)


async def test_a_question_on_the_gateways_connection_ends_it(agent: Agent) -> None:
    agent.serving.adopt(netmap(free_port(), HttpUpstream(url="http://127.0.0.1:9/mcp")))
    await agent.start()
    reader, writer = await asyncio.open_unix_connection(agent.path)
    writer.write(b'{"request":"gateway"}\n' + WhoisRequest(address=HELD).model_dump_json().encode() + b"\n")
    lines = (await reader.read()).splitlines()
    writer.close()
    assert all(b'"answer":"policy"' in line for line in lines)
    await soon(lambda: agent.serving.followers == [])


async def test_other_questions_are_answered_as_before(agent: Agent) -> None:
    await agent.start()
    with pytest.raises(AgentError, match="nobody"):
        await asyncio.to_thread(ask, agent.path, WhoisRequest(address=NOT_HELD), type(WhoisRequest(address=HELD)))


# --- the map's part that is the gateway's


def test_the_gateway_gets_held_addresses_and_the_sets_that_its_grants_name() -> None:
    upstream = HttpUpstream(url="http://127.0.0.1:9/mcp")
    policy = gateway_policy(netmap(80, upstream, revision=7))
    assert (policy.revision, policy.services["svc"].addresses, set(policy.sets)) == (7, (HELD,), {"tag:agents"})
    assert gateway_policy(netmap(80, upstream, held=())).services["svc"].addresses == ()
