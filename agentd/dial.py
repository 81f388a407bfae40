"""Opens the stream to a controller with the node's certificate, and says why it could not or why it broke.

Knows one attempt: when the next is made, and to whom, is the connection's.
"""

import ssl
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.typing import Subprotocol

from controller.wire.rest import Problem
from controller.wire.stream import PROTOCOL, STREAM_PATH

from .errors import AgentError, StateError
from .explain import unreachable
from .https import trusting, with_client_certificate
from .state import CERTIFICATE, IDENTITY_KEY, NodeFile, StateDir

__all__ = ["FAILURES", "Broken", "broken", "dial"]

# A snapshot of 100,000 peers is below this.
_LARGEST_FRAME: Final = 64 * 1024 * 1024
# Seconds. The controller pings too, and more often: ours only find out that it is gone without a word, which has no
# hurry.
_PING_INTERVAL: Final = 60.0
_CERTIFICATE_REQUIRED: Final = "urn:wardmesh:problem:certificate-required"


# What `dial` and the stream raise, and `broken` explains.
FAILURES: Final = (OSError, InvalidHandshake, ConnectionClosed, AgentError)


@dataclass(frozen=True, slots=True)
class Broken:
    """Why there is no stream. `refused`: the controller may have refused the node's certificate.

    `wait`: seconds that it asked to wait before the next attempt, 0 when it did not.
    """

    reason: str
    refused: bool = False
    wait: float = 0.0


async def dial(url: str, state: StateDir, node: NodeFile) -> ClientConnection:
    """Open the stream to the controller at `url`. Raises one of FAILURES."""
    return await connect(
        "wss://" + url.removeprefix("https://").rstrip("/") + STREAM_PATH,
        ssl=_tls(state, node),
        subprotocols=[Subprotocol(PROTOCOL)],
        compression=None,  # a deflate window would cost more memory than the map
        proxy=None,
        max_size=_LARGEST_FRAME,
        ping_interval=_PING_INTERVAL,
        close_timeout=2,
    )


def broken(url: str, error: Exception) -> Broken:
    """What one of FAILURES means for somebody who wanted to talk to the controller at `url`."""
    if isinstance(error, InvalidStatus):
        problem = _problem(error)
        refused = problem.type == _CERTIFICATE_REQUIRED
        return Broken(f"the controller at {url} refused the stream: {problem.detail}", refused, _retry_after(error))
    if isinstance(error, InvalidMessage):
        # In TLS 1.3 our handshake is over before the server looks at our certificate (RFC 8446 section 2), and
        # asyncio's TLS drops the alert that would tell: a refused certificate looks like a connection that ends.
        # Renewing one that was not refused does no harm.
        reason = f"the controller at {url} closed the connection without an answer: renewing the certificate"
        return Broken(reason, refused=True)
    if isinstance(error, AgentError):
        return Broken(str(error))
    if isinstance(error, ConnectionClosed):
        return Broken(f"the connection to the controller at {url} broke ({error})")
    return Broken(str(unreachable(url, error, None)))


def _tls(state: StateDir, node: NodeFile) -> ssl.SSLContext:
    """TLS with the node's certificate. Raises StateError."""
    ca, certificate, key = state.ca(), state.read(CERTIFICATE), state.read(IDENTITY_KEY)
    if ca is None or certificate is None or key is None:
        raise StateError(f"{state.path} has lost its identity: run `agentd leave --force` and join again")
    context = trusting(None if node.trust == "system" else ca)
    try:
        return with_client_certificate(context, certificate, key)
    except ssl.SSLError as error:
        raise StateError(
            f"{state.path / CERTIFICATE} or {IDENTITY_KEY} beside it is damaged ({error.reason or error}): "
            "restore both from a backup, or run `agentd leave --force` and join again"
        ) from error


def _retry_after(error: InvalidStatus) -> float:
    """Seconds, by RFC 9110 section 10.2.3; 0 without, and for a date, which no controller sends."""
    text = error.response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() else 0.0


def _problem(error: InvalidStatus) -> Problem:
    """What the controller (or whatever stands before it) said instead of opening the stream."""
    response = error.response
    try:
        return Problem.model_validate_json(response.body or b"")
    except ValidationError:
        status = f"HTTP {response.status_code} {response.reason_phrase}"
        return Problem(type="about:blank", title=status, status=response.status_code, detail=status)
