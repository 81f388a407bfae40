"""When a node certificate must be replaced (pure), and replacing it.

The request is authorised by the CSR's signature, so that a host that was away for longer than its certificate lived
comes back by itself.
"""

from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from controller.wire.enrol import RenewRequest, RenewResponse

from .errors import ControllerError
from .https import Controller, trusting
from .state import CA, CERTIFICATE, NodeFile, StateDir

__all__ = ["due", "renew"]

# The controller dates certificates back by this much, so that a host whose clock is behind can use them. It is no part
# of the certificate's life.
_BACKDATED: Final = timedelta(hours=48)


def due(certificate: x509.Certificate) -> datetime:
    """When a third of the certificate's life remains."""
    end = certificate.not_valid_after_utc
    begin = min(certificate.not_valid_before_utc + _BACKDATED, end)
    return end - (end - begin) / 3


def renew(state: StateDir, node: NodeFile) -> x509.Certificate:
    """Fetch the next certificate and put it into the state directory. Raises ControllerError, StateError."""
    identity, old, ca = state.identity_key(), state.certificate(), state.ca()
    if identity is None or old is None or ca is None:
        raise ControllerError(
            f"{state.path} has lost its identity: run `agentd leave --force` and join again", final=True
        )
    request = RenewRequest(certificate=old.public_bytes(Encoding.PEM).decode(), csr=identity.request(node.node_id))
    context = trusting(None if node.trust == "system" else ca)
    answer = Controller(node.url, context).post("/api/v1/renew", request, RenewResponse)
    try:
        certificate = x509.load_pem_x509_certificate(answer.certificate.encode())
    except ValueError as error:
        raise ControllerError(
            f"the controller at {node.url} answered with something else than a certificate"
        ) from error
    if not identity.certifies(certificate):
        raise ControllerError(f"the controller at {node.url} answered with a certificate for another key", final=True)
    if node.trust == "mesh":
        # The CA first: the old certificate still works with it, the other way round might not.
        state.write(CA, answer.ca.encode())
    state.write(CERTIFICATE, answer.certificate.encode())
    return certificate
