"""What compiled rules mean: may this flow pass this host?

The controller's `explain` and the tests of the host's nftables table both ask here, so that the answer and the
enforcement cannot disagree. Pure; the caller supplies the time.
"""

from .base import Address, Message
from .netmap import Direction, Netmap, Port, Protocol, Rule

__all__ = ["Flow", "allowing", "covers"]


class Flow(Message):
    """A flow as the host sees it: `in` when the peer opens it, `out` when the host does.

    `port` is the destination port of the flow's first packet; None for ICMP. `local`: which of this host's addresses
    the flow is for; None stands for one of its own, which are all alike.
    """

    direction: Direction
    peer: Address
    protocol: Protocol
    port: Port | None = None
    local: Address | None = None


def covers(rule: Rule, protocol: Protocol, port: int | None) -> bool:
    """True when the rule names this protocol and destination port."""
    if rule.protocol != protocol:
        return False
    if protocol == "icmp":
        return True
    return port is not None and any(low <= port <= high for low, high in rule.ports)


def allowing(netmap: Netmap, flow: Flow, now: float) -> list[Rule]:
    """The rules of `netmap` that allow `flow` at `now` (seconds since the epoch), by id. Empty means denied."""
    return sorted(
        (
            rule
            for rule in netmap.rules.values()
            if rule.direction == flow.direction
            and (rule.expires is None or now < rule.expires)
            and covers(rule, flow.protocol, flow.port)
            and _is_in(netmap, flow.peer, rule.peers)
            and _is_meant(netmap, flow.local, rule.local)
        ),
        key=lambda rule: rule.id,
    )


def _is_in(netmap: Netmap, address: Address, names: tuple[str, ...]) -> bool:
    return any(name in netmap.sets and address in netmap.sets[name].addresses for name in names)


def _is_meant(netmap: Netmap, local: Address | None, names: tuple[str, ...]) -> bool:
    """A rule with `local` is for addresses held for services, one without for the host's own."""
    if local is None or local in netmap.node.addresses:
        return not names
    return local in netmap.node.held and _is_in(netmap, local, names)
