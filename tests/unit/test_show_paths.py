"""What `agentd netcheck` says of the router's port."""

import pytest

from agentd import show_paths
from agentd.path_messages import Netcheck
from controller.wire.netcheck import MappedPort

THERE = "203.0.113.7:51820"


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (MappedPort(state="mapped", protocol="nat-pmp", endpoint=THERE), f"{THERE} leads here, by NAT-PMP"),
        (MappedPort(state="not seen", protocol="upnp", endpoint=THERE), "behind a further NAT: not used"),
        (MappedPort(state="none", problem="the router 192.0.2.1 gives none"), "none: the router 192.0.2.1 gives none"),
        (MappedPort(state="off"), "port_mapping is false"),
        (MappedPort(state="not needed"), "no NAT is in between"),
        (MappedPort(state="asking"), "being asked for"),
    ],
)
def test_the_routers_port_is_told_with_its_reason(
    port: MappedPort, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    show_paths.netcheck(
        Netcheck(nat="unknown", udp="works", candidates=(), reflexive=(), mapping=port, listen_port=51820)
    )
    assert said in " ".join(capsys.readouterr().out.split())
