"""A host asks the router that it is behind for a port: miniupnpd by each protocol, and routers that misbehave."""

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from agentd.mapping import PortMapping
from agentd.paths import natpmp
from tests.kernel.nodes import OnHost
from tests.kernel.routers import INTERNET, Scripted, mapped_ports, offer_ports
from tests.lab import Host, Lab, Switch, eventually

pytestmark = pytest.mark.host_kernel

PORT = 51820
OURS = b"none but us "


class Asking(OnHost):
    """A host that runs nothing but the mapping of its port."""

    def __init__(self, host: Host, nonce: bytes = OURS, *, allowed: bool = True) -> None:
        super().__init__(host)
        self.mapping = PortMapping(PORT, nonce, allowed=allowed)
        self.call(self._start)

    async def _start(self) -> None:
        self.task = asyncio.create_task(self.mapping.run())
        self.mapping.want(True)

    def want(self, wanted: bool) -> None:
        async def change() -> None:
            self.mapping.want(wanted)

        self.call(change)

    def is_mapped(self) -> bool:
        return self.mapping.endpoint is not None

    def end(self) -> None:
        async def stop() -> None:
            self.task.cancel()
            await asyncio.wait([self.task])

        self.call(stop)
        super().end()


@dataclass
class Home:
    """A home's network behind a NAT router, and somebody on the internet."""

    lab: Lab
    inside: Switch
    outside: Switch
    router: Host
    host: Host
    stranger: Host

    @property
    def public(self) -> str:
        return self.router.port(self.outside).address

    def lets_in(self, endpoint: str) -> bool:
        """True when what a stranger sends there comes to the host's port."""
        address, _, port = endpoint.partition(":")
        with (
            self.host.socket(kind=socket.SOCK_DGRAM) as receiver,
            self.stranger.socket(kind=socket.SOCK_DGRAM) as sender,
        ):
            receiver.bind(("0.0.0.0", PORT))
            receiver.settimeout(5)
            sender.sendto(b"hello", (address, int(port)))
            try:
                return receiver.recv(64) == b"hello"
            except TimeoutError:
                return False


@contextmanager
def home() -> Iterator[Home]:
    with Lab() as lab:
        outside, inside = lab.switch("internet", INTERNET), lab.switch("home")
        router = lab.nat("router", inside=inside, outside=outside)
        yield Home(lab, inside, outside, router, lab.host("host", inside), lab.host("stranger", outside))


@contextmanager
def asking(host: Host, nonce: bytes = OURS) -> Iterator[Asking]:
    found = Asking(host, nonce)
    try:
        yield found
    finally:
        found.end()


@contextmanager
def scripted(router: Host, say: Callable[[bytes], bytes | None]) -> Iterator[Scripted]:
    found = Scripted(router, say)
    try:
        yield found
    finally:
        found.end()


@pytest.mark.parametrize(("upnp", "protocol"), [(0, "pcp"), (2, "upnp"), (1, "upnp")])
def test_a_port_of_the_router_leads_to_the_host_until_it_is_given_back(upnp: int, protocol: str) -> None:
    with home() as at:
        offer_ports(at.router, at.inside, at.outside, upnp=upnp)
        with asking(at.host) as asker:
            eventually(asker.is_mapped, 30, what="a mapped port")
            assert (asker.mapping.endpoint, asker.mapping.protocol) == (f"{at.public}:{PORT}", protocol)
            assert at.lets_in(f"{at.public}:{PORT}")
            assert asker.call(asker.mapping.end) == [f"gave the router's port {at.public}:{PORT} back"]
            assert str(PORT) not in mapped_ports(at.router)


@pytest.mark.parametrize("upnp", [0, 2, 1])
def test_a_second_host_behind_the_router_gets_another_port(upnp: int) -> None:
    with home() as at:
        offer_ports(at.router, at.inside, at.outside, upnp=upnp)
        with asking(at.host) as first, asking(at.lab.host("second", at.inside), b"second's own") as second:
            eventually(lambda: first.is_mapped() and second.is_mapped(), 30, what="two ports")
            endpoints = {first.mapping.endpoint, second.mapping.endpoint}
            assert len(endpoints) == 2
            assert all(endpoint is not None and endpoint.startswith(f"{at.public}:") for endpoint in endpoints)


def seconds_up(at: Home) -> int:
    """What the router counts since it began (RFC 6886 section 3.2)."""
    with at.host.socket(kind=socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(natpmp.ask_external(), (at.router.address, natpmp.SERVER_PORT))
        found = natpmp.read(sock.recv(64))
        assert isinstance(found, natpmp.External)
        return found.epoch


def test_a_router_that_began_anew_is_asked_again_when_it_says_so() -> None:
    with home() as at:
        running = offer_ports(at.router, at.inside, at.outside)
        with asking(at.host) as asker:
            eventually(asker.is_mapped, 30, what="a mapped port")
            eventually(lambda: seconds_up(at) > 3, 30, what="a time that clocks which drift cannot explain")
            running.kill()
            at.router.run("nft", "flush", "chain", "inet", "upnp", "mapped")
            offer_ports(at.router, at.inside, at.outside)
            # What makes it tell everybody, as it does when its address outside is another.
            at.router.run("kill", "-USR1", (at.router.directory / "miniupnpd.pid").read_text().strip())
            eventually(lambda: str(PORT) in mapped_ports(at.router), 30, what="the port mapped anew")


def test_after_a_restart_the_same_port_is_still_ours_by_pcp() -> None:
    with home() as at:
        offer_ports(at.router, at.inside, at.outside)
        for _ in range(2):
            with asking(at.host) as asker:
                eventually(asker.is_mapped, 30, what="a mapped port")
                assert (asker.mapping.endpoint, asker.mapping.protocol) == (f"{at.public}:{PORT}", "pcp")


def nat_pmp_alone(outside: str, result: int = 0) -> Callable[[bytes], bytes | None]:
    """A router that has never heard of PCP (RFC 6887 appendix A), and says that it is at `outside`."""

    def say(data: bytes) -> bytes | None:
        if data[0] != 0:
            return struct.pack("!BBHI", 0, 128, 1, 7)
        if data == b"\0\0":
            return struct.pack("!BBHI4s", 0, 128, result, 7, socket.inet_aton(outside))
        if len(data) == 12:
            internal, external, lifetime = struct.unpack_from("!HHI", data, 4)
            return struct.pack("!BBHIHHI", 0, 129, result, 7, internal, external, lifetime)
        return None

    return say


def test_a_router_without_pcp_is_asked_by_nat_pmp() -> None:
    with home() as at, scripted(at.router, nat_pmp_alone("11.0.0.9")) as router, asking(at.host) as asker:
        eventually(asker.is_mapped, 30, what="a mapped port")
        assert (asker.mapping.endpoint, asker.mapping.protocol) == ("11.0.0.9:51820", "nat-pmp")
        assert router.asked[0][0] == 2
        assert len(router.asked) == 3


def test_a_host_that_is_behind_no_nat_any_more_has_no_port_of_a_router() -> None:
    with home() as at, scripted(at.router, nat_pmp_alone("11.0.0.9")), asking(at.host) as asker:
        eventually(asker.is_mapped, 30, what="a mapped port")
        asker.want(False)
        eventually(lambda: not asker.is_mapped(), 30, what="no mapped port")
        assert asker.mapping.protocol is None


def test_a_refusal_says_which_router_refused_by_which_protocol() -> None:
    with home() as at, scripted(at.router, nat_pmp_alone("11.0.0.9", result=2)), asking(at.host) as asker:
        eventually(lambda: asker.mapping.problem, 30, what="a problem")
        assert asker.mapping.endpoint is None
        assert asker.mapping.problem == (
            f"the router {at.router.address} gives none (pcp: it does not speak PCP; nat-pmp: it refuses to: port "
            "mapping is switched off there; upnp: it does not answer)"
        )


def test_where_it_is_not_allowed_nobody_is_asked() -> None:
    with home() as at, scripted(at.router, nat_pmp_alone("11.0.0.9")) as router:
        asker = Asking(at.host, allowed=False)
        asker.call(lambda: asyncio.wait_for(asyncio.shield(asker.task), 10))
        assert not asker.mapping.wanted
        asker.end()
        assert router.asked == []


def test_a_router_that_sends_the_host_elsewhere_by_upnp_is_not_followed() -> None:
    with home() as at:
        elsewhere = f"HTTP/1.1 200 OK\r\nLOCATION: http://{at.stranger.address}:80/\r\n\r\n".encode()
        with (
            at.stranger.socket() as other,
            scripted(at.router, lambda data: elsewhere if data.startswith(b"M-SEARCH") else None),
            asking(at.host) as asker,
        ):
            other.bind(("0.0.0.0", 80))
            other.listen()
            other.setblocking(False)
            eventually(lambda: asker.mapping.problem, 30, what="a problem")
            assert f"it sends this host to '{at.stranger.address}'" in str(asker.mapping.problem)
            with pytest.raises(BlockingIOError):
                other.accept()


DESCRIPTION = (
    b"<root><device><serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>"
    b"<controlURL>/control</controlURL></service></serviceList></device></root>"
)
OUTSIDE = (
    b"<E><B><GetExternalIPAddressResponse><NewExternalIPAddress>11.0.0.9</NewExternalIPAddress>"
    b"</GetExternalIPAddressResponse></B></E>"
)
FOR_EVER = b"<E><B><Fault><errorCode>725</errorCode></Fault></B></E>"


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([http(DESCRIPTION), http(OUTSIDE), http(FOR_EVER, "500 Error")], "upnp: it gives ports for ever only"),
        ([http(DESCRIPTION), http(OUTSIDE.replace(b"11.0.0.9", b"0.0.0.0"))], "upnp: it has no address outside"),
        ([http(DESCRIPTION), http(b"<E/>", "302 Found\r\nLocation: http://11.0.0.3/")], "HTTP status 302"),
        ([b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 100_000], "upnp: it answers with more than 64 KiB"),
        ([b"nonsense\r\n\r\n"], "upnp: its answer is not HTTP"),
        ([b""], "HTTP status 0"),
    ],
    ids=["ports for ever", "no address", "redirected", "endless", "no HTTP", "hangs up"],
)
def test_a_router_that_misbehaves_by_upnp_gives_no_port(answers: list[bytes], said: str) -> None:
    with home() as at:
        at_itself = f"HTTP/1.1 200 OK\r\nLOCATION: http://{at.router.address}:5000/\r\n\r\n".encode()
        refuse = nat_pmp_alone("11.0.0.9", result=2)
        with scripted(at.router, lambda data: at_itself if data.startswith(b"M-SEARCH") else refuse(data)) as router:
            router.serve(5000, answers)
            with asking(at.host) as asker:
                eventually(lambda: asker.mapping.problem, 30, what="a problem")
                assert said in str(asker.mapping.problem)
                assert asker.mapping.endpoint is None
