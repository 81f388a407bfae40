"""`/metrics` for Prometheus, over plain HTTP, where the configuration asks for it: only then is this imported.

Labels are bounded, and nothing names a peer. Knows nothing of the daemon: it is given a function that measures.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.wire.base import split_endpoint

from .errors import AgentError
from .measured import Measured

__all__ = ["families", "serve"]

log = logging.getLogger("agentd.metrics")

_PATIENCE: Final = 5.0  # seconds; who scrapes waits no longer
_PREFIX: Final = "wardmesh_agentd"


async def serve(where: str, measure: Callable[[], Awaitable[Measured]]) -> None:
    """Answer at `where`, ADDRESS:PORT, until cancelled. Raises AgentError when it cannot listen there."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Asking(asyncio.get_running_loop(), measure))
    address, port = split_endpoint(where)
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise AgentError(f"metrics = {where!r}: cannot listen there: {error.strerror}; choose another") from error
    log.info("metrics at http://%s/metrics", where)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.shield(asyncio.to_thread(server.shutdown))
        server.server_close()
        thread.join()


class _Asking(Collector):
    """Asks the event loop, from the thread that serves a scrape."""

    def __init__(self, loop: asyncio.AbstractEventLoop, measure: Callable[[], Awaitable[Measured]]) -> None:
        self._loop, self._measure = loop, measure

    async def _measured(self) -> Measured:
        return await self._measure()

    def collect(self) -> Iterable[Metric]:
        """The host as it is now."""
        return families(asyncio.run_coroutine_threadsafe(self._measured(), self._loop).result(_PATIENCE))


def families(host: Measured) -> Iterable[Metric]:
    """What is exposed of it."""
    for name, text, value in (
        ("revision_desired", "Revision of the newest map that the controller sent", host.desired),
        ("revision_in_force", "Revision of the map that the kernel has; 0: none", host.in_force),
        ("map_saved", "1: a restart finds the map in force on the disk", host.is_saved),
        ("connected", "1: the controller's stream stands", host.is_connected),
        ("records_unshipped", "Records of calls that wait in the gateway's spools", host.unshipped),
        ("kernel_readable", "1: the kernel tells of peers and packets", host.peers is not None),
    ):
        yield GaugeMetricFamily(f"{_PREFIX}_{name}", text, value=float(value))
    if host.certificate_until is not None:
        text = "When the node's certificate ends, in seconds since the epoch"
        yield GaugeMetricFamily(f"{_PREFIX}_certificate_until_seconds", text, value=host.certificate_until)
    applies = CounterMetricFamily(f"{_PREFIX}_applies", "Attempts to put a map in force", labels=["outcome"])
    for outcome, count in host.applies.items():
        applies.add_metric([outcome], count)
    yield applies
    yield CounterMetricFamily(f"{_PREFIX}_drifts", "Times that somebody changed what agentd made", value=host.drifts)
    if host.peers is not None:
        peers = GaugeMetricFamily(f"{_PREFIX}_peers", "Peers by the age of their last handshake", labels=["handshake"])
        for age, count in host.peers.items():
            peers.add_metric([age], count)
        yield peers
    if host.counted is not None:
        denied = CounterMetricFamily(f"{_PREFIX}_denied_packets", "Packets denied, by where", labels=["where"])
        for where, packets in sorted(host.counted.denied.items()):
            denied.add_metric([where], packets)
        yield denied
        text = "Packets that a grant accepted"
        yield CounterMetricFamily(f"{_PREFIX}_accepted_packets", text, value=sum(host.counted.accepted.values()))
