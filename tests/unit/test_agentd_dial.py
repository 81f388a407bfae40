"""Why there is no stream, and how long the controller asked to wait."""

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from agentd.dial import broken

URL = "https://mesh.example.com:8443"


def refusal(status: int, **headers: str) -> InvalidStatus:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return InvalidStatus(Response(status, "No", Headers(named), b""))


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_that_names_a_time_asks_to_wait_for_it(status: int) -> None:
    assert broken(URL, refusal(status, Retry_After="17")).wait == 17


@pytest.mark.parametrize("text", ["", "soon", "-5", "1.5", "Wed, 21 Oct 2026 07:28:00 GMT"])
def test_anything_else_than_seconds_asks_for_nothing(text: str) -> None:
    assert broken(URL, refusal(503, Retry_After=text)).wait == 0


def test_a_refusal_without_a_time_asks_for_nothing() -> None:
    assert broken(URL, refusal(503)).wait == 0
    assert broken(URL, OSError("no route to host")).wait == 0
