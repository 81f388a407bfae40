"""Topologies of hosts, switches and NAT routers in network namespaces, with real processes on them. See README.md."""

from tests.lab.processes import Process, ProcessEnded
from tests.lab.topology import Host, Lab, Switch
from tests.lab.waiting import eventually

__all__ = ["Host", "Lab", "Process", "ProcessEnded", "Switch", "eventually"]
