"""Links, addresses and routes over rtnetlink, with pyroute2's message classes. Knows nothing of WireGuard or policy.

A link is recognised as ours by its group, which is set in the message that creates it, so that there is no moment at
which an unmarked link of ours exists. Routes carry a protocol number of our own.
"""

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWROUTE,
)
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from agentd.model import HostNetwork, KernelError, LocalAddress, Network, ObservedLink, Route

from .errors import refused
from .netlink import NETLINK_ROUTE, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NetlinkError, NetlinkSocket

__all__ = ["GROUP", "ROUTE_PROTOCOL", "Links", "default_gateway", "host_networks", "local_addresses"]

GROUP: Final = 0x776D  # "wm": the device group that marks our links; `ip link show group 30573` lists them
ROUTE_PROTOCOL: Final = 119  # unassigned in /etc/iproute2/rt_protos; `ip route show proto 119` lists ours

_IFF_UP: Final = 1
_IFA_F_NODAD: Final = 0x02
_IFA_F_DEPRECATED: Final = 0x20
_FOREVER: Final = 0xFFFFFFFF  # INFINITY_LIFE_TIME
_RT_TABLE_MAIN: Final = 254
_RT_SCOPE_UNIVERSE: Final = 0
_RT_SCOPE_LINK: Final = 253
_RTN_UNICAST: Final = 1
_FAMILIES: Final = (int(socket.AF_INET), int(socket.AF_INET6))
_HEADER: Final = 16

_NO_REMEDIES: Final[Mapping[int | None, str]] = {}
_ENABLE_IPV6: Final = "IPv6 is off on this host, and the mesh has IPv6 addresses: set net.ipv6.conf.all.disable_ipv6=0"
_NO_IPV6: Final[Mapping[int | None, str]] = {errno.EACCES: _ENABLE_IPV6, errno.EOPNOTSUPP: _ENABLE_IPV6}


class Links:
    """The rtnetlink of the network namespace in which it was constructed."""

    def __init__(self) -> None:
        try:
            self._netlink = NetlinkSocket(NETLINK_ROUTE)
        except OSError as error:
            raise refused("opening a route netlink socket", error) from error

    @property
    def writes(self) -> int:
        """How many messages asked for a change so far."""
        return self._netlink.writes

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    # --- links ---

    def find(self, name: str) -> ObservedLink | None:
        """The link of that name, ours or not."""
        request = _message(ifinfmsg, attrs=[["IFLA_IFNAME", name]])
        try:
            answer = _decode(ifinfmsg, self._netlink.ask(RTM_GETLINK, request))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise refused(f"looking for link {name}", error) from error
        info = answer.get_attr("IFLA_LINKINFO")
        return ObservedLink(
            index=answer["index"],
            kind=(info.get_attr("IFLA_INFO_KIND") if info else None) or "",
            mtu=answer.get_attr("IFLA_MTU"),
            up=bool(answer["flags"] & _IFF_UP),
            ours=answer.get_attr("IFLA_GROUP") == GROUP,
        )

    def create(self, name: str, kind: str) -> None:
        """Make a link of that kind, down, with our mark."""
        attrs: list[list[object]] = [
            ["IFLA_IFNAME", name],
            ["IFLA_GROUP", GROUP],
            ["IFLA_LINKINFO", {"attrs": [["IFLA_INFO_KIND", kind]]}],
        ]
        message = _message(ifinfmsg, attrs)
        self._write(f"creating link {name} ({kind})", RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, message)

    def adopt(self, name: str, new_name: str, mtu: int) -> None:
        """Rename a link that is down, and mark it as ours, in one message."""
        attrs: list[list[object]] = [["IFLA_IFNAME", new_name], ["IFLA_GROUP", GROUP], ["IFLA_MTU", mtu]]
        message = _message(ifinfmsg, attrs, index=self.index(name))
        self._write(f"renaming link {name} to {new_name}", RTM_NEWLINK, 0, message)

    def configure(self, name: str, *, mtu: int | None = None, up: bool = False) -> None:
        """Set the MTU, or bring the link up, or both, in one message."""
        attrs: list[list[object]] = [["IFLA_MTU", mtu]] if mtu is not None else []
        flags = _IFF_UP if up else 0
        message = _message(ifinfmsg, attrs, index=self.index(name), flags=flags, change=flags)
        self._write(f"setting link {name}", RTM_NEWLINK, 0, message)

    def remove(self, name: str) -> None:
        """Remove the link, if it is there and ours."""
        link = self.find(name)
        if link is None:
            return
        if not link.ours:
            raise KernelError(f"link {name} was not made by agentd: it is left alone; remove it yourself if you want")
        with _missing_is_fine(errno.ENODEV):
            self._write(f"removing link {name}", RTM_DELLINK, 0, _message(ifinfmsg, index=link.index))

    def index(self, name: str) -> int:
        """The link's index. Raises KernelError when there is no such link."""
        link = self.find(name)
        if link is None:
            raise KernelError(f"link {name} is gone: another program removed it; it is made again at the next attempt")
        return link.index

    # --- addresses ---

    def addresses(self, index: int) -> tuple[frozenset[Network], frozenset[Network]]:
        """The link's own addresses, and those that it holds for services.

        The link-local one that the kernel gives a TUN link by itself is not reported.
        """
        own: set[Network] = set()
        held: set[Network] = set()
        for answer in self._dump(RTM_GETADDR, _message(ifaddrmsg, index=index), ifaddrmsg):
            address = answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS")
            network = Network.parse(f"{address}/{answer['prefixlen']}")
            if not address.lower().startswith("fe80:"):
                (held if answer.get_attr("IFA_FLAGS") & _IFA_F_DEPRECATED else own).add(network)
        return frozenset(own), frozenset(held)

    def add_address(self, name: str, network: Network, *, held: bool = False) -> None:
        """Give the link an address; no error when it has it.

        With `held` it is deprecated from the start (RFC 4862 section 5.5.4): who asks for it is answered, but nothing
        new is said from it. IPv4 chooses by routes alone, which name their source; there it is the mark of a held one.
        """
        what, flags = f"adding address {network} to {name}", NLM_F_CREATE | NLM_F_REPLACE
        self._address(what, RTM_NEWADDR, flags, name, network, preferred=0 if held else _FOREVER)

    def remove_address(self, name: str, network: Network) -> None:
        """Take an address from the link; no error when it has it not."""
        with _missing_is_fine(errno.EADDRNOTAVAIL, errno.ENODEV):
            self._address(f"removing address {network} from {name}", RTM_DELADDR, 0, name, network)

    def _address(
        self, what: str, kind: int, flags: int, name: str, network: Network, *, preferred: int = _FOREVER
    ) -> None:
        # No duplicate address detection: there is nobody to ask on a tunnel, and an address must be usable at once.
        attrs: list[list[object]] = [
            ["IFA_LOCAL", network.address],
            ["IFA_ADDRESS", network.address],
            ["IFA_FLAGS", _IFA_F_NODAD],
            ["IFA_CACHEINFO", {"ifa_preferred": preferred, "ifa_valid": _FOREVER}],
        ]
        message = _message(ifaddrmsg, attrs, index=self.index(name), family=network.family, prefixlen=network.length)
        self._write(
            what, kind, flags, message, remedies=_NO_IPV6 if network.family == socket.AF_INET6 else _NO_REMEDIES
        )

    # --- routes ---

    def routes(self, index: int) -> frozenset[Route]:
        """Our routes through the link."""
        found = []
        for family in _FAMILIES:
            # The kernel filters (NETLINK_GET_STRICT_CHK): a host may have a million other routes.
            request = _message(
                rtmsg, family=family, table=_RT_TABLE_MAIN, proto=ROUTE_PROTOCOL, attrs=[["RTA_OIF", index]]
            )
            for answer in self._dump(RTM_GETROUTE, request, rtmsg):
                destination, source = answer.get_attr("RTA_DST"), answer.get_attr("RTA_PREFSRC")
                if answer.get_attr("RTA_OIF") == index and answer["proto"] == ROUTE_PROTOCOL and destination and source:
                    prefix = Network.parse(f"{destination}/{answer['dst_len']}")
                    metrics = answer.get_attr("RTA_METRICS")
                    mtu = (metrics.get_attr("RTAX_MTU") if metrics else None) or 0
                    found.append(Route(destination=prefix, source=Network.host(source), mtu=mtu))
        return frozenset(found)

    def put_route(self, name: str, route: Route, *, replace: bool) -> None:
        """Add a route; with `replace`, change the one to that destination. Never replaces another program's route."""
        flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
        try:
            self._route(f"adding route {route}", RTM_NEWROUTE, flags, name, route)
        except KernelError as error:
            if not replace and isinstance(error.__cause__, NetlinkError) and error.__cause__.errno == errno.EEXIST:
                raise KernelError(
                    f"this host has another route to {route.destination}, which is the mesh's: remove that route, "
                    f"or give the mesh another prefix"
                ) from error
            raise

    def remove_route(self, name: str, route: Route) -> None:
        """Remove our route; no error when it is not there."""
        with _missing_is_fine(errno.ESRCH, errno.ENODEV):
            self._route(f"removing route {route}", RTM_DELROUTE, 0, name, route)

    def _route(self, what: str, kind: int, flags: int, name: str, route: Route) -> None:
        four = route.destination.family == socket.AF_INET
        attrs: list[list[object]] = [["RTA_DST", route.destination.address], ["RTA_OIF", self.index(name)]]
        attrs.append(["RTA_PREFSRC", route.source.address])
        if route.mtu:
            attrs.append(["RTA_METRICS", {"attrs": [["RTAX_MTU", route.mtu]]}])
        message = _message(
            rtmsg,
            attrs,
            family=route.destination.family,
            dst_len=route.destination.length,
            table=_RT_TABLE_MAIN,
            proto=ROUTE_PROTOCOL,
            scope=_RT_SCOPE_LINK if four else _RT_SCOPE_UNIVERSE,
            type=_RTN_UNICAST,
        )
        self._write(what, kind, flags, message)

    # --- the host's own ---

    def names(self) -> dict[int, str]:
        """Every link's name by index."""
        answers = self._dump(RTM_GETLINK, _message(ifinfmsg), ifinfmsg)
        return {answer["index"]: answer.get_attr("IFLA_IFNAME") for answer in answers}

    def ours(self) -> set[int]:
        """The indexes of the links that carry our mark."""
        answers = self._dump(RTM_GETLINK, _message(ifinfmsg), ifinfmsg)
        return {answer["index"] for answer in answers if answer.get_attr("IFLA_GROUP") == GROUP}

    def all_addresses(self) -> list[tuple[int, str, int]]:
        """Every address as (link index, address, prefix length)."""
        return [
            (answer["index"], answer.get_attr("IFA_LOCAL") or answer.get_attr("IFA_ADDRESS"), answer["prefixlen"])
            for answer in self._dump(RTM_GETADDR, _message(ifaddrmsg), ifaddrmsg)
        ]

    def all_routes(self) -> list[tuple[int, str]]:
        """The main table's unicast routes, but the default routes, as (link index, prefix)."""
        found = []
        for family in _FAMILIES:
            for answer in self._dump(RTM_GETROUTE, _message(rtmsg, family=family, table=_RT_TABLE_MAIN), rtmsg):
                destination, link = answer.get_attr("RTA_DST"), answer.get_attr("RTA_OIF")
                if answer["type"] == _RTN_UNICAST and destination and link:
                    found.append((link, f"{destination}/{answer['dst_len']}"))
        return found

    def gateway(self) -> str | None:
        """The router of the main table's IPv4 default route, the one with the lowest metric; None without one."""
        request = _message(rtmsg, family=socket.AF_INET, table=_RT_TABLE_MAIN)
        found = [
            (answer.get_attr("RTA_PRIORITY") or 0, answer.get_attr("RTA_GATEWAY"))
            for answer in self._dump(RTM_GETROUTE, request, rtmsg)
            if answer["type"] == _RTN_UNICAST and answer["dst_len"] == 0 and answer.get_attr("RTA_GATEWAY")
        ]
        return min(found)[1] if found else None

    # --- requests ---

    def _dump(self, kind: int, request: bytes, message: Any) -> list[Any]:
        try:
            return [_decode(message, answer) for answer in self._netlink.dump(kind, request)]
        except NetlinkError as error:
            raise refused("reading the host's links, addresses and routes", error) from error

    def _write(
        self, what: str, kind: int, flags: int, message: bytes, *, remedies: Mapping[int | None, str] = _NO_REMEDIES
    ) -> None:
        try:
            self._netlink.write(kind, flags, message)
        except NetlinkError as error:
            raise refused(what, error, remedies.get(error.errno, "")) from error


@contextlib.contextmanager
def _missing_is_fine(*codes: int) -> Iterator[None]:
    try:
        yield
    except KernelError as error:
        if not isinstance(error.__cause__, NetlinkError) or error.__cause__.errno not in codes:
            raise


def _message(kind: Any, attrs: Sequence[Sequence[object]] = (), **fields: int) -> bytes:
    message = kind()
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [list(attr) for attr in attrs]
    message.encode()
    return bytes(message.data[_HEADER:])


def _decode(kind: Any, payload: bytes) -> Any:
    message = kind(struct.pack("=IHHII", len(payload) + _HEADER, 0, 0, 0, 0) + payload)
    message.decode()
    return message


def local_addresses() -> list[LocalAddress]:
    """Every address of this host now, but those of our own links."""
    links = Links()
    try:
        names, ours = links.names(), links.ours()
        return [
            LocalAddress(link=names.get(index, str(index)), address=Network.host(address).address, prefix_length=length)
            for index, address, length in links.all_addresses()
            if index not in ours
        ]
    finally:
        links.close()


def default_gateway() -> str | None:
    """The IPv4 address of the router that this host sends everything else to; None without one."""
    links = Links()
    try:
        return links.gateway()
    finally:
        links.close()


def host_networks() -> list[HostNetwork]:
    """The prefixes that this host reaches by its own addresses and routes, without the default routes and ours."""
    links = Links()
    try:
        names, ours = links.names(), links.ours()
        prefixes = [(index, f"{address}/{length}") for index, address, length in links.all_addresses()]
        prefixes += links.all_routes()
        found = {
            (str(ipaddress.ip_network(prefix, strict=False)), names.get(i, str(i))): None
            for i, prefix in prefixes
            if i not in ours
        }
        return [HostNetwork(prefix=prefix, link=link) for prefix, link in found]
    finally:
        links.close()
