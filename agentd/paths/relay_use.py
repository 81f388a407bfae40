"""How this host uses relays: which of a peer's endpoints may be tried, where this host is found, what to watch. Pure.

A relay is never looked for behind another, so that a packet is sealed twice at most and nothing goes in a circle.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from controller.wire.base import Address, Endpoint, format_endpoint
from controller.wire.netmap import Netmap, NodeId, Peer
from controller.wire.relays import Relays, relays_of

from .relay_choice import RelayChoice

__all__ = ["RelayUse", "RelayView"]

# Seconds between two questions: that the home is lost must be known within seconds, as peers may be reached by it.
_HOME: Final = 1.0
_SPARE: Final = 2.0


@dataclass(frozen=True, slots=True)
class RelayView:
    """A relay, for people. `rtt` in seconds, None for one that does not answer; `chosen`: this host is found there."""

    node: NodeId
    region: str
    rtt: float | None
    chosen: bool


class RelayUse:
    """For a host whose WireGuard listens at `listen_port`."""

    def __init__(self, listen_port: int) -> None:
        self.relays = Relays()
        self._listen_port = listen_port
        self._choice = RelayChoice()
        self._answering: dict[NodeId, float] = {}
        self._addresses: tuple[Address, ...] = ()

    def adopt(self, netmap: Netmap) -> None:
        """This map is in force."""
        self.relays, self._addresses = relays_of(netmap), netmap.node.addresses

    def through(self, endpoint: Endpoint) -> float | None:
        """How far the relay is that an endpoint is behind, as `Preference` wants it."""
        relay = self.relays.behind(endpoint)
        return None if relay is None else self._answering.get(relay.node, math.inf)

    def ways(self, peer: Peer) -> tuple[Endpoint, ...]:
        """Those of a peer's endpoints at which it may be looked for.

        A relay looks for nobody but other relays: who uses it asks, and from where they do it knows where they are.
        """
        if any(relay.node == peer.id for relay in self.relays.usable):
            return tuple(endpoint for endpoint in peer.endpoints if not self.relays.is_relayed(endpoint))
        if self.is_relay:
            return ()
        return tuple(
            endpoint
            for endpoint in peer.endpoints
            if not self.relays.is_relayed(endpoint) or self.relays.behind(endpoint) is not None
        )

    @property
    def is_relay(self) -> bool:
        """True when this host is one: it waits to be asked."""
        return self.relays.own is not None

    def is_silence_news(self, node: NodeId) -> bool:
        """True when a peer that does not answer to traffic is to be asked why.

        Not a relay, which is asked all the time, and what goes to it is for others; nor does a relay ask anybody.
        """
        return not self.is_relay and all(relay.node != node for relay in self.relays.usable)

    @property
    def places(self) -> tuple[Endpoint, ...]:
        """Where this host is found behind the relays that it chose, the nearest first; nowhere for a relay itself."""
        if self.is_relay:
            return ()
        by_node = {relay.node: relay for relay in self.relays.usable}
        found = (by_node[node].place(self._addresses) for node in self._choice.chosen if node in by_node)
        return tuple(format_endpoint(place, self._listen_port) for place in found if place is not None)

    @property
    def watched(self) -> dict[NodeId, float]:
        """How often to ask the chosen relays, in seconds."""
        return dict(zip(self._choice.chosen, (_HOME, _SPARE), strict=False))

    def look(self, answers: Callable[[NodeId], float | None]) -> tuple[frozenset[NodeId], frozenset[NodeId]]:
        """Choose by how the relays answer (seconds, or None). Returns which do now and did not, and the reverse."""
        before = self._answering
        found = {relay.node: answers(relay.node) for relay in self.relays.usable}
        self._answering = {node: rtt for node, rtt in found.items() if rtt is not None}
        if self._answering != before:
            self._choice.update(self._answering)
        now = self._answering.keys()
        return frozenset(now - before.keys()), frozenset(before.keys() - now)

    def views(self) -> tuple[RelayView, ...]:
        """All usable relays, the chosen ones first."""
        order = {node: place for place, node in enumerate(self._choice.chosen)}
        found = sorted(
            self.relays.usable, key=lambda relay: (order.get(relay.node, len(order)), relay.region, relay.node)
        )
        return tuple(
            RelayView(relay.node, relay.region, self._answering.get(relay.node), relay.node in order) for relay in found
        )
