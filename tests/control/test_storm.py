"""Hosts and strangers that come all at once: they are admitted at a pace, and everybody else is served meanwhile."""

import asyncio
import socket
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from controller.server import Running, running
from controller.settings import Settings
from controller.wire.stream import Snapshot

from .hosts import Host, new_node
from .streams import agent
from .support import Client


async def test_hosts_beyond_those_who_may_wait_are_told_when_to_come_back(settings: Settings, tmp_path: Path) -> None:
    async with (
        running(replace(settings, streams_waiting=1)) as controller,
        Client(controller, token=controller.first_token) as admin,
        Client(controller) as anyone,
    ):
        slow, host = [await new_node(admin, anyone, name) for name in ("slow", "host")]
        async with agent(controller, slow, tmp_path) as silent:
            with pytest.raises(InvalidStatus) as refused:
                async with agent(controller, host, tmp_path):
                    pass
            assert refused.value.response.status_code == 503
            assert refused.value.response.headers["content-type"] == "application/problem+json"
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
            assert (await admin.get("/nodes")).status_code == 200, "people are served"
            await silent.hello()
            async with agent(controller, host, tmp_path) as greeted:
                assert isinstance(await greeted.hello(), Snapshot)


async def test_every_host_that_comes_at_once_gets_its_map_and_leaves_its_place(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    hosts = [await new_node(admin, anyone, f"host-{number}") for number in range(40)]

    async def comes(host: Host) -> bool:
        async with agent(controller, host, tmp_path) as greeted:
            return isinstance(await greeted.hello(), Snapshot)

    assert all(await asyncio.gather(*map(comes, hosts)))
    assert controller.context.limits.opening.inside == 0


async def test_a_host_that_does_not_greet_leaves_its_place(
    controller: Running, admin: Client, anyone: Client, tmp_path: Path
) -> None:
    host = await new_node(admin, anyone, "host")
    async with agent(controller, host, tmp_path) as silent:
        assert controller.context.limits.opening.inside == 1
        await silent.say("nonsense")
        await silent.bye()
    async with asyncio.timeout(10):
        while controller.context.limits.opening.inside:
            await asyncio.sleep(0.01)


async def test_strangers_who_connect_and_say_nothing_do_not_keep_others_out(
    controller: Running, anyone: Client
) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(socket.create_connection(("127.0.0.1", controller.port)))
        async with asyncio.timeout(30):
            assert (await anyone.get("/health")).status_code == 200


async def test_a_connection_that_is_no_tls_ends_and_others_are_served(controller: Running, anyone: Client) -> None:
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", controller.port), timeout=10) as stranger:
            stranger.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_sendall(stranger, b"GET / HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(10):
                while await loop.sock_recv(stranger, 1000):
                    pass
    assert (await anyone.get("/health")).status_code == 200
