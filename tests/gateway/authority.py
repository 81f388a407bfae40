"""A mesh's CA, as the gateway meets it: through agentd, or in files that are there already."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

from agentd.errors import AgentError
from agentd.gateway.certificates import Certificates
from controller.identity.ca import CertificateAuthority, read_csr

NAME = "svc.mesh.internal"
HOSTS = (NAME, "127.0.0.1")


class Authority:
    """A mesh's CA that signs what it is asked to. `asked`: for which services."""

    def __init__(self) -> None:
        self.ca = CertificateAuthority.create("test", datetime.now(UTC))
        self.lifetime = timedelta(hours=72)
        self.hosts: tuple[str, ...] = HOSTS
        self.asked: list[str] = []
        self.refusal: str | None = None
        self.now = datetime.now(UTC)

    def sign(self, service: str, csr: str) -> str:
        self.asked.append(service)
        if self.refusal is not None:
            raise AgentError(self.refusal)
        return self.ca.issue_service(read_csr(csr), self.hosts, now=self.now, lifetime=self.lifetime)

    async def certify(self, service: str, csr: str) -> str:
        return self.sign(service, csr)

    @property
    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cadata=self.ca.pem)

    def write(self, directory: Path) -> Certificates:
        """Put a certificate for `svc` where a gateway that asks nobody takes it from."""
        certificate, key = self.ca.issue_server(self.hosts, now=self.now, lifetime=self.lifetime)
        directory.mkdir(exist_ok=True)
        fresh = directory / "fresh"
        fresh.write_bytes(key + certificate)
        fresh.rename(directory / "svc.pem")
        return Certificates(directory, None)
