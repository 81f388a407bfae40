"""Topologies of hosts, switches and NAT routers in network namespaces, with real processes on them. See README.md."""
