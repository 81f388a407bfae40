"""What agentd has to do while its host's kernel relays, or sends by way of a relay: nothing that it has not anyhow."""

import time
from collections.abc import Callable
from typing import Final

import psutil

from tests.bench.figures import Bench, alternate
from tests.kernel.relayed_agents import RelayedAgents, relayed_agents
from tests.lab import eventually

__all__ = ["cpu"]

SECONDS: Final = 10  # of each measurement, of whose CPU the guest counts hundredths
ROUNDS: Final = 3


def cpu(bench: Bench) -> None:
    """All three daemons together, idle and with TCP at full speed by way of the relay."""
    with relayed_agents() as agents:
        agents.reach()
        found = alternate(
            {
                "idle": lambda: percent_of_a_core(agents, wait),
                "relayed TCP": lambda: percent_of_a_core(agents, lambda: agents.send("-t", str(SECONDS))),
            },
            ROUNDS,
        )
    rows = [(name, runs.lowest, runs.median) for name, runs in found.items()]
    bench.table("agentd on the relay and both hosts, percent of a core", ("", "lowest", "median"), rows)
    idle, busy = (runs.median for runs in found.values())
    bench.figure("agentd_idle_core_percent", idle)
    bench.bar("agentd_added_by_relayed_tcp_core_percent", busy - idle, "<=", 0.5)


def wait() -> None:
    begun = time.monotonic()
    eventually(lambda: time.monotonic() - begun >= SECONDS, SECONDS + 10, interval=1)


def percent_of_a_core(agents: RelayedAgents, during: Callable[[], None]) -> float:
    """User and system, with what the daemons started."""
    daemons = [psutil.Process(agent.process.pid) for agent in agents.all.values()]

    def used() -> float:
        return sum(sum(daemon.cpu_times()[:4]) for daemon in daemons)

    before, begun = used(), time.monotonic()
    during()
    return (used() - before) / (time.monotonic() - begun) * 100
