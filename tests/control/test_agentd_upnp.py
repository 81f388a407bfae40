"""Looking for a router by UPnP, beside whoever else sends to the port that it is looked for from."""

import asyncio
import socket
from typing import Final

import pytest

from agentd.paths import igd
from agentd.upnp import Upnp

ROUTER: Final = "127.0.0.1"
OTHER: Final = "127.0.0.2"
COUNT: Final = 100  # datagrams, which a socket's buffer has room for
ANSWER: Final = (
    "HTTP/1.1 200 OK\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n"
    f"LOCATION: http://{ROUTER}:9/description.xml\r\n\r\n"
).encode()


async def test_who_floods_the_search_does_not_keep_agentd_from_everything_else() -> None:
    loop, turns = asyncio.get_running_loop(), 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        loop.call_soon(turn)

    def answer() -> None:
        _, searcher = router.recvfrom(4096)
        loop.remove_reader(router.fileno())
        for _ in range(COUNT):
            other.sendto(ANSWER, searcher)
        router.sendto(ANSWER, searcher)
        turn()

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as router,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        router.bind((ROUTER, igd.SSDP_PORT))
        other.bind((OTHER, 0))
        loop.add_reader(router.fileno(), answer)
        with pytest.raises(OSError):  # nobody serves the description
            await Upnp(51820).map(ROUTER)
    assert turns > COUNT
