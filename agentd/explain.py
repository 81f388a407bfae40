"""Why a controller cannot be reached: the transport's errors as one sentence that says what to check.

The same words for REST and for the stream. Pure.
"""

import ssl
from datetime import UTC, datetime
from typing import Final, TypeVar
from urllib.parse import urlsplit

from .clock import describe_clocks
from .errors import ControllerError

__all__ = ["find", "unreachable"]

# X509_V_ERR_CERT_NOT_YET_VALID, X509_V_ERR_CERT_HAS_EXPIRED (openssl/x509_vfy.h).
_CLOCK_ERRORS: Final = frozenset({9, 10})

E = TypeVar("E", bound=BaseException)


def find(error: BaseException | None, kind: type[E]) -> E | None:
    """The first error of `kind` among `error` and its causes."""
    while error is not None:
        if isinstance(error, kind):
            return error
        error = error.__cause__ or error.__context__
    return None


def unreachable(url: str, error: BaseException, clock: datetime | None) -> ControllerError:
    """What `error` means for somebody who wanted to talk to the controller at `url`, whose clock last said `clock`."""
    if certificate := find(error, ssl.SSLCertVerificationError):
        return _distrusted(url, certificate, clock)
    if tls := find(error, ssl.SSLError):
        reason = (tls.reason or str(tls)).replace("_", " ").lower()
        return ControllerError(f"{url} does not speak TLS 1.3 as a wardmesh controller does ({reason}): check the port")
    if find(error, TimeoutError):
        return ControllerError(
            f"the controller at {url} does not answer: check the address, and that a firewall lets TCP through"
        )
    system = find(error, OSError)
    reason = (system.strerror if system else None) or str(error) or type(error).__name__
    return ControllerError(
        f"the controller at {url} cannot be reached ({reason}): check the address, and that wardmesh-controller runs"
    )


def _distrusted(url: str, error: ssl.SSLCertVerificationError, clock: datetime | None) -> ControllerError:
    if error.verify_code in _CLOCK_ERRORS:
        clocks = describe_clocks(datetime.now(UTC), clock)
        return ControllerError(
            f"the certificate of the controller at {url} does not hold ({error.verify_message}); {clocks}", final=True
        )
    return ControllerError(
        f"the controller's certificate is not for {urlsplit(url).hostname} or not from the mesh's CA "
        f"({error.verify_message}): use an address that the controller was started with, or make a new join string",
        final=True,
    )
