"""Where gateway services are: their addresses, and which node holds them. Kept by name and by holder.

Whether a holder may serve is for the caller to say.
"""

from collections.abc import Container, Mapping

from controller.policy.compile import View
from controller.records import ServiceRecord
from controller.wire.base import Address
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId

__all__ = ["Places", "key_of", "sets_of"]


def key_of(name: ServiceName) -> str:
    """The selector that matches the nodes that may serve it, and the name of the set of its own addresses."""
    return f"svc:{name}"


def sets_of(view: View) -> frozenset[str]:
    """The sets in the map of a node with this view: of counterparts, of the services that it may serve, and of those
    between whom it relays."""
    return view.sets.union(map(key_of, view.services), view.carried) if view.services or view.carried else view.sets


class Places:
    """The records of all gateway services."""

    def __init__(self, records: Mapping[ServiceName, ServiceRecord]) -> None:
        self._records: dict[ServiceName, ServiceRecord] = {}
        self._held: dict[NodeId, set[ServiceName]] = {}
        for record in records.values():
            self.put(record.name, record)

    def get(self, name: ServiceName) -> ServiceRecord | None:
        return self._records.get(name)

    def put(self, name: ServiceName, record: ServiceRecord | None) -> None:
        """Replace the record; None removes it."""
        old = self._records.pop(name, None)
        if old is not None and old.holder is not None:
            self._held[old.holder].discard(name)
            if not self._held[old.holder]:
                del self._held[old.holder]
        if record is not None:
            self._records[name] = record
            if record.holder is not None:
                self._held.setdefault(record.holder, set()).add(name)

    def addresses(self, name: ServiceName) -> tuple[Address, ...]:
        """Empty for a service that has none yet."""
        record = self._records.get(name)
        return record.addresses if record is not None else ()

    def held(
        self, node_id: NodeId, serves: Container[ServiceName], among: Container[ServiceName] | None = None
    ) -> tuple[Address, ...]:
        """The addresses that the node holds, of those services that it `serves` and, if given, that are in `among`."""
        return tuple(
            address
            for name in sorted(self._held.get(node_id, ()))
            if name in serves and (among is None or name in among)
            for address in self._records[name].addresses
        )
