"""Hosts, switches and routers. Each is a network namespace; a switch is a bridge in one of its own.

Addresses come from the documentation ranges (RFC 5737, RFC 3849). Knows nothing of wardmesh.
"""

import ipaddress
import itertools
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tests.lab.machine import Machine
from tests.lab.namespaces import Namespace, end_processes_in
from tests.lab.processes import Process

__all__ = ["Host", "Lab", "Switch"]

T = TypeVar("T")
_serial = itertools.count(1)
_V4_RANGES = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
_V4_LENGTH = 26  # twelve switches with 61 hosts each; name a prefix for more
_NAT = """
table inet nat {
  chain forward {
    type filter hook forward priority filter; policy drop;
    iifname "INSIDE" accept
    ct state established,related accept
  }
  chain input {
    type filter hook input priority filter; policy accept;
    iifname "OUTSIDE" ct state new drop
    iifname "OUTSIDE" ct state invalid drop
  }
  chain postrouting {
    type nat hook postrouting priority srcnat;
    oifname "OUTSIDE" masqueradeRANDOM
  }
}
"""


@dataclass(slots=True)
class Port:
    """Where a host is plugged in: the host's link, the switch's end of the cable, and the host's addresses there."""

    switch: "Switch"
    link: str
    switch_link: str
    address: str
    address6: str


class Switch:
    """One layer-2 segment with an IPv4 and an IPv6 prefix. `gateway`: the router that its hosts use, if any."""

    def __init__(self, namespace: Namespace, name: str, prefix: str, prefix6: str) -> None:
        self.namespace = namespace
        self.name = name
        self.network = IPv4Network(prefix)
        self.network6 = IPv6Network(prefix6)
        self.gateway: Port | None = None
        self.hosts: list[Host] = []
        self._free = self.network.hosts()
        self._free6: Iterator[IPv6Address] = (self.network6[n] for n in itertools.count(1))
        namespace.sysctl("net.ipv6.conf.default.disable_ipv6", 1)  # a switch has no addresses
        with namespace.wires() as wires:
            wires.bridge("bridge")

    def __repr__(self) -> str:
        return f"<Switch {self.name} {self.network} {self.network6}>"

    def next_addresses(self) -> tuple[str, str]:
        """The next free IPv4 and IPv6 address of the segment."""
        return str(next(self._free)), str(next(self._free6))


@dataclass(eq=False)
class Host:
    """A machine on the network, with its own host name, /run, /sys and /etc/hosts.

    Other files are shared with the tests' machine.

    `directory` is for its files: state directories, configuration. They go with the lab.
    """

    name: str
    machine: Machine
    directory: Path
    ports: list[Port] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<Host {self.name} {', '.join(port.address for port in self.ports)}>"

    @property
    def address(self) -> str:
        """Its IPv4 address on the first switch."""
        return self.ports[0].address

    @property
    def address6(self) -> str:
        """Its IPv6 address on the first switch."""
        return self.ports[0].address6

    def port(self, switch: Switch | None = None) -> Port:
        """Where it is plugged into `switch` (the first one when there is only one to mean)."""
        return next(port for port in self.ports if switch is None or port.switch is switch)

    def run(
        self,
        *command: str | Path,
        check: bool = True,
        timeout: float = 30,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, output captured as text. With `check`, failure raises and shows the output."""
        here = Path.cwd()
        process = self.machine.call(
            lambda: subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=None if env is None else {**os.environ, **env},
                cwd=here,
            )
        )
        with process:
            try:
                stdout, stderr = process.communicate(stdin, timeout)
            except BaseException:
                process.kill()
                raise
        if check and process.returncode != 0:
            shown = " ".join(map(str, command))
            raise AssertionError(f"{self.name}: `{shown}` ended with {process.returncode}\n{stdout}{stderr}")
        return subprocess.CompletedProcess(list(map(str, command)), process.returncode, stdout, stderr)

    def start(
        self,
        *command: str | Path,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Start a command that stays; it ends with the lab at the latest. `env` is added to the tests' own."""
        where = cwd or Path.cwd()
        process = self.machine.call(lambda: Process(command, stdin=stdin, env={**os.environ, **(env or {})}, cwd=where))
        self.processes.append(process)
        return process

    def enter(self) -> AbstractContextManager[None]:
        """See `Namespace.enter`: for sockets and processes, not across an await."""
        return self.machine.enter()

    def call(self, function: Callable[[], T]) -> T:
        """Run `function` on a thread that is on this host."""
        return self.machine.call(function)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket that is on this host."""
        return self.machine.socket(family, kind, protocol)

    def nft(self, ruleset: str) -> None:
        """Load an nftables ruleset on this host."""
        self.run("nft", "-f", "-", stdin=ruleset)

    def impair(
        self,
        switch: Switch | None = None,
        *,
        delay_ms: float = 0,
        jitter_ms: float = 0,
        loss_percent: float = 0,
        duplicate_percent: float = 0,
        rate_mbit: float = 0,
    ) -> None:
        """Make the cable to `switch` slow or lossy, in both directions; with no values, good again.

        Packets whose delay differs by `jitter_ms` overtake each other.
        """
        port = self.port(switch)
        for namespace, link in ((self.machine, port.link), (port.switch.namespace, port.switch_link)):
            words = ["tc", "-n", namespace.name, "qdisc", "replace", "dev", link, "root", "netem"]
            words += ["delay", f"{delay_ms}ms", *([f"{jitter_ms}ms"] if jitter_ms else [])] if delay_ms else []
            words += ["loss", f"{loss_percent}%"] if loss_percent else []
            words += ["duplicate", f"{duplicate_percent}%"] if duplicate_percent else []
            words += ["rate", f"{rate_mbit}mbit"] if rate_mbit else []
            subprocess.run(words, check=True)

    def unplug(self, switch: Switch | None = None) -> None:
        """Pull the cable: the host's link loses its carrier."""
        port = self.port(switch)
        port.switch.namespace.batch(f"link set {port.switch_link} down")

    def plug(self, switch: Switch | None = None) -> None:
        """Put the cable back."""
        port = self.port(switch)
        port.switch.namespace.batch(f"link set {port.switch_link} up")

    def readdress(self, switch: Switch | None = None) -> Port:
        """Give the host new addresses on `switch`, as a host that roams within it gets; the old ones are gone."""
        port = self.port(switch)
        new, new6 = port.switch.next_addresses()
        old, old6, port.address, port.address6 = port.address, port.address6, new, new6
        length, length6 = port.switch.network.prefixlen, port.switch.network6.prefixlen
        self.machine.batch(
            # The old ones first: a second IPv4 address of the same prefix would go with the first.
            f"address del {old}/{length} dev {port.link}",
            f"address del {old6}/{length6} dev {port.link}",
            f"address add {new}/{length} dev {port.link}",
            f"address add {new6}/{length6} dev {port.link} nodad",
        )
        _route_by_gateway(self, port)
        return port


class Lab:
    """A topology that ends with its `with` block: processes, namespaces and files, also after an exception.

    Several labs run at once, in one process or many: the names of their namespaces are their own.
    """

    def __init__(self) -> None:
        self.prefix = f"lab{os.getpid()}-{next(_serial)}"
        self._ended = ExitStack()
        self._namespaces: list[Namespace] = []
        self.hosts: dict[str, Host] = {}
        self._prefixes = (
            network for text in _V4_RANGES for network in ipaddress.ip_network(text).subnets(new_prefix=_V4_LENGTH)
        )
        self._prefixes6 = IPv6Network("2001:db8::/32").subnets(new_prefix=64)
        # Short: the path of a Unix socket has at most 107 bytes.
        self.directory = Path(self._ended.enter_context(tempfile.TemporaryDirectory(prefix="lab-")))
        self.directory.chmod(0o711)  # hosts have programs that run as other users
        self._ended.callback(self._end)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._show_processes()
        self._ended.close()

    def switch(self, name: str, prefix: str | None = None, prefix6: str | None = None) -> Switch:
        """A new segment; without prefixes, with the next free documentation prefixes."""
        namespace = Namespace(f"{self.prefix}-{name}")
        self._namespaces.append(namespace)
        return Switch(namespace, name, prefix or str(next(self._prefixes)), prefix6 or str(next(self._prefixes6)))

    def host(self, name: str, *switches: Switch) -> Host:
        """A new host, plugged into each switch with the next free addresses. Its links are eth0, eth1, …"""
        directory = self.directory / name
        (directory / "run").mkdir(parents=True)
        machine = Machine(f"{self.prefix}-{name}", name, directory / "run", directory / "hosts")
        self._namespaces.append(machine)
        host = Host(name, machine, directory)
        self.hosts[name] = host
        for switch in switches:
            self.connect(host, switch)
        return host

    def connect(self, host: Host, switch: Switch) -> Port:
        """Plug `host` into one more switch."""
        address, address6 = switch.next_addresses()
        port = Port(switch, f"eth{len(host.ports)}", f"port{len(switch.hosts)}", address, address6)
        host.ports.append(port)
        switch.hosts.append(host)
        with host.machine.wires() as wires:
            wires.cable(port.link, port.switch_link, switch.namespace.descriptor)
            wires.address(port.link, address, switch.network.prefixlen)
            wires.address(port.link, address6, switch.network6.prefixlen)
        with switch.namespace.wires() as wires:
            wires.join(port.switch_link, "bridge")
        _route_by_gateway(host, port)
        return port

    def router(self, name: str, *switches: Switch) -> Host:
        """A router between `switches`. Hosts of a switch that has no gateway yet use it, also those that come later."""
        router = self.host(name, *switches)
        router.machine.sysctl("net.ipv4.ip_forward", 1)
        router.machine.sysctl("net.ipv6.conf.all.forwarding", 1)
        for port in router.ports:
            self._make_gateway(router, port)
        return router

    def nat(self, name: str, *, inside: Switch, outside: Switch, random_ports: bool = False) -> Host:
        """A home router: masquerades what leaves `inside`, drops what `outside` begins, as real ones do.

        It keeps source ports where it can, as most do; with `random_ports` every flow gets another one (RFC 4787:
        address and port-dependent mapping), which hole punching cannot predict.
        """
        router = self.host(name, inside, outside)
        router.machine.sysctl("net.ipv4.ip_forward", 1)
        router.machine.sysctl("net.ipv6.conf.all.forwarding", 1)
        ruleset = _NAT.replace("INSIDE", router.port(inside).link).replace("OUTSIDE", router.port(outside).link)
        router.nft(ruleset.replace("RANDOM", " fully-random" if random_ports else ""))
        self._make_gateway(router, router.port(inside))
        return router

    def _make_gateway(self, router: Host, port: Port) -> None:
        if port.switch.gateway is not None:
            return
        port.switch.gateway = port
        for host in port.switch.hosts:
            if host is not router:
                _route_by_gateway(host, host.port(port.switch))

    def _end(self) -> None:
        for host in reversed(self.hosts.values()):
            for process in reversed(host.processes):
                with suppress(ProcessLookupError):
                    process.kill()
        end_processes_in(self._namespaces)
        for namespace in reversed(self._namespaces):
            namespace.delete()

    def _show_processes(self) -> None:
        """What the processes said, for the report of the test that failed; pytest captures it."""
        for host in self.hosts.values():
            for process in host.processes:
                print(f"--- {host.name}: {process!r} (exit code {process.returncode})\n{process.output}")


def _route_by_gateway(host: Host, port: Port) -> None:
    gateway = port.switch.gateway
    if gateway is None:
        return
    with host.machine.wires() as wires:
        wires.default_route(port.link, gateway.address)
        wires.default_route(port.link, gateway.address6)
