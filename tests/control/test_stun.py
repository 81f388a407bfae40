"""The controller answers STUN where the operator wants it, and starts all the same where it cannot."""

import asyncio
import os
import socket
from dataclasses import replace

import pytest

from controller.server import Running, running
from controller.settings import Listen, Settings, SettingsError
from controller.wire.stun import Binding, decode, encode


async def test_a_running_controller_tells_a_host_from_where_it_is_seen(controller: Running) -> None:
    loop = asyncio.get_running_loop()
    assert len(controller.stun) == 2
    for port in controller.stun:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setblocking(False)
            asking.bind(("127.0.0.1", 0))
            request = Binding("request", os.urandom(12))
            await loop.sock_sendto(asking, encode(request), ("127.0.0.1", port))
            async with asyncio.timeout(10):
                reply = decode(await loop.sock_recv(asking, 2048))
            assert reply.mapped == f"127.0.0.1:{asking.getsockname()[1]}"


async def test_stun_can_be_off(settings: Settings) -> None:
    async with running(replace(settings, stun="off")) as controller:
        assert controller.stun == ()


async def test_a_port_that_was_asked_for_and_is_taken_stops_the_start(settings: Settings) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        taken = Listen("127.0.0.1", other.getsockname()[1])
        with pytest.raises(SettingsError, match="--stun-listen"):
            async with running(replace(settings, stun=taken)):
                raise AssertionError("it started")


async def test_default_ports_that_are_taken_are_only_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        taken = Listen("127.0.0.1", other.getsockname()[1])
        monkeypatch.setattr(Settings, "default_stun", property(lambda _: taken))
        async with running(settings) as controller:
            assert controller.stun == ()
    assert "--stun-listen" in caplog.text
