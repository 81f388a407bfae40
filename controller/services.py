"""Services in the mesh: their addresses, who holds them, and the watch that hands them over when a holder is lost.

What a service is, the policy document says; when a holder is lost, `holders` does. Here it is written down.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from controller.admission import Admission
from controller.audit import Action
from controller.holders import SETTLE, condition, decide, reason
from controller.mesh.hub import Hub
from controller.problems import Kind, Refused
from controller.pulse import Pulse
from controller.records import Change
from controller.store.engine import StoreError
from controller.store.store import Mutation, Store
from controller.store.values import StoredService
from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId
from controller.wire.services import MeshService, ServiceHost

__all__ = ["Services", "settle"]

_log = logging.getLogger(__name__)
_LOOK_EVERY: Final = 0.5  # seconds
_TRY_AGAIN: Final = 5.0  # seconds, when the database does not answer


async def settle(tx: Mutation, admission: Admission, wanted: Collection[ServiceName]) -> tuple[Any, Any]:
    """Give each service of a new policy addresses, and take those of services that are gone; say which, for the audit.

    Raises Refused (POOL_EMPTY).
    """
    present = {service.name: service for service in await tx.services.all()}
    gone = [service for name, service in present.items() if name not in wanted]
    for service in gone:
        await tx.services.remove(service.name)
        await tx.addresses.release(service.number, tx.now)
    new = []
    for name in sorted(set(wanted) - present.keys()):
        number = await admission.allocate_for_service(tx, name)
        new.append(await tx.services.save(name, number, None, tx.now))
    return _addresses(gone), _addresses(new)


def _addresses(services: Collection[StoredService]) -> dict[str, list[str]]:
    return {service.name: list(service.addresses) for service in services}


@dataclass(frozen=True, slots=True)
class _Move:
    """A holder to be replaced."""

    service: ServiceName
    old: NodeId | None
    new: NodeId | None
    why: str


class Services:
    """The domain of services. Used from one event loop; `clock` is monotonic, in seconds."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        clock: Callable[[], float] = time.monotonic,
        *,
        leads: Callable[[], bool] = lambda: True,
    ) -> None:
        """`leads`: whether this controller is the one that hands services over."""
        self._store = store
        self._hub = hub
        self._clock = clock
        self._pulse = Pulse(clock())
        self._settling: dict[ServiceName, float] = {}  # moved by hand: until when its new holder is not judged
        self._leads = leads
        self._handing: ServiceName | None = None  # over, by this controller, now
        self._told: dict[NodeId, dict[ServiceName, str | None]] = {}  # by hosts that are connected here
        self._wake = asyncio.Event()
        store.subscribe(self._changed)

    async def all(self) -> list[MeshService]:
        """Every service of the policy in force that has addresses of its own, by name."""
        async with self._store.read() as tables:
            stored = await tables.services.all()
        return [found for service in stored if (found := self._describe(service)) is not None]

    async def get(self, name: ServiceName) -> MeshService:
        """One service. Raises Refused (NOT_FOUND)."""
        async with self._store.read() as tables:
            stored = await tables.services.get(name)
        found = self._describe(stored) if stored is not None else None
        if found is None:
            raise _missing(name)
        return found

    async def move(self, actor: str, name: ServiceName, reference: str, *, force: bool) -> MeshService:
        """Give the service's addresses to a node, named by name or id, which may serve it.

        Raises Refused: NOT_FOUND, CANNOT_SERVE, and NOT_HEALTHY unless `force`.
        """
        if self._hub.service(name) is None:
            raise _missing(name)
        node = self._hub.find(reference)
        if node is None:
            raise Refused(Kind.NOT_FOUND, f"no node is named {reference!r} or has that id: `GET /nodes` lists them")
        servers = self._hub.servers(name)
        if node.id not in servers:
            raise Refused(
                Kind.CANNOT_SERVE,
                f"{node.name!r} may not serve {name!r}: its `on` in the policy matches {self._named(servers)}",
            )
        self._look()
        now = self._clock()
        vitals = self._pulse.vitals(node.id, name)
        if not force and condition(vitals, now) != "healthy":
            raise Refused(
                Kind.NOT_HEALTHY,
                f"{node.name!r} cannot answer for {name!r} now, {reason(vitals, now)}: mend that, or move it by force",
            )
        self._settling[name] = now + SETTLE
        async with self._store.mutation(actor, Action.SERVICE_MOVE, f"service:{name}") as tx:
            before = await tx.services.get(name)
            if before is None:
                raise _missing(name)
            if before.holder == node.id:
                tx.discard()
                return await self.get(name)
            await tx.services.save(name, before.number, node.id, tx.now)
            tx.record(old={"holder": self._name(before.holder)}, new={"holder": node.name, "forced": force})
        return await self.get(name)

    def heard(self, node_id: NodeId, services: Mapping[ServiceName, str | None]) -> None:
        """Take in a heartbeat. What a node says of services that it may not serve is not listened to."""
        mine = {name: error for name, error in services.items() if node_id in self._hub.servers(name)}
        if self._pulse.heard(node_id, mine, self._clock()):
            self._wake.set()

    async def watch(self) -> None:
        """Hand over what lost holders hold, until cancelled."""
        while True:
            self._wake.clear()
            try:
                for move in self._due():
                    await self._hand_over(move)
            except StoreError as error:
                _log.error("services cannot be handed over and this is tried again: %s", error)
                await asyncio.sleep(_TRY_AGAIN)
            # Without services there is nothing to look at until the policy changes.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_EVERY if self._hub.service_names() else None)

    def _due(self) -> list[_Move]:
        self._look()
        if not self._leads():
            return []
        now = self._clock()
        self._settling = {name: until for name, until in self._settling.items() if now < until}
        moves = []
        for name in self._hub.service_names():
            old, servers = self._hub.given_to(name), self._hub.servers(name)
            if old in servers and name in self._settling:
                continue
            candidates = {node_id: self._pulse.vitals(node_id, name) for node_id in servers}
            new = decide(name, old, candidates, now)
            if new != old:
                why = "nobody held it" if old is None else f"{self._name(old)} may not serve it any more"
                if old in candidates:
                    why = f"{self._name(old)} is lost: {reason(candidates[old], now)}"
                moves.append(_Move(name, old, new, why))
        return moves

    async def _hand_over(self, move: _Move) -> None:
        self._handing = move.service
        try:
            async with self._store.mutation("system", Action.SERVICE_FAILOVER, f"service:{move.service}") as tx:
                before = await tx.services.get(move.service)
                if before is None or before.holder != move.old:
                    tx.discard()
                    return
                await tx.services.save(move.service, before.number, move.new, tx.now)
                old, new = self._name(move.old), self._name(move.new)
                tx.record(old={"holder": old}, new={"holder": new, "reason": move.why})
        finally:
            self._handing = None
        _log.info("service %s is held by %s instead of %s: %s", move.service, new, old, move.why)

    def _look(self) -> None:
        """Note which of the nodes that may serve something are connected, and what other controllers heard of them."""
        now = self._clock()
        nodes = {node_id for name in self._hub.service_names() for node_id in self._hub.servers(name)}
        for node_id in nodes:
            self._pulse.saw(node_id, online=self._hub.presence(node_id).online, now=now)
            found = self._hub.elsewhere.online(node_id)
            if self._hub.here(node_id).online:
                self._tell_others(node_id, now)
            elif found is not None:
                self._pulse.heard(node_id, found[0].services, now)
        self._pulse.keep_only(nodes)
        self._told = {node_id: told for node_id, told in self._told.items() if node_id in nodes}

    def says(self, node_id: NodeId) -> Mapping[ServiceName, str | None]:
        """What a node says of the services that it serves, while it is heard of."""
        return self._pulse.says(node_id, self._clock())

    def _tell_others(self, node_id: NodeId, now: float) -> None:
        says = self._pulse.says(node_id, now)
        if says != self._told.get(node_id):
            self._told[node_id] = says
            self._hub.touch(node_id)

    def _changed(self, change: Change) -> None:
        # A holder that this controller did not choose by its own judgement: an administrator did, wherever.
        until = self._clock() + SETTLE
        chosen = {name for name, place in change.services.items() if place and place.holder}
        self._settling |= dict.fromkeys(chosen - {self._handing}, until)
        # A change of nodes may bring somebody who can serve, or take the holder away.
        self._wake.set()

    def _describe(self, stored: StoredService) -> MeshService | None:
        service = self._hub.service(stored.name)
        if service is None:
            return None  # the policy went on meanwhile
        self._look()
        hosts = sorted(
            (self._host(node_id, stored.name) for node_id in self._hub.servers(stored.name)), key=lambda host: host.name
        )
        holder = next((host for host in hosts if host.id == stored.holder), None)
        return MeshService(
            name=stored.name,
            kind=service.kind,
            fqdn=service.names[0],
            addresses=stored.addresses,
            port=service.port,
            tls_port=service.tls_port,
            path=service.path if service.kind == "mcp" else "",
            holder=holder.name if holder is not None else None,
            since=stored.since,
            healthy=holder is not None and holder.healthy,
            error=holder.error if holder is not None else "no node that may serve it is connected",
            hosts=tuple(hosts),
            revision=stored.revision,
        )

    def _host(self, node_id: NodeId, name: ServiceName) -> ServiceHost:
        vitals, now = self._pulse.vitals(node_id, name), self._clock()
        healthy = condition(vitals, now) == "healthy"
        return ServiceHost(
            id=node_id,
            name=self._name(node_id) or node_id,
            online=vitals.online,
            healthy=healthy,
            error=None if healthy else reason(vitals, now),
        )

    def _name(self, node_id: NodeId | None) -> str | None:
        record = self._hub.record(node_id) if node_id is not None else None
        return record.name if record is not None else node_id

    def _named(self, nodes: Collection[NodeId]) -> str:
        return ", ".join(sorted(repr(self._name(node_id)) for node_id in nodes)) or "no active host"


def _missing(name: str) -> Refused:
    return Refused(
        Kind.NOT_FOUND,
        f"the policy in force has no service {name!r} with addresses of its own: `wardmesh service list` shows those",
    )
