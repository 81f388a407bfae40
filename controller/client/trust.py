"""Which certificate a controller must show: a pinned CA, or one that this machine's trust store knows.

`fetch_ca` is the only unverified contact; it sends no secret, and its result is worth nothing until its fingerprint
has been compared.
"""

import hashlib
import ssl
from dataclasses import dataclass
from typing import Final

import httpx

from .errors import BadAnswerError, InputError, UnreachableError, UntrustedError

__all__ = ["PinnedCa", "fetch_ca", "parse_fingerprint", "system_context", "tls_problem"]

TIMEOUT: Final = httpx.Timeout(30, connect=5)
_BEGIN: Final = "-----BEGIN CERTIFICATE-----"
_END: Final = "-----END CERTIFICATE-----"
_CA_LIMIT: Final = 64 * 1024  # bytes; a certificate has about one thousand


@dataclass(frozen=True, slots=True)
class PinnedCa:
    """One certificate, DER; the only one that may have signed the controller's."""

    der: bytes

    @classmethod
    def from_pem(cls, text: str, *, source: str) -> "PinnedCa":
        """The first certificate in `text`; whatever follows it is not pinned. Raises InputError."""
        begin = text.find(_BEGIN)
        end = text.find(_END, begin)
        try:
            der = ssl.PEM_cert_to_DER_cert(text[max(begin, 0) : end + len(_END)])
            _context(der)
        except (ValueError, ssl.SSLError) as error:
            raise InputError(
                f"{source} holds no CA certificate: expected the PEM file that the controller serves at /ca.pem"
            ) from error
        return cls(der)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER, hex: the `ca` of a join string."""
        return hashlib.sha256(self.der).hexdigest()

    @property
    def pem(self) -> str:
        """The certificate as text, for a file."""
        return ssl.DER_cert_to_PEM_cert(self.der)

    def context(self) -> ssl.SSLContext:
        """Trusts this certificate and no other."""
        return _context(self.der)


def _context(der: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=der)


def system_context() -> ssl.SSLContext:
    """Trusts what this machine's trust store does."""
    return ssl.create_default_context()


def parse_fingerprint(text: str) -> str:
    """SHA-256 in hex, as `openssl x509 -fingerprint` or the controller prints it, to lower case without colons."""
    value = text.strip().lower().removeprefix("sha256:").removeprefix("sha256 fingerprint=").replace(":", "")
    if len(value) != 64 or any(c not in "0123456789abcdef" for c in value):
        raise InputError(f"{text!r} is not a SHA-256 fingerprint: expected 64 hexadecimal digits")
    return value


def fetch_ca(url: str) -> PinnedCa:
    """GET /ca.pem without verification. Raises UnreachableError, BadAnswerError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with httpx.Client(verify=context, timeout=TIMEOUT) as http:
            answer = http.get(f"{url}/ca.pem")
    except httpx.TransportError as error:
        raise tls_problem(url, error) or UnreachableError(unreachable(url, error)) from error
    if answer.status_code != 200 or len(answer.content) > _CA_LIMIT:
        raise BadAnswerError(f"{url}/ca.pem answered {answer.status_code}: is this the controller's URL?")
    try:
        return PinnedCa.from_pem(answer.text, source=f"{url}/ca.pem")
    except InputError as error:
        raise BadAnswerError(error.problem.detail) from error


def tls_problem(url: str, error: BaseException) -> UntrustedError | BadAnswerError | None:
    """What TLS itself had against the other side; None when the failure was not TLS's."""
    cause = _ssl_cause(error)
    if cause is None:
        return None
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return BadAnswerError(
            f"{url} does not speak TLS as a controller does ({cause.reason or cause}): check the port"
        )
    if cause.verify_code in _NAME_MISMATCH:
        return UntrustedError(
            f"the certificate that {url} shows is for another name ({cause.verify_message}): "
            "use the URL that the controller was started with"
        )
    return UntrustedError(
        f"{url} shows a certificate that is not trusted ({cause.verify_message}): pin the controller's CA with "
        "`wardmesh login URL --ca FILE` or `--ca-sha256 FINGERPRINT`. If it was pinned and worked before, somebody may "
        "be answering in the controller's place"
    )


_NAME_MISMATCH: Final = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH


def _ssl_cause(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None and not isinstance(error, ssl.SSLError):
        error = error.__cause__ or error.__context__
    return error


def unreachable(url: str, error: httpx.TransportError) -> str:
    """The sentence for a connection that failed or broke, with what to check."""
    reason = "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return (
        f"{url}: {reason}. Check that `wardmesh-controller serve` runs there and that this machine can reach that "
        "address and port"
    )
