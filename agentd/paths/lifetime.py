"""How long what is between a host and the internet remembers a flow, and how often to keep one alive by that. Pure."""

from collections.abc import Sequence
from typing import Final

__all__ = ["LIFETIMES", "USUAL_KEEPALIVE", "keepalive", "longest"]

# Seconds of silence that are tried. RFC 4787 section 4.3 asks NATs for 120 at least; Linux forgets after 120, and after
# 30 where only one side has spoken, and cheap routers do before.
LIFETIMES: Final = (15.0, 30.0, 45.0, 60.0, 90.0, 120.0, 180.0)
USUAL_KEEPALIVE: Final = 25.0  # seconds: good for all but the worst (WireGuard's own recommendation)
_SHORTEST: Final = 10.0
# The peer's firewall remembers no longer than most (120 s), and is not what was measured.
_LONGEST: Final = 100.0
_PART: Final = 0.8  # of what was remembered: a keepalive may be late, or lost


def longest(survived: Sequence[bool]) -> float:
    """The longest of `LIFETIMES` that this and all shorter ones were survived; 0 when not even the shortest was."""
    lived = 0.0
    for lifetime, alive in zip(LIFETIMES, survived, strict=True):
        if not alive:
            break
        lived = lifetime
    return lived


def keepalive(lived: float | None) -> float:
    """Seconds between two keepalives; `lived` is None when it could not be measured."""
    if lived is None:
        return USUAL_KEEPALIVE
    return min(max(_PART * lived, _SHORTEST), _LONGEST)
