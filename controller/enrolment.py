"""How a host becomes a node, and how a node's certificate is renewed.

A host that lost the answer asks again with the same identity key and gets the same node: nothing is used twice.
"""

from datetime import timedelta

from cryptography import x509

from controller.admission import MAX_ENDPOINTS, Admission, check_name_free, check_public_key_free, summary
from controller.audit import Action
from controller.clock import Clock
from controller.identity.ca import CertificateAuthority, identity_of, read_csr
from controller.identity.secret import new_id
from controller.keys import Keys
from controller.problems import Kind, Refused
from controller.store.store import Mutation, Store
from controller.store.values import StoredKey, StoredNode
from controller.wire.enrol import EnrolRequest, EnrolResponse, RenewRequest, RenewResponse
from controller.wire.netmap import Mesh, NodeId

__all__ = ["Enrolment"]


class Enrolment:
    """The domain of joining."""

    def __init__(
        self,
        *,
        store: Store,
        mesh: Mesh,
        authority: CertificateAuthority,
        keys: Keys,
        admission: Admission,
        lifetime: timedelta,
        now: Clock,
    ) -> None:
        self._store = store
        self._mesh = mesh
        self._authority = authority
        self._keys = keys
        self._admission = admission
        self._lifetime = lifetime
        self._now = now

    async def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Make the host a node, or find the one that it already is. Raises Refused with the reason."""
        identity_key = read_csr(request.csr)
        identity = identity_of(identity_key)
        key = await self._keys.find(request.key)
        node_id = new_id()
        async with self._store.mutation(f"key:{key.prefix}", Action.NODE_ENROL, f"node:{node_id}") as tx:
            known = await tx.nodes.by_identity(identity)
            if known is not None:
                _check_same(known, key, request)
                node = known
                tx.discard()
            else:
                node = await self._admit(tx, node_id, identity, await self._keys.redeem(tx, key), request)
                tx.record(new=summary(node))
        return EnrolResponse(
            node_id=node.id,
            name=node.name,
            state="pending" if node.state == "pending" else "active",
            mesh=self._mesh,
            addresses=node.addresses,
            certificate=self._authority.issue_node(
                identity_key, node_id=node.id, mesh_id=self._mesh.id, now=self._now(), lifetime=self._lifetime
            ),
            ca=self._authority.pem,
        )

    async def renew(self, request: RenewRequest) -> RenewResponse:
        """The next certificate of a node that still has its identity key. Raises Refused with the reason."""
        try:
            certificate = x509.load_pem_x509_certificate(request.certificate.encode())
        except ValueError as error:
            raise Refused(Kind.BAD_CERTIFICATE, f"the certificate cannot be read: {error}") from error
        issued = self._authority.issued(certificate, self._mesh.id)
        key = read_csr(request.csr)
        if identity_of(key) != issued.identity:
            raise Refused(Kind.BAD_CSR, "the certificate request is signed by another key than the certificate's")
        async with self._store.read() as tables:
            node = await tables.nodes.get(issued.node_id)
        if node is None or node.identity != issued.identity:
            raise Refused(Kind.NODE_REMOVED, f"the node {issued.node_id} was removed from the mesh: join again")
        if node.state == "disabled":
            raise _disabled(node)
        return RenewResponse(
            certificate=self._authority.issue_node(
                key, node_id=node.id, mesh_id=self._mesh.id, now=self._now(), lifetime=self._lifetime
            ),
            ca=self._authority.pem,
        )

    async def _admit(
        self, tx: Mutation, node_id: NodeId, identity: str, key: StoredKey, request: EnrolRequest
    ) -> StoredNode:
        await check_name_free(tx, request.name)
        await check_public_key_free(tx, request.public_key)
        number = await self._admission.allocate(tx, node_id, request.addresses)
        return await tx.nodes.save(
            StoredNode(
                id=node_id,
                name=request.name,
                kind="agent",
                state="active" if key.approved else "pending",
                tags=frozenset(key.tags),
                number=number,
                addresses=tx.plan.addresses(number),
                public_key=request.public_key,
                created=tx.now,
                identity=identity,
                enrolment_key=key.id,
                reported=request.endpoints[:MAX_ENDPOINTS],
                ephemeral=key.ephemeral,
            )
        )


def _check_same(node: StoredNode, key: StoredKey, request: EnrolRequest) -> None:
    """Raises Refused unless this is the enrolment that made `node`, sent again."""
    if node.enrolment_key != key.id or key.revoked is not None or node.public_key != request.public_key:
        raise Refused(
            Kind.IDENTITY_IN_USE,
            f"this host is already the node {node.name!r}: run `agentd leave` on it first, or delete that node",
        )
    if node.state == "disabled":
        raise _disabled(node)


def _disabled(node: StoredNode) -> Refused:
    return Refused(Kind.NODE_DISABLED, f"the node {node.name!r} is disabled: an admin must enable it")
