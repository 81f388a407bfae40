"""Which of a peer's endpoints work from here, and which is the best, as a pure state machine: the table is the code.

Both hosts of a pair do the same: each asks all endpoints that it knows of the other, and each opens by that its own
NAT and firewall for the other's questions. Nothing here touches the path in use. No I/O, no clock, no keys.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum, auto
from typing import Final

from controller.wire.base import Endpoint
from controller.wire.netmap import NodeId

from .prefer import Preference

__all__ = ["Checks", "Event", "Probe", "State", "View"]


class State(StrEnum):
    """What is known of one endpoint of a peer."""

    TRYING = auto()  # asked, a few times and quickly
    WORKING = auto()  # the last question was answered
    DOUBTED = auto()  # it worked, and now an answer is missing: asked a few times and quickly
    SILENT = auto()  # no answer: asked now and then, which keeps our own NAT open for the peer's questions


class Event(StrEnum):
    """What happens to an endpoint."""

    ANSWERED = auto()  # an authentic answer came from it
    ASKED = auto()  # the peer's authentic question came from it
    MISSED = auto()  # no answer by the time of the next question
    EXHAUSTED = auto()  # no answer to the last of several
    UNHEARD = auto()  # what was sent there, other than questions, is not answered
    MOVED = auto()  # this host's own addresses, or the peer's endpoints, are others now


_TABLE: Final[Mapping[State, Mapping[Event, State]]] = {
    State.TRYING: {
        Event.ANSWERED: State.WORKING,
        Event.ASKED: State.TRYING,
        Event.MISSED: State.TRYING,
        Event.EXHAUSTED: State.SILENT,
        Event.UNHEARD: State.TRYING,
        Event.MOVED: State.TRYING,
    },
    State.WORKING: {
        Event.ANSWERED: State.WORKING,
        Event.ASKED: State.WORKING,
        Event.MISSED: State.DOUBTED,
        Event.EXHAUSTED: State.DOUBTED,
        Event.UNHEARD: State.DOUBTED,
        Event.MOVED: State.DOUBTED,
    },
    State.DOUBTED: {
        Event.ANSWERED: State.WORKING,
        Event.ASKED: State.DOUBTED,
        Event.MISSED: State.DOUBTED,
        Event.EXHAUSTED: State.SILENT,
        Event.UNHEARD: State.DOUBTED,
        Event.MOVED: State.DOUBTED,
    },
    State.SILENT: {
        Event.ANSWERED: State.WORKING,
        Event.ASKED: State.TRYING,
        Event.MISSED: State.SILENT,
        Event.EXHAUSTED: State.SILENT,
        Event.UNHEARD: State.SILENT,
        Event.MOVED: State.TRYING,
    },
}

# Seconds. RFC 8445 section 14.3 asks for 500 ms between two questions to one endpoint; the first are closer together,
# because at the beginning the first is only there to open a NAT.
_QUICK: Final = (0.25, 0.5, 0.5, 1.0, 1.0, 2.0, 2.0)
# As often as WireGuard's keepalive: less than what any NAT remembers. Also what brings a peer back that was away.
_SLOW: Final = 25.0
# The endpoint in use, without a NAT of our own: a stateful firewall remembers for 120 s (Linux: udp_timeout_stream).
_CALM: Final = 100.0
# Endpoints that are not needed, because another works.
_SPARE: Final = 300.0
# The same, where the other is behind a relay: what did not work once may, when the peer's NAT or firewall is another.
_UPGRADE: Final = 60.0
# Between two questions: RFC 8445 section 14.2 has 50 ms for one session; and so that all slow ones together with the
# answers to as many of other hosts stay below 5 packets a second.
_PACE: Final = 0.02
_SLOW_PACE: Final = 0.6
_PUT_OFF: Final = 10.0  # the slow ones, at most, for those that are asked in their place
_GRACE: Final = 0.3  # after the first answer of any endpoint, for the answer of the one in use
_ALARM: Final = 3  # questions without an answer to the endpoint in use, and the others are looked at
_LEARNED: Final = 4  # endpoints of a peer that only its questions told


@dataclass(frozen=True, slots=True)
class Probe:
    """Ask this now."""

    peer: NodeId
    endpoint: Endpoint
    transaction: bytes


@dataclass(frozen=True, slots=True)
class View:
    """An endpoint of a peer, for people. `rtt` in seconds, of the last answer."""

    endpoint: Endpoint
    state: State
    rtt: float | None
    chosen: bool
    learned: bool


@dataclass(slots=True)
class _Path:
    learned: bool = False
    state: State = State.TRYING
    tries: int = 0  # since it was last fresh, answered or asked from
    due: float = 0.0
    ticket: int = 0  # of its place in a queue; others of it are void
    open: list[bytes] = field(default_factory=list)  # transactions without an answer yet, of this series
    rtt: float | None = None


@dataclass(slots=True)
class _Peer:
    known: tuple[Endpoint, ...] = ()
    paths: dict[Endpoint, _Path] = field(default_factory=dict)
    chosen: Endpoint | None = None
    decide_at: float | None = None


class Checks:
    """The checks of one host with all its peers. Times are seconds of one clock that only goes forward."""

    def __init__(self, prefer: Preference) -> None:
        self.behind_nat = True  # False: what works needs not be kept open so often
        self.keep = _SLOW  # seconds between two questions to what works, behind a NAT
        self.watched: Mapping[NodeId, float] = {}  # peers whose path in use is asked every so many seconds
        self._prefer = prefer
        self._peers: dict[NodeId, _Peer] = {}
        self._changed: set[NodeId] = set()
        self._undecided: set[NodeId] = set()
        self._asked: dict[bytes, tuple[NodeId, Endpoint, float]] = {}  # by transaction; when
        self._quick: list[tuple[float, int, NodeId, Endpoint]] = []
        self._slow: list[tuple[float, int, NodeId, Endpoint]] = []
        self._tickets = itertools.count(1)
        self._free_at = self._slow_free_at = 0.0

    # --- what is told to it ---

    def meet(self, peers: Mapping[NodeId, tuple[Endpoint, ...]], now: float) -> None:
        """These are the peers, with the endpoints that the map has. One that is not there any more is forgotten."""
        for node in [node for node in self._peers if node not in peers]:
            for path in self._peers.pop(node).paths.values():
                self._close(path)
            self._undecided.discard(node)
        for node, endpoints in peers.items():
            peer = self._peers.setdefault(node, _Peer())
            if peer.known != endpoints:
                peer.known = endpoints
                self._relearn(node, peer, endpoints, now)

    def moved(self, prefer: Preference, now: float) -> None:
        """This host's own addresses are others now: everything may be."""
        self._prefer = prefer
        for node, peer in self._peers.items():
            for endpoint in peer.paths:
                self._happen(node, endpoint, Event.MOVED, now)

    def asked(self, node: NodeId, endpoint: Endpoint, now: float) -> None:
        """The peer's authentic question came from there: ask back at once (RFC 8445 section 7.3.1.4)."""
        peer = self._peers.get(node)
        if peer is None:
            return
        if endpoint not in peer.paths:
            learned = [each for each, path in peer.paths.items() if path.learned and each != peer.chosen]
            if len(learned) >= _LEARNED:
                self._drop(peer, learned[0])
            peer.paths[endpoint] = _Path(learned=True)
        if peer.paths[endpoint].state is not State.WORKING:
            self._happen(node, endpoint, Event.ASKED, now)

    def answered(self, transaction: bytes, endpoint: Endpoint, now: float) -> None:
        """An authentic answer came from there; one to nothing that was asked of it is nothing."""
        found = self._asked.get(transaction)
        if found is None or found[1] != endpoint:
            return
        node, _, sent = found
        self._peers[node].paths[endpoint].rtt = now - sent
        self._happen(node, endpoint, Event.ANSWERED, now)
        self._decide(node, now)

    def doubt(self, node: NodeId, now: float) -> None:
        """This peer does not answer to what was sent to it: ask at once whether the path in use still works.

        It takes the place of another question, so that there are not more of them. Who is watched is asked anyway.
        """
        peer = self._peers.get(node)
        if peer is None or peer.chosen is None or node in self.watched:
            return
        if peer.paths[peer.chosen].state is State.WORKING:
            self._happen(node, peer.chosen, Event.UNHEARD, now)
            self._slow_free_at = min(max(self._slow_free_at, now) + _SLOW_PACE, now + _PUT_OFF)

    def suspect(self, is_suspect: Callable[[Endpoint], bool], now: float) -> None:
        """These endpoints may not work any more: look at all endpoints of the peers that are reached there."""
        for node, peer in self._peers.items():
            if peer.chosen is not None and is_suspect(peer.chosen):
                for endpoint in peer.paths:
                    self._happen(node, endpoint, Event.MOVED, now)

    # --- what it tells ---

    def due(self, transaction: Iterable[bytes], now: float) -> list[Probe]:
        """What to ask now. `transaction` gives fresh ones, 12 random bytes each."""
        for node in list(self._undecided):
            self._decide(node, now)
        fresh, probes = iter(transaction), []
        for queue, pace in ((self._quick, _PACE), (self._slow, _SLOW_PACE)):
            while queue and queue[0][0] <= now and self._next_free(queue) <= now:
                _, ticket, node, endpoint = heapq.heappop(queue)
                path = self._path(node, endpoint)
                if path is None or path.ticket != ticket:
                    continue
                if queue is self._quick:
                    self._free_at = max(now, self._free_at + pace)
                else:
                    self._slow_free_at = now + pace
                probes.append(self._ask(node, endpoint, path, next(fresh), now))
        return probes

    def wake_at(self) -> float | None:
        """When `due` has something to say, None for not before something is told."""
        times = [max(queue[0][0], self._next_free(queue)) for queue in (self._quick, self._slow) if queue]
        times += [at for node in self._undecided if (at := self._peers[node].decide_at) is not None]
        return min(times, default=None)

    def chosen(self, node: NodeId) -> Endpoint | None:
        """The best endpoint that works, or the last that did: None before any was found to."""
        peer = self._peers.get(node)
        return peer.chosen if peer else None

    def answers(self, node: NodeId) -> float | None:
        """The last round trip time (seconds) of the path in use; None for a peer that does not answer there now."""
        peer = self._peers.get(node)
        path = peer.paths.get(peer.chosen) if peer is not None and peer.chosen is not None else None
        if path is None or path.state not in {State.WORKING, State.DOUBTED} or len(path.open) >= _ALARM:
            return None
        return path.rtt

    def take_changed(self) -> set[NodeId]:
        """The peers whose `chosen` may be another than when this was last called."""
        changed, self._changed = self._changed, set()
        return changed

    def whose(self, transaction: bytes) -> NodeId | None:
        """Which peer was asked by this question, if it waits for its answer."""
        found = self._asked.get(transaction)
        return found[0] if found else None

    def views(self, node: NodeId) -> tuple[View, ...]:
        """All endpoints of a peer."""
        peer = self._peers.get(node, _Peer())
        return tuple(
            View(endpoint, path.state, path.rtt, endpoint == peer.chosen, path.learned)
            for endpoint, path in peer.paths.items()
        )

    # --- how ---

    def _relearn(self, node: NodeId, peer: _Peer, endpoints: tuple[Endpoint, ...], now: float) -> None:
        # The peer is somewhere else, or knows more of itself. What its questions told was of before; what works, works.
        for endpoint in list(peer.paths):
            path = peer.paths[endpoint]
            if endpoint not in endpoints and not (path.learned and path.state is State.WORKING):
                self._drop(peer, endpoint)
        for endpoint in endpoints:
            peer.paths.setdefault(endpoint, _Path()).learned = False
        for endpoint in peer.paths:
            self._happen(node, endpoint, Event.MOVED, now)

    def _drop(self, peer: _Peer, endpoint: Endpoint) -> None:
        self._close(peer.paths.pop(endpoint))
        if peer.chosen == endpoint:
            peer.chosen = None

    def _close(self, path: _Path) -> None:
        for transaction in path.open:
            self._asked.pop(transaction, None)
        path.open.clear()

    def _path(self, node: NodeId, endpoint: Endpoint) -> _Path | None:
        peer = self._peers.get(node)
        return peer.paths.get(endpoint) if peer else None

    def _happen(self, node: NodeId, endpoint: Endpoint, event: Event, now: float) -> None:
        path = self._peers[node].paths[endpoint]
        path.state = _TABLE[path.state][event]
        if event is Event.ANSWERED:
            path.tries = 0
            self._close(path)
            self._queue(node, endpoint, now + self._patience(node, endpoint, path))
        elif event in {Event.ASKED, Event.MOVED, Event.UNHEARD}:
            path.tries = 0
            self._queue(node, endpoint, now)

    def _ask(self, node: NodeId, endpoint: Endpoint, path: _Path, transaction: bytes, now: float) -> Probe:
        if path.open:  # the one before was not answered
            exhausted = path.tries >= len(_QUICK)
            path.state = _TABLE[path.state][Event.EXHAUSTED if exhausted else Event.MISSED]
        while len(path.open) >= len(_QUICK):
            self._asked.pop(path.open.pop(0), None)
        path.open.append(transaction)
        self._asked[transaction] = (node, endpoint, now)
        path.tries += 1
        self._queue(node, endpoint, now + self._patience(node, endpoint, path))
        peer = self._peers[node]
        if endpoint == peer.chosen and path.tries == _ALARM:
            for other in peer.paths:
                if other != endpoint:
                    self._happen(node, other, Event.MOVED, now)
        return Probe(node, endpoint, transaction)

    def _patience(self, node: NodeId, endpoint: Endpoint, path: _Path) -> float:
        """Seconds until the next question."""
        if path.open and path.state is not State.SILENT and path.tries <= len(_QUICK):
            return max(_QUICK[max(path.tries, 1) - 1], 1.5 * (path.rtt or 0.0))
        peer = self._peers[node]
        if peer.chosen is None or peer.paths[peer.chosen].state is not State.WORKING:
            return _SLOW
        if endpoint != peer.chosen:
            wanted = self._prefer.is_relayed(peer.chosen) and not self._prefer.is_relayed(endpoint)
            return _UPGRADE if wanted else _SPARE
        return self.watched.get(node, self.keep if self.behind_nat else _CALM)

    def _queue(self, node: NodeId, endpoint: Endpoint, due: float) -> None:
        path = self._peers[node].paths[endpoint]
        path.due, path.ticket = due, next(self._tickets)
        watched = node in self.watched and endpoint == self._peers[node].chosen
        quick = path.state in {State.TRYING, State.DOUBTED} or (path.open and path.tries == 1) or watched
        heapq.heappush(self._quick if quick else self._slow, (due, path.ticket, node, endpoint))

    def _next_free(self, queue: list[tuple[float, int, NodeId, Endpoint]]) -> float:
        return self._free_at if queue is self._quick else self._slow_free_at

    def _decide(self, node: NodeId, now: float) -> None:
        """Choose, when there is something to choose; the one in use stays unless another is clearly better."""
        peer = self._peers[node]
        working = {
            endpoint: path.rtt
            for endpoint, path in peer.paths.items()
            if path.state is State.WORKING and path.rtt is not None
        }
        if not working:
            self._settle(node, peer)
            return
        # Before anything was chosen, the kernel has the endpoint that looks best from the outside.
        incumbent = peer.chosen or self._prefer.first(peer.known)
        if incumbent is not None and incumbent not in working:
            undecided = peer.paths.get(incumbent)
            waits = undecided is not None and undecided.state in {State.TRYING, State.DOUBTED}
            # Nobody waits for an answer by way of a relay who has a direct one.
            is_upgrade = self._prefer.is_relayed(incumbent) and not all(map(self._prefer.is_relayed, working))
            if waits and not is_upgrade:
                if peer.decide_at is None:
                    peer.decide_at = now + _GRACE
                    self._undecided.add(node)
                if now < peer.decide_at:
                    return
            incumbent = None
        self._settle(node, peer)
        chosen = self._prefer.best(working, incumbent)
        if chosen != peer.chosen:
            peer.chosen = chosen
            self._changed.add(node)

    def _settle(self, node: NodeId, peer: _Peer) -> None:
        peer.decide_at = None
        self._undecided.discard(node)
