"""Streams that a controller ends or does not begin: bad frames, silence, another's key, old TLS, no certificate."""

import json
import ssl
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from controller.api import stream as stream_module
from controller.server import Running
from controller.wire.stream import (
    PROTOCOL,
    Applied,
    Bye,
    Hello,
)

from .hosts import Host
from .streams import agent, seen
from .support import Client, trust


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
