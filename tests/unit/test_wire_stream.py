"""Frames: what does not parse is refused whole."""

import pytest
from pydantic import ValidationError

from controller.wire.netmap import Mesh, Netmap, SelfNode
from controller.wire.stream import Applied, Bye, Hello, HostReport, Snapshot, agent_frame, controller_frame

KEY = "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE="
HELLO = Hello(revision=3, mesh="m1", report=HostReport(agent_version="0.1", public_key=KEY))


@pytest.mark.parametrize("frame", [HELLO, Applied(revision=4), Applied(revision=4, error="nft: no")])
def test_agent_frames_round_trip(frame: Hello | Applied) -> None:
    assert agent_frame.validate_json(frame.model_dump_json()) == frame


def test_controller_frames_round_trip() -> None:
    netmap = Netmap(
        revision=1,
        mesh=Mesh(id="m1", name="m", prefix4="100.64.0.0/16", prefix6="fd00::/48"),
        node=SelfNode(id="n1", name="a", addresses=("100.64.0.1",)),
    )
    for frame in (Snapshot(netmap=netmap), Bye(reason="shutdown", detail="restarting")):
        assert controller_frame.validate_json(frame.model_dump_json()) == frame


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"type": "snapshot"}',
        '{"type": "applied"}',
        '{"type": "applied", "revision": -1}',
        '{"type": "applied", "revision": 1, "extra": 1}',
        '{"type": "hello"}',
        "[" * 10_000,
    ],
)
def test_what_is_not_an_agent_frame_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        agent_frame.validate_json(text)
