"""Which of several endpoints that work is to be used: by round trip time, and by what will go on working. Pure."""

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


class Preference:
    """For a host with these addresses. `first` is where the kernel looks for a peer before anything was checked."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser

    @property
    def first(self) -> Callable[[Sequence[Endpoint]], Endpoint | None]:
        """The best of a peer's endpoints by their looks."""
        return self._chooser.choose

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
        return rtt - (_NEAR if near else _IPV6 if six else 0.0)
