"""Having a service's certificate signed: the gateway's request, sent to the controller as the node that we are."""

from controller.wire.mcp import ServiceName
from controller.wire.services import CertificateRequest, ServiceCertificate

from .errors import StateError
from .https import Controller, trusting, with_client_certificate
from .state import CA, CERTIFICATE, IDENTITY_KEY, NodeFile, StateDir

__all__ = ["certify"]


def certify(state: StateDir, node: NodeFile, service: ServiceName, csr: str) -> str:
    """The certificate (PEM) for the key of this CSR (PEM). Raises ControllerError, StateError."""
    ca, certificate, key = (state.read(name) for name in (CA, CERTIFICATE, IDENTITY_KEY))
    if ca is None or certificate is None or key is None:
        raise StateError(f"{state.path} has lost its identity: run `agentd leave --force` and join again")
    context = with_client_certificate(trusting(None if node.trust == "system" else ca.decode()), certificate, key)
    answer = Controller(node.url, context).post(
        f"/api/v1/services/{service}/certificate", CertificateRequest(csr=csr), ServiceCertificate
    )
    return answer.certificate
