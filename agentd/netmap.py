"""The map on this host: kept on disk with a checksum, and the pure questions that are asked of it.

It only ever changes by `controller.wire.netmap.fold`. Knows nothing of keys, kernels or connections.
"""

import hashlib
import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from controller.wire.base import Address
from controller.wire.netmap import Netmap, Peer, Rule, SelfNode

from .errors import AgentError
from .state import NETMAP, StateDir

__all__ = [
    "DamagedMapError",
    "SavedMap",
    "decode",
    "denied",
    "encode",
    "live_rules",
    "load",
    "next_expiry",
    "save",
    "whois",
]

# The map follows the header byte for byte as it was summed; the whole is still one JSON document.
_FILE: Final = re.compile(
    rb'\{"format":(?P<format>\d+),"resume":(?P<resume>true|false),"sha256":"(?P<sha256>[0-9a-f]{64})","netmap":'
    rb"(?P<netmap>.*)\}\n",
    re.DOTALL,
)
_FORMAT: Final = 1


class DamagedMapError(AgentError):
    """The saved map is not what was written. It must not be applied."""


@dataclass(frozen=True, slots=True)
class SavedMap:
    """A map and whether the controller may continue it with deltas (not after this host emptied it by itself)."""

    netmap: Netmap
    resume: bool = True


def encode(saved: SavedMap) -> bytes:
    """The file's content."""
    body = saved.netmap.model_dump_json().encode()
    digest = hashlib.sha256(body).hexdigest()
    resume = "true" if saved.resume else "false"
    return f'{{"format":{_FORMAT},"resume":{resume},"sha256":"{digest}","netmap":'.encode() + body + b"}\n"


def decode(content: bytes) -> SavedMap:
    """Read what `encode` wrote. Raises DamagedMapError."""
    match = _FILE.fullmatch(content)
    if match is None:
        raise DamagedMapError("it is cut short or not a saved map")
    if int(match["format"]) != _FORMAT:
        raise DamagedMapError(f"its format is {int(match['format'])}, this agentd reads {_FORMAT}")
    body = match["netmap"]
    if hashlib.sha256(body).hexdigest() != match["sha256"].decode():
        raise DamagedMapError("its checksum does not match")
    try:
        netmap = Netmap.model_validate_json(body)
    except ValidationError as error:
        raise DamagedMapError(
            f"it is from a version that this agentd cannot read ({error.error_count()} errors)"
        ) from error
    return SavedMap(netmap, resume=match["resume"] == b"true")


def save(state: StateDir, saved: SavedMap) -> None:
    """Write the map to the state directory. Raises StateError."""
    state.write(NETMAP, encode(saved))


def load(state: StateDir) -> tuple[SavedMap | None, str | None]:
    """The saved map, or None; and, when a damaged one was set aside, a sentence about it. Raises StateError."""
    content = state.read(NETMAP)
    if content is None:
        return None, None
    try:
        return decode(content), None
    except DamagedMapError as error:
        aside = state.set_aside(NETMAP)
        return None, (
            f"the saved map was damaged ({error}) and is now {aside}: "
            "no peer is reachable until the controller sends a new one"
        )


def denied(netmap: Netmap) -> Netmap:
    """The same host without peers, rules and services: default deny, for a node that was removed or disabled."""
    node = netmap.node.model_copy(update={"held": ()})
    return netmap.model_copy(
        update={"node": node} | {key: {} for key in ("peers", "sets", "rules", "services", "calls", "names")}
    )


def live_rules(netmap: Netmap, now: float) -> list[Rule]:
    """The rules that have not ended by `now`: a map keeps those that have until the controller sends the next one."""
    return [rule for rule in netmap.rules.values() if rule.expires is None or now < rule.expires]


def next_expiry(netmap: Netmap, now: float) -> int | None:
    """When the next rule ends (seconds since the epoch), None when none does."""
    return min(
        (rule.expires for rule in netmap.rules.values() if rule.expires is not None and now < rule.expires),
        default=None,
    )


def whois(netmap: Netmap, address: Address) -> Peer | SelfNode | None:
    """Who has this mesh address, in this map, or holds it for a service. None when nobody that this host knows of."""
    wanted = str(ipaddress.ip_address(address))
    nodes: tuple[Peer | SelfNode, ...] = (netmap.node, *netmap.peers.values())
    return next((node for node in nodes if wanted in node.addresses or wanted in node.held), None)
