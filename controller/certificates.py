"""Certificates of services: which node gets one, and for which names.

The node proves who it is to whoever calls this; here, policy says what it may serve. A certificate writes nothing into
the database, as the nodes' own do not: it is logged with its serial number, and ends by itself.
"""

import logging
from datetime import timedelta

from cryptography import x509

from controller.clock import Clock
from controller.identity.ca import CertificateAuthority, read_csr
from controller.mesh.hub import Hub
from controller.problems import Kind, Refused
from controller.wire.mcp import ServiceName, certified_names
from controller.wire.netmap import NodeId
from controller.wire.services import CertificateRequest, ServiceCertificate

__all__ = ["ServiceCertificates"]

_log = logging.getLogger(__name__)


class ServiceCertificates:
    """Issues them. `lifetime` is that of the nodes' certificates: a host renews both with a third of it left."""

    def __init__(self, hub: Hub, authority: CertificateAuthority, lifetime: timedelta, now: Clock) -> None:
        self._hub = hub
        self._authority = authority
        self._lifetime = lifetime
        self._now = now

    def issue(self, node_id: NodeId, name: ServiceName, request: CertificateRequest) -> ServiceCertificate:
        """A certificate for all names and addresses of the service, whether or not this node holds them now.

        So that it is there before the service moves. Raises Refused: NODE_REMOVED, NODE_DISABLED, NOT_FOUND,
        CANNOT_SERVE, BAD_CSR.
        """
        node = self._hub.record(node_id)
        if node is None:
            raise Refused(Kind.NODE_REMOVED, f"the node {node_id} was removed from the mesh: join again")
        if node.state == "disabled":
            raise Refused(Kind.NODE_DISABLED, f"the node {node.name!r} is disabled: an admin must enable it")
        service = self._hub.service(name)
        if service is None or not certified_names(service):
            raise Refused(Kind.NOT_FOUND, f"the policy in force has no service {name!r} with a name of its own")
        if node_id not in self._hub.servers(name):
            raise Refused(
                Kind.CANNOT_SERVE,
                f"{node.name!r} may not serve {name!r}, so it gets no certificate for it: `on` of that service in the "
                "policy must match the node",
            )
        key = read_csr(request.csr)
        hosts = (*certified_names(service), *service.addresses)
        issued = self._authority.issue_service(key, hosts, now=self._now(), lifetime=self._lifetime)
        certificate = x509.load_pem_x509_certificate(issued.encode())
        _log.info(
            "issued a certificate for service %s to node %s, serial %x, until %s",
            name,
            node.name,
            certificate.serial_number,
            certificate.not_valid_after_utc,
        )
        return ServiceCertificate(certificate=issued)
