"""What is said to a router by UPnP: how it is found, its description, the calls of an internet gateway device. Pure.

UPnP Device Architecture 1.1 (SSDP, description, SOAP); WANIPConnection:2, with :1 and WANPPPConnection:1. What a router
says is not trusted: XML without document types (so without entities), of bounded size and depth, no URL but its own.
async-upnp-client (0.49) would bring aiohttp as a second HTTP client, 32 MB into the daemon's memory, and follows the
URLs that it is given; miniupnpc (2.3) blocks, and parses all this in C in a process that is root.
"""

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urljoin, urlsplit
from xml.parsers import expat
from xml.sax.saxutils import escape

from controller.wire.base import Address

from .router import RouterError

__all__ = [
    "LARGEST",
    "SSDP_GROUP",
    "SSDP_PORT",
    "IgdError",
    "Place",
    "Service",
    "call",
    "find",
    "located",
    "port_of",
    "read",
    "search",
]

SSDP_GROUP: Final = "239.255.255.250"
SSDP_PORT: Final = 1900
LARGEST: Final = 64 * 1024  # bytes of a description or an answer; routers' have some thousand

_DEVICE: Final = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"  # version 2 answers to it too
# The best first. Version 2 finds a free port by itself.
_TYPES: Final = tuple(
    f"urn:schemas-upnp-org:service:{name}" for name in ("WANIPConnection:2", "WANIPConnection:1", "WANPPPConnection:1")
)
_MOST_ELEMENTS: Final = 2000
_DEEPEST: Final = 32
_LONGEST_URL: Final = 500
_LONGEST_ADDRESS: Final = 45  # characters that are shown; one of IPv6 may have a zone of any length
# WANIPConnection:2 section 2.5; UDA section 3.2.2
_FAULTS: Final = {
    401: "it does not know that call",
    402: "it did not understand the call",
    501: "it could not do it",
    606: "it refuses to: this host may not",
    714: "it has no such port",
    718: "the port is another host's",
    724: "it gives no other port than the host's own",
    725: "it gives ports for ever only, which nobody would take back: forward the port there by hand",
    728: "it has no port left",
    729: "the port is in use there",
}


class IgdError(RouterError):
    """A fault by its number."""

    def __init__(self, code: int) -> None:
        super().__init__(_FAULTS.get(code, f"error {code}"))
        self.code = code


@dataclass(frozen=True, slots=True)
class Place:
    """A port and path of the router's own web server."""

    port: int
    path: str


@dataclass(frozen=True, slots=True)
class Service:
    """A connection of the router to the internet, and where it is controlled."""

    type: str
    control: Place

    @property
    def finds_ports(self) -> bool:
        """True when it looks for a free port by itself."""
        return self.type == _TYPES[0]


@dataclass(slots=True)
class _Element:
    name: str  # without its namespace
    text: str = ""
    children: list["_Element"] = field(default_factory=list)

    def all(self) -> Iterator["_Element"]:
        yield self
        for child in self.children:
            yield from child.all()

    def child(self, name: str) -> str:
        return next((child.text.strip() for child in self.children if child.name == name), "")


def search() -> bytes:
    """Who is an internet gateway device? (UDA section 1.3.2)"""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {SSDP_GROUP}:{SSDP_PORT}",
        'MAN: "ssdp:discover"',
        "MX: 1",
        f"ST: {_DEVICE}",
    )
    return "\r\n".join((*lines, "", "")).encode()


def located(data: bytes, router: Address) -> Place | None:
    """Where an answer to `search` says that the router's description is; None for no answer. Raises RouterError."""
    lines = data.decode("latin-1").split("\r\n")
    if not lines[0].startswith("HTTP/1.1 200"):
        return None
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return None if "location" not in headers else _place(headers["location"], router)


def find(description: bytes, base: Place, router: Address) -> list[Service]:
    """The connections in a router's description, which came from `base`, the best first. Raises RouterError."""
    root = _parsed(description)
    url = next((each.text.strip() for each in root.children if each.name == "URLBase"), "")
    url = url or f"http://{router}:{base.port}{base.path}"
    found = [
        Service(kind, _place(_joined(url, each.child("controlURL")), router))
        for each in root.all()
        if each.name == "service" and (kind := each.child("serviceType")) in _TYPES
    ]
    return sorted(found, key=lambda service: _TYPES.index(service.type))


def call(service: Service, action: str, arguments: Mapping[str, str]) -> tuple[dict[str, str], bytes]:
    """The headers and the body of a call (UDA section 3.2.1)."""
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service.type}">{inside}</u:{action}></s:Body></s:Envelope>'
    )
    headers = {"Content-Type": 'text/xml; charset="utf-8"', "SOAPAction": f'"{service.type}#{action}"'}
    return headers, body.encode()


def read(action: str, status: int, body: bytes) -> dict[str, str]:
    """What the call came to. Raises IgdError; RouterError when this is no answer."""
    elements = list(_parsed(body).all())
    for each in elements:
        if status == 200 and each.name == f"{action}Response":
            return {child.name: child.text.strip() for child in each.children}
        if status != 200 and each.name == "errorCode" and each.text.strip().isdecimal():
            raise IgdError(int(each.text.strip()[:6]))
    raise RouterError(f"it answered {action} with HTTP status {status} and nothing of use")


def port_of(text: str) -> int:
    """A port in an answer. Raises RouterError."""
    if len(text) > len("65535") or not text.isdecimal() or not 0 < int(text) < 65536:
        raise RouterError(f"it gave port {text[:10]!r}, which is none")
    return int(text)


def _joined(base: str, url: str) -> str:
    try:
        return urljoin(base, url)
    except ValueError as error:
        raise RouterError("it names an address that is none") from error


def _place(url: str, router: Address) -> Place:
    try:
        parts = urlsplit(url)
        host, port = ipaddress.ip_address(parts.hostname or ""), parts.port or 80
    except ValueError as error:
        raise RouterError("it names an address that is none") from error
    if parts.scheme != "http" or host != ipaddress.ip_address(router) or parts.username is not None:
        elsewhere = str(host)[:_LONGEST_ADDRESS]
        raise RouterError(f"it sends this host to {elsewhere!r} by {parts.scheme[:10]!r}, which is not itself by http")
    path = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    if len(path) > _LONGEST_URL or not path.isascii() or not path.isprintable() or " " in path:
        raise RouterError("it names a path that is none")
    return Place(port, path)


def _parsed(data: bytes) -> _Element:
    if len(data) > LARGEST:
        raise RouterError(f"it answers with more than {LARGEST // 1024} KiB")
    tree = _Tree()
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = tree.begin, tree.end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = tree.text, tree.doctype
    try:
        parser.Parse(data, True)
    except RouterError:
        raise  # of the handlers
    except (expat.ExpatError, LookupError, ValueError) as error:  # LookupError: an encoding that nobody knows
        raise RouterError(f"its XML cannot be read: {error}") from error
    return tree.root.children[0]


class _Tree:
    """Collects elements."""

    def __init__(self) -> None:
        self.root = _Element("")
        self._open = [self.root]
        self._count = 0

    def begin(self, name: str, _attributes: Mapping[str, str]) -> None:
        self._count += 1
        if self._count > _MOST_ELEMENTS or len(self._open) > _DEEPEST:
            raise RouterError("its XML has too many elements, or too many in each other")
        element = _Element(name.rpartition(" ")[2])
        self._open[-1].children.append(element)
        self._open.append(element)

    def end(self, _name: str) -> None:
        self._open.pop()

    def text(self, text: str) -> None:
        self._open[-1].text += text

    def doctype(self, *_: object) -> None:
        raise RouterError("its XML has a document type, which nothing here needs")
