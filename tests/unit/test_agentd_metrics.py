"""What monitoring is told of a host: every number by its name, bounded labels, and no peer."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from agentd.errors import AgentError
from agentd.gateway_messages import RecordsRequest
from agentd.measured import AGES, Measured, age
from agentd.metrics import families
from agentd.model import Counted
from agentd.records import RecordsPost
from controller.wire.base import Message
from controller.wire.call_records import CallRecord
from controller.wire.stream import Recorded

HOST = Measured(
    desired=9,
    in_force=8,
    applies={"done": 5, "refused": 1},
    drifts=2,
    is_saved=False,
    is_connected=True,
    certificate_until=1_900_000_000.0,
    unshipped=7,
    peers=dict.fromkeys(AGES, 3),
    counted=Counted(accepted={"grant-1": 10, "grant-2": 30}, denied={"in": 4, "out": 6}),
)
SPOOL = "0" * 32


class Fixed(Collector):
    def __init__(self, host: Measured) -> None:
        self._host = host

    def collect(self) -> list[Metric]:
        return list(families(self._host))


def exposed(host: Measured) -> dict[str, float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Fixed(host))
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def test_every_number_is_exposed_and_grants_are_summed() -> None:
    found = {name.removeprefix("wardmesh_agentd_"): value for name, value in exposed(HOST).items()}
    ages = {f'peers{{handshake="{name}"}}': 3.0 for name in AGES}
    assert found == ages | {
        "revision_desired": 9,
        "revision_in_force": 8,
        "map_saved": 0,
        "connected": 1,
        "records_unshipped": 7,
        "kernel_readable": 1,
        "certificate_until_seconds": 1_900_000_000,
        'applies_total{outcome="done"}': 5,
        'applies_total{outcome="refused"}': 1,
        "drifts_total": 2,
        'denied_packets_total{where="in"}': 4,
        'denied_packets_total{where="out"}': 6,
        "accepted_packets_total": 40,
    }


def test_a_kernel_that_does_not_tell_is_said_and_not_taken_for_silence() -> None:
    silent = Measured(**{field: getattr(HOST, field) for field in HOST.__slots__} | {"peers": None, "counted": None})
    found = exposed(silent)
    assert found["wardmesh_agentd_kernel_readable"] == 0
    assert not [name for name in found if "peers" in name or "packets" in name]


@pytest.mark.parametrize(
    ("seconds", "name"),
    [
        (None, "never"),
        (0.0, "3m"),
        (179.9, "3m"),
        (180.0, "1h"),
        (3600.0, "1d"),
        (86400.0, "older"),
        (1e9, "older"),
    ],
)
def test_a_handshake_has_one_age(seconds: float | None, name: str) -> None:
    assert age(seconds) == name


def batch(first: int, behind: int) -> RecordsRequest:
    record = CallRecord.model_validate({"event": "gateway:call:allowed", "time": 1.0})
    return RecordsRequest(spool=SPOOL, first=first, records=(record, record), behind=behind)


async def test_records_count_as_unshipped_until_the_controller_has_them() -> None:
    post = RecordsPost()
    with pytest.raises(AgentError, match="away"):
        await post.ship(batch(1, behind=5))
    assert post.unshipped == 7

    async def acknowledge(_: Message) -> None:
        post.recorded(Recorded(spool=SPOOL, through=2))

    with post.connected(acknowledge):
        await post.ship(batch(1, behind=5))
        assert post.unshipped == 5
