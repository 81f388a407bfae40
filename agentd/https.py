"""The few requests that agentd makes over REST: the mesh CA, enrol, renew, leave. TLS 1.3, one trust root, no proxies.

Every answer is bounded and parsed into a wire message; whatever else comes back is a ControllerError that names the
controller. Knows nothing of files or kernels. Synchronous, and on the standard library: it runs a few times in a
host's life (in a thread, then), and a larger client would stay in the daemon's memory for all of it.
"""

import hashlib
import http.client
import os
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from controller.wire.base import Message
from controller.wire.rest import Problem

from .clock import parse_date
from .errors import ControllerError
from .explain import unreachable

__all__ = ["Controller", "fetch_ca", "retrying", "trusting", "with_client_certificate"]

_LIMIT: Final = 1024 * 1024
_CHUNK: Final = 64 * 1024
_PATIENCE: Final = 30  # seconds for one whole answer
_TIMEOUT: Final = 10  # seconds for any one step of it
# Seconds between attempts: a controller that restarts is back within them.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 4.0)

M = TypeVar("M", bound=Message)
T = TypeVar("T")


def trusting(ca: str | None) -> ssl.SSLContext:
    """TLS 1.3 that trusts the CA (PEM) and nothing else, or the host's own trust store when None."""
    context = ssl.create_default_context(cadata=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def with_client_certificate(context: ssl.SSLContext, certificate: bytes, key: bytes) -> ssl.SSLContext:
    """Add the node's certificate and key (PEM) to the context.

    OpenSSL's Python binding reads them from a path only; an anonymous file in memory (memfd_create(2)) keeps the
    private key off every disk.
    """
    descriptor = os.memfd_create("wardmesh-client", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, certificate + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context


def fetch_ca(url: str, pin: str) -> tuple[str, datetime | None]:
    """The mesh CA (PEM) that the controller at `url` serves, if its SHA-256 is `pin`, and the controller's clock.

    The only request without a verified peer: the pin verifies the answer. Raises ControllerError.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    controller = Controller(url, context)
    body = controller.get("/ca.pem")
    try:
        certificate = x509.load_pem_x509_certificate(body)
    except ValueError as error:
        raise ControllerError(
            f"{url} answered something that is not a wardmesh CA certificate ({_preview(body)}): "
            "check that the join string's address is the controller's",
            final=True,
        ) from error
    found = hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()
    if found != pin:
        raise ControllerError(
            f"the controller at {url} has the CA {found[:16]}…, but the join string was made for {pin[:16]}…: "
            "the join string is from another controller, or somebody is in between; make a new one",
            final=True,
        )
    return certificate.public_bytes(Encoding.PEM).decode(), controller.clock


class Controller:
    """One controller, whose certificate `context` verifies. `clock` is what its last answer said."""

    def __init__(self, url: str, context: ssl.SSLContext, clock: datetime | None = None) -> None:
        self.url = url.rstrip("/")
        self.clock = clock
        self._context = context

    def get(self, path: str) -> bytes:
        """The body of a GET. Raises ControllerError."""
        return self._request("GET", path)

    def post(self, path: str, message: Message, answer: type[M]) -> M:
        """Send `message`, return the answer. Raises ControllerError."""
        body = self._request("POST", path, message.model_dump_json().encode())
        try:
            return answer.model_validate_json(body)
        except ValidationError as error:
            raise self._garbage(body, "application/json") from error

    def delete(self, path: str) -> None:
        """Send a DELETE. Raises ControllerError."""
        self._request("DELETE", path)

    def _request(self, method: str, path: str, body: bytes | None = None) -> bytes:
        parts = urlsplit(self.url)
        headers = {"Content-Type": "application/json"} if body else {}
        connection = http.client.HTTPSConnection(
            parts.hostname or "", parts.port, timeout=_TIMEOUT, context=self._context
        )
        try:
            connection.request(method, parts.path + path, body, headers)
            response = connection.getresponse()
            self.clock = parse_date(response.headers.get("Date"))
            answer = self._read(response)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise unreachable(self.url, error, self.clock) from error
        finally:
            connection.close()
        if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            return answer
        raise self._refusal(response, answer)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        answer, deadline = bytearray(), time.monotonic() + _PATIENCE
        while chunk := response.read1(_CHUNK):
            answer += chunk
            if len(answer) > _LIMIT or time.monotonic() > deadline:
                raise ControllerError(
                    f"the answer of the controller at {self.url} does not end (more than {_LIMIT // 1024} KiB or "
                    f"{_PATIENCE} s): something else is listening at that address; check it",
                    final=True,
                )
        return bytes(answer)

    def _refusal(self, response: http.client.HTTPResponse, body: bytes) -> ControllerError:
        status = response.status
        try:
            problem = Problem.model_validate_json(body)
        except ValidationError:
            problem = None
        # RFC 9110 section 15.6: the server says that the fault is its own, so the same request may succeed later.
        passing = status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS
        if problem is not None:
            return ControllerError(problem.detail, final=not passing, kind=problem.type)
        if passing:
            return ControllerError(
                f"the controller at {self.url} is not able to answer now (HTTP {status}): try again in a minute"
            )
        return self._garbage(body, response.headers.get("Content-Type", "no content type"), status)

    def _garbage(self, body: bytes, content_type: str, status: int = HTTPStatus.OK) -> ControllerError:
        return ControllerError(
            f"{self.url} does not answer like a wardmesh controller (HTTP {status}, {content_type}, {_preview(body)}): "
            "check the address and that its version matches this agentd",
            final=True,
        )


def retrying(action: Callable[[], T], *, on_retry: Callable[[ControllerError], None]) -> T:
    """Run `action` again while the controller restarts, for about twelve seconds. Raises the last ControllerError."""
    for pause in _PAUSES:
        try:
            return action()
        except ControllerError as error:
            if error.final:
                raise
            on_retry(error)
            time.sleep(pause)
    return action()


def _preview(body: bytes) -> str:
    text = body[:40].decode(errors="replace").replace("\n", " ")
    return f"it begins with {text!r}" if body else "an empty answer"
