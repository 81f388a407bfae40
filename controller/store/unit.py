"""One transaction as the tables see it: the session, what numbers mean in this mesh, and what has changed so far."""

from sqlalchemy.ext.asyncio import AsyncSession

from controller.addresses import AddressPlan
from controller.records import NodeRecord, PolicyRecord, ServiceRecord, TemporaryGrant
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["ReadOnlyError", "Unit"]


class ReadOnlyError(RuntimeError):
    """A mistake in the controller: something was to be written outside a mutation."""


class Unit:
    """Shared by the tables of one transaction. They tell it what they write, so that the Change is complete."""

    def __init__(self, session: AsyncSession, plan: AddressPlan | None, revision: int | None = None) -> None:
        self.session = session
        self.changed_nodes: dict[NodeId, NodeRecord | None] = {}
        self.changed_policy: PolicyRecord | None = None
        self.changed_services: dict[ServiceName, ServiceRecord | None] = {}
        self.changed_grants: dict[str, TemporaryGrant | None] = {}
        self._plan = plan
        self._revision = revision

    @property
    def plan(self) -> AddressPlan:
        """The mesh's prefixes."""
        if self._plan is None:
            raise ReadOnlyError("the mesh does not exist yet")
        return self._plan

    def writing(self) -> int:
        """The revision that this mutation makes. Raises ReadOnlyError in a transaction that is not a mutation."""
        if self._revision is None:
            raise ReadOnlyError("writing needs Store.mutation()")
        return self._revision
