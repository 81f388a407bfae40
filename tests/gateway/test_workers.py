"""Several workers of one gateway: each caller has one of them, whichever dies, and all end with their parent."""

import asyncio
import json
import os
import signal
import socket
import struct
import sys
from collections import Counter
from functools import partial
from ipaddress import ip_address
from pathlib import Path

import pytest

from agentd.gateway.http.exchange import Exchange
from agentd.gateway.http.server import Server
from agentd.gateway.siblings import Family, Siblings
from agentd.gateway.sockets import listening, process_of
from agentd.gateway.types import Code
from controller.addresses import AddressPlan
from tests.gateway.authority import Authority
from tests.gateway.harness import Lab, free_port, soon, tool
from tests.gateway.processes import START, Process, call
from tests.gateway.upstream import Seen, Upstream


@pytest.fixture
def gateway(policy_gateway: Process) -> Process:
    return policy_gateway


def callers_of(spool: Path) -> set[str]:
    found = set()
    for path in spool.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            found |= {f"caller-{number}" for number in range(20) if f'"caller-{number}"'.encode() in data}
    return found


def served_by(gateway: Process, workers: int) -> list[set[str]]:
    """Whose calls each worker recorded."""
    return [callers_of(gateway.state / "spool" / str(worker)) for worker in range(workers)]


async def test_a_caller_stays_in_one_worker_on_every_port_whichever_worker_died(
    lab: Lab, gateway: Process, authority: Authority
) -> None:
    other, tls = free_port(), free_port()
    gateway.state.mkdir()
    authority.write(gateway.state / "tls")
    gateway.write_policy(1, beside={"other": {"port": other}}, tls_port=tls)

    async def everybody_calls() -> None:
        for number in range(1, 20):
            for port, context in ((gateway.port, None), (other, None), (tls, authority.client), (gateway.port, None)):
                client = await lab.connect(f"127.0.0.{number}", port, **({"ssl": context} if context else {}))
                assert (await client.call(tool())).status == 200
                await client.close()

    await gateway.start("--workers", "3")
    await gateway.ready(3)

    def listening(times: int) -> bool:
        return gateway.said(f"port={tls}") == times

    await soon(partial(listening, 3), START)
    await everybody_calls()
    for number, victim in enumerate(gateway.workers()[:2]):
        victim.kill()  # the kernel puts another one in its place, and it comes back last
        await soon(partial(listening, 4 + number), START)
        await everybody_calls()
    assert await gateway.stop() == 0
    assert served_by(gateway, 3) == [
        {f"caller-{number - 1}" for number in range(1, 20) if number % 3 == worker} for worker in range(3)
    ]


async def test_the_streams_of_a_caller_are_counted_over_all_its_connections(
    lab: Lab, gateway: Process, upstream: Upstream
) -> None:
    async def endless(seen: Seen) -> None:
        seen.start_events()
        await seen.gone.wait()

    upstream.behaviour = endless
    gateway.write_policy(1, limits={"streams": 2})
    await gateway.start("--workers", "2")
    await gateway.ready(2)
    answers: Counter[str] = Counter()
    for number in (6, 7):
        for _ in range(8):
            client = await lab.connect(f"127.0.0.{number}", gateway.port)
            client.send("POST", *tool())
            headers = dict((await client.head())[1])
            answers[headers["content-type"]] += 1
            if "content-length" in headers:
                refusal = json.loads(await client.reader.readexactly(int(headers["content-length"])))
                assert refusal["error"]["code"] == Code.TOO_MANY_STREAMS
    assert answers == {"text/event-stream": 4, "application/json": 12}


async def test_a_connection_whose_worker_is_away_waits_for_the_next(lab: Lab, gateway: Process) -> None:
    await gateway.start("--workers", "2")
    await gateway.ready(2)
    victim = gateway.workers()[0]
    victim.kill()
    await soon(lambda: not victim.is_running(), START)
    assert await asyncio.gather(*(call(lab, gateway, f"127.0.0.{number}") for number in range(1, 20))) == [200] * 19
    await gateway.ready(3)
    assert len(gateway.workers()) == 2


def test_the_addresses_of_a_node_have_the_same_worker() -> None:
    for prefix in ("100.80.0.0/12", "10.7.5.0/24", "10.0.0.128/25"):
        plan = AddressPlan.parse(prefix, "fd12:3456:789a::/48")
        for number in range(2, min(plan.last_number, 700)):
            for processes in (2, 4, 8) if prefix.endswith("/25") else (2, 3, 5, 8, 61):
                homes = {process_of(ip_address(one), processes) for one in plan.addresses(number)}
                assert len(homes) == 1, (prefix, number, processes)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_kernel_chooses_by_the_same_rule(address: str) -> None:
    first = listening(address, 0, processes=3)
    port = first.getsockname()[1]
    group = [first, listening(address, port, processes=3), listening(address, port, processes=3)]
    sources = [f"127.0.0.{number}" for number in range(1, 30)] if address == "127.0.0.1" else ["::1"]
    for source in sources:
        with socket.create_connection((address, port), source_address=(source, 0)):
            accepted, _ = group[process_of(ip_address(source), 3)].accept()  # BlockingIOError: it is another's
            accepted.close()
    for one in group:
        one.close()


class Nobody:
    """An app that lets nobody in, and knows who was there (`http.server.App`)."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def admit(self, peer: str) -> bool:
        self.asked.append(peer)
        return False

    def begin(self, exchange: Exchange) -> None:
        raise AssertionError("nobody was let in")

    async def serve(self, exchange: Exchange) -> None:
        raise AssertionError("nobody was let in")


async def test_who_went_away_before_being_accepted_is_nobody_to_look_for(caplog: pytest.LogCaptureFixture) -> None:
    family, app = Family(2), Nobody()
    siblings = Siblings(0, list(map(os.dup, family.descriptors(0))))
    siblings.start(lambda name, connection: connection.close())
    server = Server(app, pass_on=partial(siblings.pass_on, "github"))
    waiting = socket.create_server(("127.0.0.1", 0))
    with socket.create_connection(waiting.getsockname()) as gone:
        gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close resets
    await server.listen(waiting)
    with socket.create_connection(waiting.getsockname(), source_address=("127.0.0.2", 0)) as later:
        await soon(lambda: app.asked)
        later.close()
    assert app.asked == ["127.0.0.2"]
    assert not caplog.records
    await server.close(0)
    siblings.close()
    family.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_workers_end_with_their_parent(gateway: Process, number: signal.Signals) -> None:
    await gateway.start("--workers", "2")
    await gateway.ready(2)
    workers = gateway.workers()
    await gateway.stop(number)
    await soon(lambda: not any(worker.is_running() for worker in workers), START)


async def test_workers_read_a_changed_policy(lab: Lab, gateway: Process) -> None:
    await gateway.start("--workers", "2")
    await gateway.ready(2)
    gateway.write_policy(2, tools=["other"])
    assert gateway.process is not None
    gateway.process.send_signal(signal.SIGHUP)
    await soon(lambda: gateway.said("in force") == 2)
    assert {await call(lab, gateway, f"127.0.0.{number}") for number in range(1, 20)} == {-40300}


async def test_workers_that_cannot_start_end_the_parent(gateway: Process) -> None:
    gateway.policy.unlink()
    await gateway.start("--workers", "2")
    assert gateway.process is not None
    assert await asyncio.wait_for(gateway.process.wait(), START) == 1


async def test_a_command_as_upstream_runs_once_whatever_the_workers(lab: Lab, gateway: Process) -> None:
    pids = gateway.directory / "pids"
    script = (
        "import json, os, sys\n"
        f"open({str(pids)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "for line in sys.stdin:\n"
        "    message = json.loads(line)\n"
        "    if 'id' in message:\n"
        "        result = {'resultType': 'complete', 'supportedVersions': ['2026-07-28'], 'capabilities': {},"
        " 'ttlMs': 0, 'cacheScope': 'private'}\n"
        "        print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': result}), flush=True)\n"
    )
    gateway.write_policy(1, upstream={"type": "stdio", "command": [sys.executable, "-c", script]})
    await gateway.start("--workers", "2")
    await gateway.ready(2)
    for number in range(1, 20):
        assert await call(lab, gateway, f"127.0.0.{number}") == 200
    assert len(pids.read_text().split()) == 1
