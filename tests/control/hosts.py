"""A host as the controller sees it: two key pairs, an enrolment, a client certificate. No agentd."""

import base64
import ssl
from pathlib import Path
from typing import Any

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.x509.oid import NameOID

from controller.server import Running
from controller.wire.enrol import EnrolResponse, JoinString
from controller.wire.netmap import Netmap

from .support import trust


def wireguard_key() -> str:
    return base64.b64encode(X25519PrivateKey.generate().public_key().public_bytes_raw()).decode()


class Host:
    """`name` is what it asks to be called."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.public_key = wireguard_key()
        self.identity = ec.generate_private_key(ec.SECP256R1())
        self._enrolled: EnrolResponse | None = None

    @property
    def enrolled(self) -> EnrolResponse:
        """What the controller answered when it joined, which it must have done."""
        assert self._enrolled is not None, f"{self.name} has not joined"
        return self._enrolled

    @enrolled.setter
    def enrolled(self, answer: EnrolResponse) -> None:
        self._enrolled = answer

    @property
    def csr(self) -> str:
        return make_csr(self.identity)

    def request(self, key: str, **changes: Any) -> dict[str, Any]:
        return {"key": key, "name": self.name, "public_key": self.public_key, "csr": self.csr, **changes}

    async def ask(self, client: httpx.AsyncClient, key: str, **changes: Any) -> httpx.Response:
        return await client.post("/enrol", json=self.request(key, **changes))

    async def enrol(self, client: httpx.AsyncClient, key: str, **changes: Any) -> EnrolResponse:
        response = await self.ask(client, key, **changes)
        assert response.status_code == 200, response.text
        self.enrolled = EnrolResponse.model_validate_json(response.content)
        return self.enrolled

    def tls(self, controller: Running, directory: Path) -> ssl.SSLContext:
        """A context that presents the node's certificate."""
        return self.presenting(trust(controller), directory)

    def presenting(self, context: ssl.SSLContext, directory: Path) -> ssl.SSLContext:
        """The same context, that presents the node's certificate."""
        path = directory / f"{self.name}.pem"
        key = self.identity.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(self.enrolled.certificate.encode() + key)
        context.load_cert_chain(path)
        return context


def map_of(controller: Running, node_id: str) -> Netmap:
    """The map that a node is to have now."""
    found = controller.context.hub.netmap(node_id)
    assert found is not None, f"{node_id} is no node"
    return found


def make_csr(key: Any) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "the controller chooses the subject")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


async def new_key(admin: httpx.AsyncClient, **wanted: Any) -> str:
    """The secret of a new enrolment key."""
    response = await admin.post("/enrolment-keys", json=wanted)
    assert response.status_code == 201, response.text
    return JoinString.decode(response.json()["join"]).key


async def new_node(admin: httpx.AsyncClient, anyone: httpx.AsyncClient, name: str, **wanted: Any) -> Host:
    """An enrolled host."""
    host = Host(name)
    await host.enrol(anyone, await new_key(admin, **wanted))
    return host
