"""How long a NAT remembers is measured by waiting for it: three minutes, in a moment."""

import pytest

from agentd.binding import lifetime
from tests.kernel.finders import Stun
from tests.kernel.nodes import OnHost
from tests.lab import Lab

pytestmark = pytest.mark.timeout(3600)  # of the guest's time
UDP = "net.netfilter.nf_conntrack_udp_timeout"


@pytest.mark.parametrize(("forgets", "lived"), [(10, 0), (40, 30), (100, 90), (300, 180)])
def test_what_a_nat_remembers_is_what_is_measured(forgets: int, lived: int) -> None:
    with Lab() as lab:
        internet, home = lab.switch("internet"), lab.switch("home")
        inside = lab.host("inside", home)
        nat = lab.nat("nat", inside=home, outside=internet)
        for name in (UDP, f"{UDP}_stream"):
            nat.run("sysctl", "-q", "-w", f"{name}={forgets}")
        stun, host = Stun(lab.host("stun", internet)), OnHost(inside)
        try:
            found = host.call(lambda: lifetime(f"{stun.host.address}:3478"), timeout=1000)
        finally:
            host.end()
            stun.end()
        assert found == lived


def test_without_a_server_nothing_is_measured() -> None:
    with Lab() as lab:
        net = lab.switch("net")
        host, nobody = OnHost(lab.host("host", net)), lab.host("nobody", net)
        try:
            assert host.call(lambda: lifetime(f"{nobody.address}:3478"), timeout=1000) is None
        finally:
            host.end()
