"""Which of several endpoints that work is to be used: by round trip time, and by what will go on working. Pure."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from controller.wire.base import Endpoint, split_endpoint

from .choose import Chooser

__all__ = ["Preference"]

# Seconds of round trip time that it is worth: on the same network nothing is in between that may fail or forget; IPv6
# has no NAT in between.
_NEAR: Final = 0.010
_IPV6: Final = 0.003
# How much better another must be than the one in use, in seconds and in parts of its time: no going to and fro.
_CLEARLY: Final = 0.002
_PARTS: Final = 0.8
# More than any path takes: a relay is for where nothing else works.
_RELAYED: Final = 10.0


class Preference:
    """For a host with these addresses.

    `through` says of an endpoint how far the relay is that it is behind: seconds, infinity for a relay that does not
    answer, None for an endpoint that is behind none.
    """

    def __init__(self, chooser: Chooser, through: Callable[[Endpoint], float | None] = lambda _endpoint: None) -> None:
        self._chooser = chooser
        self._through = through

    def first(self, endpoints: Sequence[Endpoint]) -> Endpoint | None:
        """Where to look for a peer before anything was checked: behind the nearest relay that answers, which is sure to
        work at once, or else where it looks best from the outside."""
        relayed = {endpoint: far for endpoint in endpoints if (far := self._through(endpoint)) is not None}
        nearest = min(relayed, key=lambda endpoint: (relayed[endpoint], endpoint), default=None)
        if nearest is not None and relayed[nearest] < math.inf:
            return nearest
        return self._chooser.choose([endpoint for endpoint in endpoints if endpoint not in relayed]) or nearest

    def is_relayed(self, endpoint: Endpoint) -> bool:
        """True for one behind a relay."""
        return self._through(endpoint) is not None

    def best(self, working: Mapping[Endpoint, float], incumbent: Endpoint | None) -> Endpoint:
        """The one to use of these with their round trip times, one at least; the incumbent unless one is better."""
        best = min(working, key=lambda endpoint: (self._cost(endpoint, working[endpoint]), endpoint))
        if incumbent is None or incumbent not in working:
            return best
        now, then = self._cost(incumbent, working[incumbent]), self._cost(best, working[best])
        clearly = then < now - _CLEARLY - max(now, 0.0) * (1 - _PARTS)
        return best if clearly else incumbent

    def _cost(self, endpoint: Endpoint, rtt: float) -> float:
        near = self._chooser.is_near(endpoint)
        six = ":" in split_endpoint(endpoint)[0]
        return rtt + (_RELAYED if self.is_relayed(endpoint) else -_NEAR if near else -_IPV6 if six else 0.0)
