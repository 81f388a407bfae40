"""The running mesh: state, log and the connected agents in one object of the event loop.

`publish` only marks who has to be told what; each connection's own task computes and sends. Nothing here waits for an
agent, and nothing here speaks SQL or HTTP.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from controller.policy import Document
from controller.records import Change, Fleet, NodeRecord, TemporaryGrant
from controller.wire.base import Revision
from controller.wire.mcp import GatewayPolicy, Service, ServiceName
from controller.wire.netmap import Netmap, NodeId
from controller.wire.stream import Applied, Ask, Bye, Controllers, Hello, HostReport

from .alarm import Alarm
from .connection import Connection
from .dirty import Affected, Dirty, merged
from .elsewhere import Elsewhere, Replica, Word
from .farewells import DISABLED, REMOVED, REPLACED, SHUTDOWN, RefusedError
from .log import RevisionLog
from .past import Past
from .presence import Presence
from .state import MeshState

__all__ = ["Hub", "Presence"]

_log = logging.getLogger(__name__)
_FAREWELL: Final = 5.0  # seconds that agents get to read a Bye at shutdown
_LAG: Final = 100  # revisions; what is known of before a start reaches back for some hundreds
_BROUGHT_UP: Final = 1000  # hosts at a time, 0.1 ms each


class Hub:
    """One per process, used from one event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self.clock: Final = clock
        self._state: MeshState | None = None
        self._log = RevisionLog(0)
        self._past = Past(0, (), None)
        self._connections: dict[NodeId, Connection] = {}
        self._presence: dict[NodeId, Presence] = {}
        self._concerned: dict[NodeId, Revision] = {}  # the newest revision that touched a node's map
        self._missing: dict[NodeId, float] = {}  # since when a node that is not connected here lacks something
        self._expiry = Alarm(clock, self._expire)
        self._is_closing = False
        self.elsewhere = Elsewhere()
        self._controllers = Controllers(urls=())
        self._touched: set[NodeId] = set()  # connected here, and others were not told what is new
        self._on_touched: Callable[[], None] | None = None

    # The domain modules' side

    def load(self, fleet: Fleet) -> None:
        """Start from a fleet, or from it again: then every connected agent gets a snapshot."""
        now = self.clock()
        self._state = MeshState(fleet, now)
        ended = max((end for end in (fleet.ended, self._state.last_ended(now)) if end is not None), default=None)
        self._past = Past(fleet.revision, fleet.past, ended)
        self._log = RevisionLog(fleet.revision)
        self._concerned = dict.fromkeys(self._connections, fleet.revision)
        for node_id, connection in list(self._connections.items()):
            connection.restart(self._state)
            self._dismiss_if_barred(node_id)
        self._schedule_expiry()

    def publish(self, change: Change) -> int:
        """Take in a committed change; how many hosts it concerns. The order of concurrent calls does not matter."""
        state = self._loaded()
        is_late = change.revision < state.revision
        affected = state.apply(change, self.clock())
        if is_late and affected:
            # Hosts may hold a map of a later revision without this: none of those may be continued.
            self._log.forget(state.revision)
        else:
            self._log.add(state.revision, affected)
        self._tell(affected)
        for node_id, record in change.nodes.items():
            self._dismiss_if_barred(node_id)
            if record is None:
                self._presence.pop(node_id, None)
                self._concerned.pop(node_id, None)
                self._missing.pop(node_id, None)
                self.elsewhere.forget([node_id])
        if change.policy is not None or change.grants:
            self._schedule_expiry()
        return len(affected)

    def clock_was_set(self) -> None:
        """Look again which grants have ended: the clock was put forward or back."""
        self._expire()

    def netmap(self, node_id: NodeId) -> Netmap | None:
        """The present view of a node, also of one that is offline or a static peer."""
        return self._loaded().netmap(node_id)

    def record(self, node_id: NodeId) -> NodeRecord | None:
        """The node with this id."""
        return self._loaded().record(node_id)

    def services(self, node_id: NodeId) -> frozenset[str]:
        """The gateway services that policy lets this node serve, by name."""
        return self._loaded().services(node_id)

    def records(self) -> Iterable[NodeRecord]:
        """Every node of the mesh."""
        return self._loaded().records

    def find(self, reference: str) -> NodeRecord | None:
        """The node of this name or, when none has it, of this id."""
        return self._loaded().find(reference)

    def service_names(self) -> Collection[ServiceName]:
        """The gateway services of the policy in force."""
        return self._loaded().service_names()

    def service(self, name: ServiceName) -> Service | None:
        """A gateway service of the policy in force, with its addresses and names as hosts get it."""
        return self._loaded().service(name)

    def servers(self, name: ServiceName) -> Set[NodeId]:
        """The active hosts that policy lets serve this gateway service."""
        return self._loaded().servers(name)

    def relays(self) -> Mapping[NodeId, str]:
        """The active hosts that relay, and the region of each."""
        return self._loaded().relays()

    def given_to(self, name: ServiceName) -> NodeId | None:
        """The node that was given the addresses of the service; it may have become one that may not serve it."""
        return self._loaded().given_to(name)

    def gateway_policy(self, name: ServiceName) -> GatewayPolicy | None:
        """What the gateways that serve `name` decide by."""
        return self._loaded().gateway_policy(name)

    def policy(self) -> tuple[Revision, Document]:
        """What the maps are made of: the document's revision (0 before the first), and it with the temporary grants."""
        state = self._loaded()
        return state.policy_revision, state.document

    def names(self) -> tuple[Document, Iterable[NodeRecord]]:
        """What a selector may name now: by the document as it was written, and every node."""
        state = self._loaded()
        return state.written, state.records

    def temporary_grant(self, grant_id: str) -> TemporaryGrant | None:
        """The temporary grant with this id, while it has not ended."""
        return self._loaded().temporary(grant_id)

    def idleness(self, grant_id: str) -> str | None:
        """Why a temporary grant allows nothing now, though it has not ended; None when it does."""
        return self._loaded().idleness(grant_id)

    def presence(self, node_id: NodeId) -> Presence:
        """What is known about a node's connection now, to whichever controller of the mesh."""
        presence = self.here(node_id)
        found = None if presence.online else self.elsewhere.online(node_id)
        if found is not None:
            word, replica = found
            # Its controller may not have heard yet of what concerns it.
            is_old = replica.as_of < max(self._concerned.get(node_id, 0), self._past.end)
            lacks = is_old and not word.presence.behind
            return replace(word.presence, behind=True, behind_since=self.clock()) if lacks else word.presence
        seen = max(filter(None, (presence.last_seen, self.elsewhere.last_seen(node_id))), default=None)
        return presence if seen == presence.last_seen else replace(presence, last_seen=seen)

    def here(self, node_id: NodeId) -> Presence:
        """What is known about a node's connection to this controller."""
        presence = self._known(node_id)
        connection = self._connections.get(node_id)
        if connection is None:
            return presence
        concerned = self._concerned.get(node_id, 0)
        in_force = connection.in_force
        behind = connection.is_waiting or in_force is None or in_force < concerned
        return replace(presence, online=True, behind=behind, behind_since=connection.lacks_since if behind else None)

    def online(self) -> list[NodeRecord]:
        """The nodes whose agents are connected now, to whichever controller of the mesh."""
        records = map(self._loaded().record, self._connections.keys() | self.elsewhere.all_online())
        return [record for record in records if record is not None]

    def ask(self, node_id: NodeId, question: Ask) -> bool:
        """Send a question to a host; False when it is not connected to this controller."""
        connection = self._connections.get(node_id)
        if connection is not None:
            connection.ask(question)
        return connection is not None

    def bring_up(self) -> None:
        """Tell hosts how far the mesh is that could not be continued after a restart: what they hold is from long ago,
        or from before the rules changed. A part of them at a time: it is asked for again."""
        state = self._loaded()
        oldest = max(state.revision - _LAG, state.granted)
        idle = (c for c in self._connections.values() if c.told is not None and c.told < oldest)
        for connection in itertools.islice(idle, _BROUGHT_UP):
            connection.push(Dirty())

    async def close(self) -> None:
        """Say goodbye to every agent, and give them a few seconds to read it."""
        self._is_closing = True
        self._expiry.set(None)
        connections = list(self._connections.values())
        for connection in connections:
            connection.dismiss(SHUTDOWN)
        waits = [asyncio.create_task(connection.finished()) for connection in connections]
        if waits:
            _, late = await asyncio.wait(waits, timeout=_FAREWELL)
            for task in late:
                task.cancel()

    # The other controllers' side

    @property
    def revision(self) -> Revision:
        """What was taken in."""
        return self._loaded().revision

    def on_touched(self, wake: Callable[[], None]) -> None:
        """Call `wake` when there is something to tell other controllers; without it, none of it is kept."""
        self._on_touched = wake

    def touch(self, *nodes: NodeId) -> None:
        """Something is new of these nodes' connections here."""
        if self._on_touched is not None:
            self._touched.update(nodes)
            self._on_touched()

    def take_touched(self) -> set[NodeId]:
        """The nodes of whose connections something is new since the last time."""
        taken, self._touched = self._touched, set()
        return taken

    def served_by(self, urls: Sequence[str]) -> None:
        """These controllers serve the mesh, this one among them: hosts are told when that is news."""
        found = Controllers(urls=tuple(sorted(urls)))
        if found == self._controllers or not (self._controllers.urls or len(urls) > 1):
            return
        self._controllers = found
        for connection in self._connections.values():
            connection.controllers(found)

    def heard_of(self, replicas: Iterable[Replica], words: Mapping[NodeId, Word]) -> None:
        """Take in what other controllers say. A stream that a host opened there later replaces the one here."""
        self.elsewhere.alive(replicas)
        for node_id in words:
            self._missing.pop(node_id, None)  # the other controller knows better
        self.elsewhere.heard({node_id: word for node_id, word in words.items() if self.record(node_id) is not None})
        for node_id in words.keys() & self._connections.keys():
            found, since = self.elsewhere.online(node_id), self.here(node_id).since
            if found is not None and since is not None and found[0].since > since:
                self._connections[node_id].dismiss(REPLACED)

    # The streams' side

    def is_behind(self, node_id: NodeId, hello: Hello) -> bool:
        """The host may have been told, by another controller, what was not taken in here: that first."""
        return self._barred(node_id) is not None or (hello.revision or 0) > self._loaded().revision

    def admit(self, node_id: NodeId) -> None:
        """Raises RefusedError when the node may not open a stream now."""
        if self._is_closing:
            raise RefusedError(SHUTDOWN)
        bye = self._barred(node_id)
        if bye is not None:
            raise RefusedError(bye)

    @contextmanager
    def connected(self, node_id: NodeId, hello: Hello) -> Iterator[Connection]:
        """The node's connection while its stream is open; it replaces an older one. Raises RefusedError.

        The host's map is continued when it is known what changed since; in any other case it gets a snapshot.
        """
        self.admit(node_id)
        connection = self._open(node_id, hello)
        older = self._connections.get(node_id)
        if older is not None:
            older.dismiss(REPLACED)
        self._connections[node_id] = connection
        if self._controllers.urls:
            connection.controllers(self._controllers)
        now = self._now()
        self._note(node_id, replace(self._known(node_id), online=True, last_seen=now, since=now))
        self.reported(node_id, hello.report)
        del older, hello  # not for as long as the stream lives: there are thousands
        try:
            yield connection
        finally:
            if self._connections.get(node_id) is connection:
                del self._connections[node_id]
                if node_id in self._presence:
                    if connection.lacks_since is not None:
                        self._missing[node_id] = connection.lacks_since
                    self._note(node_id, replace(self._known(node_id), online=False, last_seen=self._now()))

    def reported(self, node_id: NodeId, report: HostReport) -> None:
        """Note what a host says about itself and is not part of its record."""
        if node_id in self._connections:
            known = self._known(node_id)
            self._note(node_id, replace(known, backend=report.backend, agent_version=report.agent_version))

    def applied(self, connection: Connection, applied: Applied) -> None:
        """Note what a host has in force, or why it does not."""
        if self._connections.get(connection.node_id) is not connection:
            return  # a late word of a replaced stream
        known = replace(self._known(connection.node_id), last_seen=self._now())
        if applied.error is not None:
            self._note(connection.node_id, replace(known, error=applied.error))
        elif connection.applied(applied.revision):
            self._note(connection.node_id, replace(known, error=None, in_force=applied.revision))
        else:
            _log.warning("node %s claims revision %d, which it was not sent", connection.node_id, applied.revision)

    # Inside

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    def _loaded(self) -> MeshState:
        if self._state is None:
            raise RuntimeError("the hub was used before load()")
        return self._state

    def _known(self, node_id: NodeId) -> Presence:
        return self._presence.get(node_id, Presence())

    def _note(self, node_id: NodeId, presence: Presence) -> None:
        self._presence[node_id] = presence
        self.touch(node_id)

    def _open(self, node_id: NodeId, hello: Hello) -> Connection:
        state, since = self._loaded(), self._lacks_since(node_id)
        same = (hello.mesh, hello.timeline) == (state.mesh.id, state.mesh.timeline)
        if same and hello.revision is not None and hello.revision <= state.revision:
            missed = self._missed(node_id, hello.revision)
            if missed is not None:
                return Connection(node_id, state, hello.revision, missed, clock=self.clock, since=since)
        self._concerned[node_id] = state.revision
        return Connection(node_id, state, None, None, clock=self.clock, since=since)

    def _lacks_since(self, node_id: NodeId) -> float:
        """When the oldest thing was decided that a host which connects now does not have in force; now, if none is."""
        older = self._connections.get(node_id)
        since = self._missing.pop(node_id, None) if older is None else older.lacks_since
        return self.clock() if since is None else since

    def _missed(self, node_id: NodeId, revision: Revision) -> Dirty | None:
        """What changed for a node after `revision`, also if that was before the start; None when nobody knows."""
        if revision > self._past.end:
            return self._log.since(node_id, revision)
        named, since = self._past.since(node_id, revision), self._log.since(node_id, self._past.end)
        if named is None or since is None:
            return None
        return merged([self._loaded().named(node_id, named), since])

    def _barred(self, node_id: NodeId) -> Bye | None:
        record = self._loaded().record(node_id)
        if record is None or record.kind == "static":
            return REMOVED
        return DISABLED if record.state == "disabled" else None

    def _dismiss_if_barred(self, node_id: NodeId) -> None:
        connection = self._connections.get(node_id)
        bye = self._barred(node_id)
        if connection is not None and bye is not None:
            connection.dismiss(bye)

    def _tell(self, affected: Affected) -> None:
        revision, now = self._loaded().revision, self.clock()
        for node_id, dirty in affected.items():
            self._concerned[node_id] = revision
            connection = self._connections.get(node_id)
            if connection is None:
                self._missing.setdefault(node_id, now)
            else:
                connection.push(dirty)
                self.touch(node_id)

    def _schedule_expiry(self) -> None:
        self._expiry.set(None if self._is_closing else self._loaded().next_expiry)

    def _expire(self) -> None:
        state = self._loaded()
        affected = state.expire(self.clock())
        if affected:
            self._log.forget(state.revision)
            self._tell(affected)
        self._schedule_expiry()
