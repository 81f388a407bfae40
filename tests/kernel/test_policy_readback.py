"""What is read back from the kernel agrees with the map that was written, and notices when the kernel has another."""

import random
from collections.abc import Iterable

import pytest

from agentd.kernel.judging import Judge
from agentd.kernel.readback import Readback
from controller.wire.asking import Judged
from controller.wire.netmap import Netmap, Protocol, Rule
from controller.wire.rules import Flow, allowing
from tests.kernel.guarded import LINK, SENDER, Guarded
from tests.kernel.maps import Member, allow, netmap

pytestmark = pytest.mark.host_kernel

NOW = 1_800_000_000
OTHER = Member(3)
PORTS = (1, 22, 53, 443, 8000, 8050, 65535)
SERVICES: tuple[tuple[Protocol, int | None], ...] = (
    ("icmp", None),
    *(("tcp", port) for port in PORTS),
    *(("udp", port) for port in PORTS),
)


def judged(guarded: Guarded, desired: Netmap, flows: Iterable[Flow], now: float = NOW) -> list[Judged]:
    async def look() -> list[Judged]:
        readback = Readback()
        try:
            judge = Judge(await readback.listing(), readback, LINK, desired, now)
            return [judge.judge(flow) for flow in flows]
        finally:
            readback.close()

    return guarded.call(look)


def every_flow() -> list[Flow]:
    return [
        Flow(direction=direction, peer=peer, protocol=protocol, port=port)
        for direction in ("in", "out")
        for peer in (SENDER.address, SENDER.address6, OTHER.address, "100.64.0.9")
        for protocol, port in SERVICES
    ]


def some_rules(chance: random.Random) -> list[Rule]:
    def one(number: int) -> Rule:
        protocol: Protocol = chance.choice(("tcp", "udp", "icmp"))
        low = chance.choice(PORTS)
        ports = [] if protocol == "icmp" else [(low, chance.choice([low, min(low + 60, 65535)]))]
        return allow(
            chance.choice(("in", "out")),
            protocol,
            *ports,
            peers=chance.sample(["all", f"node:{SENDER.name}", f"node:{OTHER.name}"], chance.randint(1, 2)),
            grant=f"grant {number}/é",
            expires=chance.choice([None, NOW + 3600, NOW - 1]),
        )

    return [one(number) for number in range(chance.randint(0, 8))]


@pytest.mark.parametrize("seed", range(8))
def test_policy_read_back_from_the_kernel_is_that_of_the_map(guarded: Guarded, seed: int) -> None:
    desired = netmap(guarded.member, SENDER, OTHER, rules=some_rules(random.Random(seed)))
    guarded.apply(desired, NOW)
    flows = every_flow()
    for flow, found in zip(flows, judged(guarded, desired, flows), strict=True):
        rules = allowing(desired, flow, NOW)
        assert found.passes is bool(rules), (flow, found, desired.rules)
        assert found.grant is None or found.grant in {rule.grant for rule in rules}
        assert (found.grant is not None) is bool(rules)


def test_policy_that_ended_does_not_pass_although_the_table_still_has_it(guarded: Guarded) -> None:
    desired = netmap(guarded.member, SENDER, rules=[allow("in", "tcp", 443, expires=NOW + 10)])
    guarded.apply(desired, NOW)
    flow = Flow(direction="in", peer=SENDER.address, protocol="tcp", port=443)
    assert judged(guarded, desired, [flow], NOW + 9)[0].passes is True
    assert judged(guarded, desired, [flow], NOW + 10)[0].passes is False


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (f"delete element inet wardmesh from4 {{ {SENDER.address} }}", "chain deny/in refuses tcp:443"),
        ("delete table inet wardmesh", "table inet wardmesh is not in the kernel"),
        ("insert rule inet wardmesh input tcp dport 443 drop", "chain input refuses tcp:443"),
        ("insert rule inet wardmesh input numgen random mod 2 0 accept", "cannot read"),
    ],
)
def test_policy_that_somebody_changed_in_the_kernel_is_noticed(guarded: Guarded, change: str, why: str) -> None:
    desired = netmap(guarded.member, SENDER, rules=[allow("in", "tcp", 443)])
    guarded.apply(desired, NOW)
    flow = Flow(direction="in", peer=SENDER.address, protocol="tcp", port=443)
    assert judged(guarded, desired, [flow])[0].passes is True
    guarded.host.nft(change)
    (found,) = judged(guarded, desired, [flow])
    assert found.passes is False
    assert why in found.why
