"""What agentd has to do while its host's kernel relays, or sends by way of a relay: nothing that it has not anyhow.

How often it is woken is exact. Its CPU is not, in the guest: whole hundredths of a second, of whoever runs at the tick,
with what the kernel does for the network on that occasion.
"""

import time
from collections.abc import Callable
from typing import Final

import psutil

from tests.bench.figures import Bench, alternate
from tests.kernel.relayed_agents import RelayedAgents, passed_on, relayed_agents, wakeups
from tests.lab import eventually

__all__ = ["cpu"]

SECONDS: Final = 10  # of each measurement
ROUNDS: Final = 3


def cpu(bench: Bench) -> None:
    """All three daemons together, idle and with TCP at full speed by way of the relay."""
    with relayed_agents() as agents:
        agents.reach()
        woken: list[float] = []

        def relaying() -> None:
            before, packets = woken_so_far(agents), passed_on(agents.relay)
            agents.send("-t", str(SECONDS))
            woken.append((woken_so_far(agents) - before) / (passed_on(agents.relay) - packets) * 1000)

        found = alternate(
            {
                "idle": lambda: percent_of_a_core(agents, wait),
                "relayed TCP": lambda: percent_of_a_core(agents, relaying),
            },
            ROUNDS,
        )
    rows = [(name, runs.lowest, runs.median) for name, runs in found.items()]
    bench.table("agentd on the relay and both hosts, percent of a core", ("", "lowest", "median"), rows)
    for name, runs in found.items():
        bench.figure(f"agentd_{name.replace(' ', '_').lower()}_core_percent", runs.median)
    bench.bar("agentd_woken_per_1000_relayed_packets", max(woken), "<=", 2)


def woken_so_far(agents: RelayedAgents) -> int:
    return sum(wakeups(agent) for agent in agents.all.values())


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
