"""The server's side of TLS: its certificate, and the context that also verifies the nodes' certificates.

The certificate from our own CA lives for days and is replaced in the live context, without a restart; an operator's
own certificate is loaded again when its file changes.
"""

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import urlsplit

from cryptography import x509

from controller.clock import Clock
from controller.identity.ca import CertificateAuthority, fingerprint
from controller.state_dir import StateDir

__all__ = ["IssuedCertificate", "OwnCertificate", "ServerTls", "TlsError", "Trust", "certificate_hosts"]

_log = logging.getLogger(__name__)
_LIFETIME: Final = timedelta(days=14)
# Renewed with so much left that even a host whose clock is a day fast never sees it expired.
_RENEW_BEFORE: Final = timedelta(days=7)
_LOOK_EVERY: Final = 60.0  # seconds
_ANYWHERE: Final = {"0.0.0.0", "::"}  # noqa: S104  compared with, not bound to


class TlsError(Exception):
    """The server certificate cannot be used; the message names the file and the remedy."""


@dataclass(frozen=True, slots=True)
class Trust:
    """What a client pins before its first contact: `pem` at /ca.pem and its SHA-256, or the host's own trust store."""

    pem: str | None
    sha256: str | None

    @property
    def join(self) -> str:
        """As the join string's `ca` says it."""
        return self.sha256 or "system"


class ServerCertificate(Protocol):
    """Where the certificate comes from."""

    trust: Trust

    def load(self, context: ssl.SSLContext) -> None:
        """Load the newest certificate into the context. Raises TlsError."""

    def stale(self) -> bool:
        """True when `load` would load another one than last time."""


class IssuedCertificate:
    """A short-lived certificate from our own CA, with a new key each time."""

    def __init__(self, authority: CertificateAuthority, hosts: Sequence[str], state: StateDir, now: Clock) -> None:
        self.trust = Trust(authority.pem, authority.sha256)
        self._authority = authority
        self._hosts = hosts
        self._state = state
        self._now = now
        self._until: datetime | None = None

    def load(self, context: ssl.SSLContext) -> None:
        """Issue a certificate and load it."""
        now = self._now()
        certificate, key = self._authority.issue_server(self._hosts, now=now, lifetime=_LIFETIME)
        # OpenSSL reads them from files only.
        paths = self._state.write("tls.pem", certificate), self._state.write("tls.key", key)
        context.load_cert_chain(*paths)
        self._until = now + _LIFETIME

    def stale(self) -> bool:
        """True when what is loaded has less than a week left."""
        return self._until is None or self._until - self._now() < _RENEW_BEFORE


class OwnCertificate:
    """The operator's certificate and key, and the CA that clients must trust (None: one that they already know)."""

    def __init__(self, certificate: Path, key: Path, ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._loaded: tuple[float, float] | None = None
        self.trust = Trust(None, None) if ca is None else _read_trust(ca)

    def load(self, context: ssl.SSLContext) -> None:
        """Load the files."""
        try:
            seen = self._modified()
            context.load_cert_chain(self._certificate, self._key)
        except (OSError, ssl.SSLError) as error:
            raise TlsError(
                f"cannot use --tls-cert {self._certificate} with --tls-key {self._key}: {error.strerror or error}"
            ) from error
        self._loaded = seen

    def stale(self) -> bool:
        """True when a file was replaced since."""
        try:
            return self._modified() != self._loaded
        except OSError:
            return False  # being replaced at this moment; what is loaded keeps serving

    def _modified(self) -> tuple[float, float]:
        return self._certificate.stat().st_mtime, self._key.stat().st_mtime


class ServerTls:
    """The live context. `renew` keeps its certificate fresh until it is cancelled."""

    def __init__(self, certificate: ServerCertificate, clients: CertificateAuthority) -> None:
        self.trust = certificate.trust
        self._certificate = certificate
        self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # People and agents share one port: who has a certificate must have a good one, who has none is a person.
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=clients.pem)
        # A resumed session would bring back a client certificate without looking at its dates again.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        certificate.load(context)

    def refresh(self) -> bool:
        """Load a newer certificate if there is one. New connections get it; open ones are not disturbed."""
        if not self._certificate.stale():
            return False
        self._certificate.load(self.context)
        return True

    async def renew(self) -> None:
        """Refresh for ever. A failure is logged and tried again: the old certificate has days left."""
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                if self.refresh():
                    _log.info("the server certificate was replaced")
            except (TlsError, OSError, ssl.SSLError) as error:
                _log.error("the server certificate could not be replaced: %s", error)


def certificate_hosts(url: str, listen: str) -> list[str]:
    """The names and addresses that our own certificate is for."""
    hosts = [urlsplit(url).hostname or "localhost", "localhost", "127.0.0.1", "::1"]
    if listen not in _ANYWHERE:
        hosts.append(str(ipaddress.ip_address(listen)))
    return list(dict.fromkeys(hosts))


def _read_trust(ca: Path) -> Trust:
    try:
        certificates = x509.load_pem_x509_certificates(ca.read_bytes())
    except (OSError, ValueError) as error:
        raise TlsError(f"cannot read --tls-ca {ca}: {error}") from error
    if len(certificates) != 1:
        raise TlsError(f"--tls-ca {ca} holds {len(certificates)} certificates: give the one root that signed yours")
    return Trust(ca.read_text(), fingerprint(certificates[0]))
