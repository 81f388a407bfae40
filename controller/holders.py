"""Who holds a service's addresses: when its holder is given up, and which node gets them then. Pure.

A node's condition, from its stream and its heartbeats (`Serving`, every SERVING_INTERVAL seconds):

    stream    last heartbeat     what it says               condition
    open      within SILENCE     can answer                 healthy
    open      within SILENCE     cannot, for < FAILING      ailing
    open      within SILENCE     cannot, for longer         lost
    open      none for SILENCE   -                          lost
    open      none yet           -                          ailing, then lost after SILENCE
    closed    -                  -                          ailing, then lost after ABSENCE, or RECONNECT from the
                                                            controller's own start, when it was not seen open yet

What becomes of the addresses:

    holder's condition         candidates                   decision
    healthy or ailing          any                          stays
    lost                       none is healthy              stays
    lost                       some are healthy             the preferred healthy one
    there is none, or it may   some are healthy             the preferred healthy one
    not serve any more         none, but some are online    the preferred one that is online
                               nobody is online             nobody

An address without a healthy holder goes to whoever is online, so that callers get a gateway's error and not silence.
The preferred one follows from the names of service and node, so that many services spread over the nodes by themselves.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from controller.wire.mcp import ServiceName
from controller.wire.netmap import NodeId
from controller.wire.stream import SERVING_INTERVAL

__all__ = [
    "ABSENCE",
    "FAILING",
    "RECONNECT",
    "SETTLE",
    "SILENCE",
    "Condition",
    "Vitals",
    "condition",
    "decide",
    "reason",
]

SILENCE: Final = 3 * SERVING_INTERVAL  # three heartbeats missed
FAILING: Final = 3.0  # seconds: a server that is restarted is back by then
ABSENCE: Final = 2.0  # seconds: an agentd that is restarted is back by then
RECONNECT: Final = 20.0  # seconds that hosts get to come back after the controller was away
SETTLE: Final = 15.0  # seconds in which a holder that an administrator chose is not judged

Condition = Literal["healthy", "ailing", "lost"]


@dataclass(frozen=True, slots=True)
class Vitals:
    """What was seen of one node, and heard from it about one service. Times are in seconds of one monotonic clock.

    `changed`: when its stream opened or closed; `changed` of a node that was never seen is the controller's start, and
    `seen` False. `heard`: its last heartbeat; `error`: why it cannot answer, since `failing`.
    """

    online: bool
    changed: float
    seen: bool = True
    heard: float | None = None
    error: str | None = None
    failing: float | None = None


def condition(vitals: Vitals, now: float) -> Condition:
    """The table above, row by row."""
    if not vitals.online:
        return "lost" if now - vitals.changed >= (ABSENCE if vitals.seen else RECONNECT) else "ailing"
    if now - max(vitals.heard or vitals.changed, vitals.changed) >= SILENCE:
        return "lost"
    if vitals.heard is None or vitals.heard < vitals.changed:
        return "ailing"
    if vitals.failing is None:
        return "healthy"
    return "lost" if now - vitals.failing >= FAILING else "ailing"


def reason(vitals: Vitals, now: float) -> str:
    """Why a node is not healthy, for people."""
    if not vitals.online:
        if not vitals.seen:
            return "it has not connected since the controller started"
        return f"it has been offline for {now - vitals.changed:.0f} s"
    if vitals.heard is None or vitals.heard < vitals.changed:
        return f"it has said nothing of this service for {now - vitals.changed:.0f} s"
    if now - vitals.heard >= SILENCE:
        return f"nothing was heard of it for {now - vitals.heard:.0f} s"
    return vitals.error or "it can answer"


def decide(
    service: ServiceName, holder: NodeId | None, candidates: Mapping[NodeId, Vitals], now: float
) -> NodeId | None:
    """Who should hold the addresses of `service`; `holder` does now. `candidates`: the nodes that may serve it."""
    conditions = {node_id: condition(vitals, now) for node_id, vitals in candidates.items()}
    if holder is not None and conditions.get(holder, "gone") in ("healthy", "ailing"):
        return holder
    healthy = [node_id for node_id, found in conditions.items() if found == "healthy"]
    if healthy:
        return _preferred(service, healthy)
    if holder in candidates:
        return holder
    online = [node_id for node_id, vitals in candidates.items() if vitals.online]
    return _preferred(service, online) if online else None


def _preferred(service: ServiceName, among: list[NodeId]) -> NodeId:
    """The highest of a hash of both names (rendezvous hashing): a node that comes or goes moves only what it must."""
    return max(among, key=lambda node_id: hashlib.sha256(f"{service} {node_id}".encode()).digest())
