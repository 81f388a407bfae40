"""Finds how peers are reached: the I/O around `paths.checks` and `paths.discovery`, on one UDP socket.

Whatever leaves the socket leaves this host from WireGuard's port, because the nftables table says so. Packets of the
mesh never pass here; a path is only chosen, and the reconciler gives it to the kernel.
"""

import asyncio
import ipaddress
import itertools
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

from controller.wire.base import Endpoint, split_endpoint
from controller.wire.netcheck import NatKind
from controller.wire.netmap import Mesh, Netmap, NodeId, Peer
from controller.wire.paths import PathKind
from controller.wire.stun import Binding, StunError, decode, encode, is_authentic

from .binding import Keeping
from .facts import OwnAddresses
from .mapping import PortMapping
from .pairs import Pairs
from .path_mtu import PathMtu
from .path_report import Reached
from .path_traffic import PathTraffic, ReadPeers
from .paths.checks import Checks, State, View
from .paths.discovery import Discovery, ServerView
from .paths.meeting import Meeting
from .paths.prefer import Preference
from .paths.relay_use import RelayUse, RelayView
from .plan import Choices
from .probe_socket import ProbeSocket
from .questions import Questions
from .stun_servers import follow_servers

__all__ = ["Prober"]

log = logging.getLogger("agentd.probing")

_LARGEST: Final = 65535  # bytes: a peer's questions have the sizes that it wants to know of
_AT_ONCE: Final = 50  # keys shared with peers: some milliseconds
_INSIST: Final = (0.5, 1.0, 2.0, 4.0, 8.0)  # seconds between two times that a choice is told
# With it a request is no shorter than its answer: nobody can be flooded by our question in his name.
_SOFTWARE: Final = b"wardmesh agentd     "


@dataclass(frozen=True, slots=True)
class _Links:
    changed: Callable[[], None]
    seen: Callable[[], None]
    read: ReadPeers | None


class Prober:
    """Runs the checks of one host, from `run` on; `connect` comes before."""

    def __init__(
        self,
        sock: ProbeSocket,
        own: OwnAddresses,
        mesh: Mesh,
        *,
        stun: tuple[str, int] | None,
        candidates: Callable[[], tuple[Endpoint, ...]],
        mapping: PortMapping,
        mtu: int = 1420,
        listen_port: int = 51820,
    ) -> None:
        """`stun`: host name or address and first port of the controller's STUN; None: nobody is asked.

        `candidates`: the endpoints that this host has without any NAT. `mtu`: the link's, in bytes.
        """
        self._socket, self._own, self._stun = sock, own, stun
        self._prefixes = [ipaddress.ip_network(prefix) for prefix in (mesh.prefix4, mesh.prefix6)]
        self._candidates = candidates
        self._links: _Links | None = None
        self._use = RelayUse(listen_port)
        self._prefer = Preference(own.chooser, self._use.through)
        self._checks, self._discovery, self._pairs = Checks(self._prefer), Discovery(), Pairs()
        self._meeting = Meeting()
        self._given: dict[NodeId, Endpoint | None] = {}
        self._questions = Questions()
        self._traffic = PathTraffic(self._unanswered, self._is_elsewhere)
        self._sizes = PathMtu(self.ask, mtu, self._tell_changed)
        self.keeping = Keeping(self._keep)
        self.mapping = mapping
        mapping.connect(self._mapped)
        self._fresh = (os.urandom(12) for _ in itertools.count())
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None
        self._resolve, self._in_force = asyncio.Event(), asyncio.Event()

    def connect(
        self,
        *,
        private_key: Callable[[], bytes],
        changed: Callable[[], None],
        seen: Callable[[], None],
        read: ReadPeers | None = None,
    ) -> None:
        """`private_key` gives WireGuard's, which may be replaced; `changed` is called when peers are to be reached
        elsewhere than `choose` said, `seen` when this host is seen from elsewhere. `read`: WireGuard's peers as they
        are now; without it, a path that dies is noticed by the next question alone.
        """
        self._links = _Links(changed, seen, read)
        self._pairs.connect(private_key)

    # --- what others ask ---

    def choose(self, peer: Peer) -> Endpoint | None:
        """Where to look for a peer: the path that was found to be best; before any was, behind a relay that answers, or
        where it looks best."""
        found = self._checks.chosen(peer.id) or self._prefer.first(self._use.ways(peer))
        self._given[peer.id] = found
        return found

    @property
    def choices(self) -> Choices:
        """What is decided here: keepalives only behind a NAT, as often as that needs them."""
        return Choices(
            self.choose,
            lambda peer: self._sizes.of(peer.id) or 0,
            lambda peer: round(self.keeping.seconds) if peer.keepalive is not None else 0,
            lambda peer: self._meeting.is_late(peer.id),
        )

    def known_mtu(self, node: NodeId) -> int | None:
        """The same, for people."""
        return self._sizes.of(node)

    @property
    def reflexive(self) -> tuple[Endpoint, ...]:
        """Where this host is seen from outside, if that is none of its own endpoints."""
        return tuple(endpoint for endpoint in self._discovery.reflexive if self._is_outside(endpoint))

    @property
    def relayed(self) -> tuple[Endpoint, ...]:
        """Where this host is found behind the relays that it chose, the nearest first."""
        return self._use.places

    @property
    def relays(self) -> tuple[RelayView, ...]:
        """The relays that this host may use, those that it chose first."""
        return self._use.views()

    def relay_of(self, endpoint: Endpoint) -> NodeId | None:
        """The relay that an endpoint is behind."""
        relay = self._use.relays.behind(endpoint)
        return None if relay is None else relay.node

    @property
    def nat(self) -> NatKind:
        """What is between this host and the controller."""
        return self._discovery.nat

    @property
    def servers(self) -> tuple[ServerView, ...]:
        """Who is asked from where this host is seen."""
        return self._discovery.views

    def paths(self, node: NodeId) -> tuple[View, ...]:
        """What is known of the ways to a peer."""
        return self._checks.views(node)

    def reached(self) -> list[Reached]:
        """How each peer with an agentd is reached now."""
        found = []
        for node in self._pairs.nodes:
            view = next((view for view in self._checks.views(node) if view.chosen), None)
            if view is None or view.state is State.SILENT:
                found.append(Reached(node, "none", None, None, None))
            else:
                found.append(Reached(node, self.kind(view.endpoint), view.endpoint, view.rtt, self._sizes.of(node)))
        return found

    def kind(self, endpoint: Endpoint) -> PathKind:
        """What sort of path leads there."""
        if self._prefer.is_relayed(endpoint):
            return "relay"
        return "lan" if self._own.chooser.is_near(endpoint) else "direct"

    async def ask(self, node: NodeId, endpoint: Endpoint, *, patience: float, size: int = 0) -> float | None:
        """Ask a peer there once; the round trip time in seconds, None when no answer came within `patience`.

        The question is at least `size` bytes of UDP payload, in one piece. Whatever comes of it changes no path.
        """
        shared = self._pairs.of(node)
        if shared is None:
            return None
        transaction = next(self._fresh)
        request = encode(Binding("request", transaction, username=shared.ours), shared.key, size=size)
        send = partial(self._socket.send, request, endpoint)
        return await self._questions.ask(node, endpoint, transaction, send, patience=patience)

    # --- what others tell ---

    def adopt(self, netmap: Netmap) -> None:
        """This map is in force, and with it the table without which nothing leaves from WireGuard's port."""
        self._in_force.set()
        self._use.adopt(netmap)
        agents = [peer for peer in netmap.peers.values() if peer.kind == "agent"]
        peers = {peer.id: tuple(filter(self._is_outside, self._use.ways(peer))) for peer in agents}
        keys = {peer.id: peer.public_key for peer in agents}
        self._pairs.adopt(keys)
        self._meeting.keep(keys)
        self._given = {node: given for node, given in self._given.items() if node in netmap.peers}
        # The controller asks for keepalives of hosts behind a NAT, and of no others.
        self._checks.behind_nat = any(peer.keepalive is not None for peer in netmap.peers.values())
        self._checks.meet(peers, self._now)
        self._sizes.keep(peers)
        self._traffic.keep({node: key for node, key in keys.items() if self._use.is_silence_news(node)})
        if self._use.is_relay:
            self._introduce()
        self._watch_relays()
        self._schedule()

    def moved(self) -> None:
        """This host's own addresses are others now."""
        self._prefer = Preference(self._own.chooser, self._use.through)
        self._checks.moved(self._prefer, self._now)
        self._resolve.set()
        self.keeping.measure_again()
        self.mapping.moved()
        self._schedule()

    async def run(self) -> None:
        """Ask and answer until cancelled."""
        loop = asyncio.get_running_loop()
        await self._in_force.wait()
        loop.add_reader(self._socket.fileno(), self._readable)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._ask_servers())
                group.create_task(self._sizes.run())
                group.create_task(self.keeping.run())
                group.create_task(self.mapping.run())
                if self._links is not None and self._links.read is not None:
                    group.create_task(self._traffic.run(self._links.read))
        finally:
            loop.remove_reader(self._socket.fileno())
            for timer in filter(None, (self._timer, self._again)):
                timer.cancel()

    # --- how ---

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _is_outside(self, endpoint: Endpoint) -> bool:
        """False for what is inside the mesh: a way to a peer that is in the tunnel to it is none."""
        address = ipaddress.ip_address(split_endpoint(endpoint)[0])
        return not any(address.version == prefix.version and address in prefix for prefix in self._prefixes)

    async def _ask_servers(self) -> None:
        async for found in follow_servers(self._stun, self._resolve):
            self._discovery.ask_all(found, self._candidates(), self._now)
            self._schedule()

    def _introduce(self) -> None:
        """Make what is shared with each peer, a few at a time, so that whoever uses this relay is answered."""
        some = list(itertools.islice(self._pairs.unmade(), _AT_ONCE))
        for node in some:
            self._pairs.of(node)
        if len(some) == _AT_ONCE:
            asyncio.get_running_loop().call_soon(self._introduce)

    def _watch_relays(self) -> None:
        """Choose among the relays, and look for other ways to whoever was reached by one that does not answer."""
        if not self._use.relays.usable:
            return
        before = self._use.places
        found, lost = self._use.look(self._checks.answers)
        self._checks.watched = self._use.watched
        if found:
            self._insist()  # whoever has no path yet is reached behind it at once
        if lost:
            log.info("a relay does not answer", extra={"relays": " ".join(sorted(lost))})
            self._checks.suspect(lambda endpoint: self.relay_of(endpoint) in lost, self._now)
        if self._use.places != before and self._links is not None:
            log.info("this host is found behind relays", extra={"places": " ".join(self._use.places) or "none"})
            self._links.seen()

    def _insist(self, delays: tuple[float, ...] = _INSIST) -> None:
        """Say again where peers are: what they sent by way of a relay before they knew a direct path moved WireGuard
        back there, unless both hosts say so at about the same time."""
        if self._again is not None:
            self._again.cancel()
        if delays:
            self._again = asyncio.get_running_loop().call_later(delays[0], self._insist, delays[1:])
            self._tell_changed()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        parts = (self._checks, self._discovery, self._meeting)
        times = [at for part in parts if (at := part.wake_at()) is not None]
        if times:
            self._timer = asyncio.get_running_loop().call_at(min(times), self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self._now
        before = self.reflexive
        for question in self._discovery.due(self._fresh, now):
            request = Binding("request", question.transaction, software=_SOFTWARE)
            self._socket.send(encode(request), question.server)
        for probe in self._checks.due(self._fresh, now):
            shared = self._pairs.of(probe.peer)
            if shared is not None:
                request = Binding("request", probe.transaction, username=shared.ours)
                self._socket.send(encode(request, shared.key), probe.endpoint)
        if self._meeting.look(now):
            self._tell_changed()
        self._watch_relays()
        self._notice(before)
        self._schedule()

    def _readable(self) -> None:
        before = self.reflexive
        for data, source in self._socket.received():
            try:
                message = decode(data, largest=_LARGEST)
            except StunError:
                continue  # anybody may send anything
            if not self._is_outside(source):
                continue
            if message.kind == "request":
                self._asked(data, message, source)
            elif not self._discovery.answered(message.transaction, source, message.mapped, self._now):
                self._answered(data, message, source)
        self._watch_relays()
        self._notice(before)
        self._schedule()

    def _asked(self, data: bytes, message: Binding, source: Endpoint) -> None:
        asker = self._pairs.asker(message.username)
        if asker is not None and is_authentic(data, message, asker[1].key):
            answer = Binding("answer", message.transaction, mapped=source)
            self._socket.send(encode(answer, asker[1].key), source)
            self._checks.asked(asker[0], source, self._now)

    def _answered(self, data: bytes, message: Binding, source: Endpoint) -> None:
        asked = self._questions.whose(message.transaction)
        node = asked or self._checks.whose(message.transaction)
        shared = self._pairs.of(node) if node is not None else None
        if node is None or shared is None or not is_authentic(data, message, shared.key):
            return
        if asked is None:
            self._checks.answered(message.transaction, source, self._now)
            self._meeting.answered(node, self._now, leads=shared.ours < shared.theirs)
        else:
            self._questions.answered(message.transaction, source)

    def _unanswered(self, nodes: Iterable[NodeId]) -> None:
        for node in nodes:
            self._checks.doubt(node, self._now)
        self._schedule()

    def _is_elsewhere(self, node: NodeId, endpoint: Endpoint) -> bool:
        """True when a peer for which a direct path is known sends by way of a relay."""
        chosen = self._checks.chosen(node)
        return chosen is not None and self._prefer.is_relayed(endpoint) and not self._prefer.is_relayed(chosen)

    def _notice(self, before: Iterable[Endpoint]) -> None:
        """Tell those who want to know, when something that they were told is different."""
        if self.reflexive != before:
            log.info("this host is seen from elsewhere", extra={"endpoints": " ".join(self.reflexive) or "its own"})
            if self._links is not None:
                self._links.seen()
        if self._discovery.nat != "unknown":
            self.keeping.behind_nat_of(self._discovery.translated_by)
            self.mapping.want(self._discovery.is_four_translated)
        changed = self._checks.take_changed()
        for node in changed:
            for view in self._checks.views(node):
                if view.chosen:
                    self._sizes.look(node, view.endpoint, view.rtt or 0.0)
        moved = [node for node in changed if self._given.get(node) != self._checks.chosen(node)]
        if any(self._checks.chosen(node) is not None for node in moved):
            self._insist(_INSIST if self._use.relays.usable else _INSIST[-1:])

    def _mapped(self) -> None:
        self._discovery.forwarded = self.mapping.endpoint
        if self._links is not None:
            self._links.seen()

    def _keep(self) -> None:
        self._checks.keep = self.keeping.seconds
        self._tell_changed()

    def _tell_changed(self) -> None:
        if self._links is not None:
            self._links.changed()
