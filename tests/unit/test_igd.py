"""What routers say by UPnP is read within bounds, and leads to the router itself alone."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentd.paths import igd
from agentd.paths.igd import IgdError, Place, Service
from agentd.paths.router import RouterError

ROUTER = "192.0.2.1"
AT = Place(5000, "/igd/desc.xml")
ONE = "urn:schemas-upnp-org:service:WANIPConnection:1"
TWO = "urn:schemas-upnp-org:service:WANIPConnection:2"


def description(*services: tuple[str, str], base: str = "") -> bytes:
    listed = "".join(
        f"<service><serviceType>{kind}</serviceType><controlURL>{url}</controlURL></service>" for kind, url in services
    )
    return (
        f'<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">{base}<device><deviceList><device>'
        f"<serviceList>{listed}</serviceList></device></deviceList></device></root>"
    ).encode()


def fault(code: int) -> bytes:
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><detail>'
        f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode></UPnPError>'
        "</detail></s:Fault></s:Body></s:Envelope>"
    ).encode()


def test_an_answer_to_the_search_tells_where_the_description_is() -> None:
    found = b"HTTP/1.1 200 OK\r\nST: x\r\nLocation: http://192.0.2.1:5000/igd/desc.xml?a=b\r\n\r\n"
    assert igd.located(found, ROUTER) == Place(5000, "/igd/desc.xml?a=b")
    assert igd.located(b"NOTIFY * HTTP/1.1\r\nLocation: http://192.0.2.1/\r\n\r\n", ROUTER) is None
    assert igd.located(b"HTTP/1.1 200 OK\r\n\r\n", ROUTER) is None


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.9:5000/desc.xml",
        "https://192.0.2.1/desc.xml",
        "file:///etc/shadow",
        "http://router.example/desc.xml",
        "http://127.0.0.1/desc.xml",
        "http://someone@192.0.2.1/desc.xml",
        "http://192.0.2.1:99999/desc.xml",
        "http://192.0.2.1/a\x00b",
        "http://192.0.2.1/" + "a" * 1000,
        "http://[::1/",
    ],
)
def test_an_address_that_is_not_the_routers_own_is_not_followed(url: str) -> None:
    with pytest.raises(RouterError):
        igd.located(f"HTTP/1.1 200 OK\r\nLOCATION: {url}\r\n\r\n".encode(), ROUTER)
    with pytest.raises(RouterError):
        igd.find(description((ONE, url)), AT, ROUTER)


def test_what_a_router_says_is_shown_without_its_control_characters() -> None:
    with pytest.raises(RouterError) as refused:
        igd.located(b"HTTP/1.1 200 OK\r\nLOCATION: http://[fe80::1%\0\x1b[2J]/desc.xml\r\n\r\n", ROUTER)
    assert str(refused.value).isprintable()


def test_the_services_of_a_description_are_found_the_best_first() -> None:
    found = igd.find(description((ONE, "/ctl/one"), ("urn:other", "/no"), (TWO, "two")), AT, ROUTER)
    assert found == [Service(TWO, Place(5000, "/igd/two")), Service(ONE, Place(5000, "/ctl/one"))]
    assert [service.finds_ports for service in found] == [True, False]


def test_a_description_may_name_another_port_as_its_base() -> None:
    found = igd.find(description((ONE, "ctl"), base="<URLBase>http://192.0.2.1:81/x/</URLBase>"), AT, ROUTER)
    assert found == [Service(ONE, Place(81, "/x/ctl"))]


@pytest.mark.parametrize(
    "data",
    [
        b'<!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>',
        b'<!DOCTYPE r SYSTEM "http://192.0.2.1/r.dtd"><r/>',
        b"<a>" * 100 + b"</a>" * 100,
        b"<r>" + b"<a/>" * 3000 + b"</r>",
        b"<r>" + b" " * igd.LARGEST + b"</r>",
        b"<r>",
        b"",
        b'<?xml version="1.0" encoding="nonsense"?><r/>',
        b"<r>&undefined;</r>",
    ],
    ids=["entities", "document type", "deep", "many", "large", "not closed", "empty", "encoding", "unknown entity"],
)
def test_xml_that_could_do_harm_is_refused(data: bytes) -> None:
    with pytest.raises(RouterError):
        igd.find(data, AT, ROUTER)


def test_a_call_names_its_service_and_escapes_what_it_says() -> None:
    headers, body = igd.call(Service(ONE, AT), "AddPortMapping", {"NewPortMappingDescription": "<&>"})
    assert headers["SOAPAction"] == f'"{ONE}#AddPortMapping"'
    assert b"<NewPortMappingDescription>&lt;&amp;&gt;</NewPortMappingDescription></u:AddPortMapping>" in body


def test_an_answer_to_a_call_is_read() -> None:
    body = b'<s:E xmlns:s="s"><s:Body><u:XResponse xmlns:u="u"><A> 1 </A><B/></u:XResponse></s:Body></s:E>'
    assert igd.read("X", 200, body) == {"A": "1", "B": ""}


def test_a_fault_is_an_error_with_its_number() -> None:
    with pytest.raises(IgdError, match="another host's") as caught:
        igd.read("AddPortMapping", 500, fault(718))
    assert caught.value.code == 718
    with pytest.raises(IgdError, match="error 999"):
        igd.read("AddPortMapping", 500, fault(999))


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "1.5", "x", "000001" + "9" * 5000])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RouterError, match="which is none"):
        igd.port_of(text)
    assert igd.port_of("51820") == 51820


def test_another_answer_is_an_error() -> None:
    with pytest.raises(RouterError, match="HTTP status 404"):
        igd.read("X", 404, b"<html/>")


@given(st.binary(max_size=300), st.integers(100, 599))
def test_any_bytes_are_an_answer_or_an_error(data: bytes, status: int) -> None:
    for attempt in (lambda: igd.read("X", status, data), lambda: igd.located(data, ROUTER)):
        with suppress(RouterError):
            attempt()
