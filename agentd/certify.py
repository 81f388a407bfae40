"""Having a service's certificate signed: the gateway's request, sent to the controller as the node that we are."""

from controller.wire.mcp import ServiceName
from controller.wire.services import CertificateRequest, ServiceCertificate

from .controllers import Controllers
from .errors import ControllerError, StateError
from .https import Controller, trusting, with_client_certificate
from .state import CA, CERTIFICATE, IDENTITY_KEY, NodeFile, StateDir

__all__ = ["certify"]


def certify(state: StateDir, node: NodeFile, service: ServiceName, csr: str) -> str:
    """The certificate (PEM) for the key of this CSR (PEM). Raises ControllerError, StateError."""
    ca, certificate, key = (state.read(name) for name in (CA, CERTIFICATE, IDENTITY_KEY))
    if ca is None or certificate is None or key is None:
        raise StateError(f"{state.path} has lost its identity: run `agentd leave --force` and join again")
    context = with_client_certificate(trusting(None if node.trust == "system" else ca.decode()), certificate, key)
    path, request = f"/api/v1/services/{service}/certificate", CertificateRequest(csr=csr)
    *others, last = Controllers(node.node_id, node.url, state.controllers()).known
    for url in others:
        try:
            return Controller(url, context).post(path, request, ServiceCertificate).certificate
        except ControllerError as error:
            if error.final:
                raise
    return Controller(last, context).post(path, request, ServiceCertificate).certificate
