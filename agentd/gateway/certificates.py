"""The certificates that services show over TLS: a key that is made here and never leaves, and who signs for it.

One file a service, key and certificate in it, private to the gateway's user. The first process has them made and
renewed, all of them load what the files hold. Who signs is not known here.
"""

import asyncio
import ipaddress
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from controller.wire.mcp import Service, ServiceName, certified_names

from ..errors import AgentError, StateError
from ..keys import IdentityKey
from ..renew import due
from ..state import StateDir

__all__ = ["Certificates", "Certify", "fits"]

log = logging.getLogger("agentd.gateway.certificates")

_AGAIN: Final = 1.0  # seconds
_AGAIN_AT_MOST: Final = 300.0
# Of TLS 1.2 only what has forward secrecy and authenticates what it encrypts (RFC 9325 section 4.2); 1.3 has no other.
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

# Has a certificate request (PEM) for a service signed; returns the certificate (PEM). Raises AgentError.
Certify = Callable[[ServiceName, str], Awaitable[str]]


def fits(certificate: x509.Certificate, service: Service) -> bool:
    """Is it for all the full names of the service, and for the addresses that we hold?"""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return set(names.get_values_for_type(x509.DNSName)).issuperset(certified_names(service)) and set(
        names.get_values_for_type(x509.IPAddress)
    ).issuperset(map(ipaddress.ip_address, service.addresses))


@dataclass(slots=True)
class _Kept:
    """What is known of one service's certificate. `seen`: which file `certificate` was read from."""

    service: Service
    context: ssl.SSLContext
    seen: tuple[int, ...] | None = None
    certificate: x509.Certificate | None = None
    problem: str | None = None
    not_before: float = 0.0  # the loop's time of the next attempt
    pause: float = _AGAIN


class Certificates:
    """The certificates of the services of one process.

    `certify` None: somebody else writes the files, the gateway's first process or whoever runs it without a mesh.
    """

    def __init__(
        self, directory: Path, certify: Certify | None, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._files = StateDir(directory)
        self._certify = certify
        self._now = now
        self._kept: dict[ServiceName, _Kept] = {}

    def adopt(self, services: Mapping[ServiceName, Service]) -> None:
        """From now on these services are kept in certificates, those of them that answer over TLS."""
        wanted = {name: service for name, service in services.items() if service.tls_port is not None}
        for name in self._kept.keys() - wanted.keys():
            del self._kept[name]
            if self._certify is not None:
                self._forget(name)
        for name, service in wanted.items():
            kept = self._kept.get(name)
            if kept is None:
                kept = self._kept[name] = _Kept(service, _context())
            kept.service = service
            self._load(kept)

    def context(self, name: ServiceName) -> ssl.SSLContext | None:
        """What the service's TLS connections begin with; None while there is no certificate. It outlives renewals."""
        kept = self._kept.get(name)
        return kept.context if kept is not None and kept.certificate is not None else None

    def problems(self) -> dict[ServiceName, str]:
        """Why services do not answer over TLS, those that do not."""
        found = {}
        for name, kept in self._kept.items():
            until = kept.certificate.not_valid_after_utc if kept.certificate is not None else None
            if until is None:
                found[name] = kept.problem or "it has no certificate yet"
            elif until <= self._now():
                found[name] = f"its certificate ended at {until:%Y-%m-%d %H:%M}Z ({kept.problem or 'a new one is due'})"
        return found

    async def look(self) -> bool:
        """Load what is new, renew what is due; True when a service has its first certificate now."""
        first = False
        for kept in list(self._kept.values()):
            before = kept.certificate
            self._load(kept)
            if self._certify is not None and self._is_due(kept):
                await self._renew(kept, self._certify)
            first = first or (before is None and kept.certificate is not None)
        return first

    def _is_due(self, kept: _Kept) -> bool:
        if asyncio.get_running_loop().time() < kept.not_before:
            return False
        certificate = kept.certificate
        return certificate is None or not fits(certificate, kept.service) or due(certificate) <= self._now()

    async def _renew(self, kept: _Kept, certify: Certify) -> None:
        name, key = kept.service.name, IdentityKey.generate()
        try:
            certificate = await certify(name, key.request(name))
            parsed = _parsed(name, key, certificate)
            await asyncio.to_thread(self._save, name, key.text + certificate.encode())
        except AgentError as error:
            if str(error) != kept.problem:
                log.warning("no certificate for service %s: %s", name, error)
            kept.problem = str(error)
            kept.not_before = asyncio.get_running_loop().time() + kept.pause
            kept.pause = min(kept.pause * 2, _AGAIN_AT_MOST)
            return
        kept.problem, kept.pause, kept.not_before = None, _AGAIN, 0.0
        if not fits(parsed, kept.service):
            # The service changed while we asked: the controller knows more than we do, or less. Not in a tight loop.
            kept.not_before = asyncio.get_running_loop().time() + _AGAIN
        log.info("service %s has a certificate until %s", name, parsed.not_valid_after_utc)
        self._load(kept)

    def _save(self, name: ServiceName, content: bytes) -> None:
        self._files.create()
        self._files.write(_file(name), content)

    def _load(self, kept: _Kept) -> None:
        """Take the file into the context if it is another one. New connections get it; open ones are not disturbed."""
        path = self._files.path / _file(kept.service.name)
        try:
            found = path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
            if seen == kept.seen:
                return
            kept.seen = seen
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            kept.context.load_cert_chain(path)
        except FileNotFoundError:
            if self._certify is None:
                kept.problem = f"it has no certificate: {path} is not there"
            return
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            kept.problem = f"{path} is not a key and its certificate ({error}): remove it"
            log.warning("service %s: %s", kept.service.name, kept.problem)
            return
        kept.certificate, kept.problem = certificate, None

    def _forget(self, name: ServiceName) -> None:
        try:
            self._files.remove(_file(name))
        except StateError as error:
            log.warning("the certificate of %s, which is served here no more, stays: %s", name, error)


def _file(name: ServiceName) -> str:
    return f"{name}.pem"


def _parsed(name: ServiceName, key: IdentityKey, certificate: str) -> x509.Certificate:
    """The certificate, if it is one for this key. Raises AgentError."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise AgentError(f"what came as the certificate for {name} is none: {error}") from error
    if not key.certifies(parsed):
        raise AgentError(f"the certificate that came for {name} is for another key than the one that was sent")
    return parsed


def _context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    return context
