"""Routers of a lab that give ports away: the real miniupnpd, and one that says what a test wants it to."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.kernel.finders import FORWARDED
from tests.kernel.nodes import OnHost
from tests.lab import Host, Switch, eventually
from tests.lab.processes import Process

__all__ = ["INTERNET", "Scripted", "mapped_ports", "offer_ports"]

# miniupnpd gives nobody a port of an address that it knows to be nobody's, as those for documentation are.
INTERNET = "11.0.0.0/26"
_TABLE = """
table inet upnp {
  chain prerouting { type nat hook prerouting priority dstnat; jump mapped; }
  chain postrouting { type nat hook postrouting priority srcnat - 1; jump mapped_out; }
  chain forward { type filter hook forward priority filter - 1; jump allowed; }
  chain mapped { }
  chain mapped_out { }
  chain allowed { }
}
"""
_SETTINGS = """
ext_ifname={outside}
listening_ip={inside}
port=0
enable_natpmp={natpmp}
enable_upnp={upnp}
force_igd_desc_v1={first}
secure_mode=yes
min_lifetime=60
max_lifetime=86400
upnp_table_name=upnp
upnp_nat_table_name=upnp
upnp_forward_chain=allowed
upnp_nat_chain=mapped
upnp_nat_postrouting_chain=mapped_out
uuid=8b6c0b5e-3f0f-4d2c-9c1a-2f1f0e6d7a11
allow 1024-65535 0.0.0.0/0 1024-65535
"""


def offer_ports(router: Host, inside: Switch, outside: Switch, *, upnp: int = 0) -> Process:
    """Run miniupnpd on a NAT router: PCP and NAT-PMP, or that version of UPnP's internet gateway device alone."""
    if not router.run("nft", "list", "table", "inet", "upnp", check=False).stdout:
        router.nft(_TABLE + FORWARDED)
    settings = router.directory / "miniupnpd.conf"
    settings.write_text(
        _SETTINGS.format(
            outside=router.port(outside).link,
            inside=router.port(inside).link,
            natpmp="no" if upnp else "yes",
            upnp="yes" if upnp else "no",
            first="yes" if upnp == 1 else "no",
        )
    )
    process = router.start("miniupnpd", "-d", "-f", settings, "-P", router.directory / "miniupnpd.pid")
    port = ":1900 " if upnp else ":5351 "
    eventually(lambda: port in router.run("ss", "-lun").stdout, 20, what="miniupnpd to listen")
    return process


def mapped_ports(router: Host) -> str:
    """Its rules for ports that it gave."""
    return router.run("nft", "list", "chain", "inet", "upnp", "mapped").stdout


class Scripted(OnHost):
    """What a router answers to each datagram at UDP port 5351 (and 1900), as `say` decides; and what it was asked."""

    def __init__(self, host: Host, say: Callable[[bytes], bytes | None]) -> None:
        super().__init__(host)
        self.asked: list[bytes] = []
        self._say = say
        self._server: asyncio.Server | None = None
        self._transports: list[asyncio.DatagramTransport] = []
        self.call(self._open)

    async def _open(self) -> None:
        for port in (5351, 1900):
            transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Answering(self), local_addr=("0.0.0.0", port)
            )
            protocol.transport = transport
            self._transports.append(transport)

    def serve(self, port: int, answers: Iterable[bytes]) -> None:
        """Answer one connection after another with these bytes, and hang up."""
        left = list(answers)

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(left.pop(0))
            with suppress(ConnectionError):  # who asked need not read to the end
                await writer.drain()
            writer.close()

        async def begin() -> None:
            self._server = await asyncio.start_server(answer, "0.0.0.0", port)

        self.call(begin)

    def heard(self, data: bytes) -> bytes | None:
        self.asked.append(data)
        return self._say(data)

    def end(self) -> None:
        async def close() -> None:
            if self._server is not None:
                self._server.close()
            for transport in self._transports:
                transport.close()

        self.call(close)
        super().end()


class _Answering(asyncio.DatagramProtocol):
    def __init__(self, router: Scripted) -> None:
        self._router = router
        self.transport: asyncio.DatagramTransport | None = None

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self._router.heard(data)
        if answer is not None and self.transport is not None:
            self.transport.sendto(answer, addr)
