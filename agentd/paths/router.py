"""What a router is asked for, by whichever protocol it speaks: one of its UDP ports, for a while. Pure."""

import ipaddress
from dataclasses import dataclass
from typing import Final

from controller.wire.base import Address, Endpoint, format_endpoint
from controller.wire.netcheck import MappingProtocol

__all__ = ["Epoch", "Granted", "RouterError", "granted"]

_SHORTEST: Final = 30.0  # seconds
_LONGEST: Final = 86400.0  # seconds; who believes in decades never asks again (RFC 6887 section 7.2)


class RouterError(ValueError):
    """The router refused, does not answer, or its answer is none; the message says which."""


@dataclass(frozen=True, slots=True)
class Granted:
    """What comes to `endpoint` of the router goes to this host's port. `again`: after how many seconds to ask again.

    `epoch`: the router's seconds since it began, if it tells them.
    """

    protocol: MappingProtocol
    endpoint: Endpoint
    again: float
    epoch: int | None = None


def granted(
    protocol: MappingProtocol, address: Address, port: int, lifetime: float, epoch: int | None = None
) -> Granted:
    """What a router says, checked; `lifetime` in seconds. Raises RouterError.

    A private address passes: the controller may be inside of the same private network. Whether anybody sees this host
    there is for STUN to say.
    """
    four = ipaddress.IPv4Address(address)
    if four.is_unspecified or four.is_loopback or four.is_multicast or four.is_link_local or four.is_reserved:
        raise RouterError(f"it has no address of its own outside (it says {four})")
    if not 0 < port < 65536:
        raise RouterError(f"it gave port {port}, which is none")
    if lifetime < _SHORTEST:
        raise RouterError(f"it gave a port for {lifetime:g} s, which is too short to be of use")
    return Granted(protocol, format_endpoint(str(four), port), min(lifetime, _LONGEST) / 2, epoch)


# RFC 6887 section 8.5: how far two clocks may drift apart in what was meant to be the same time.
_SLACK: Final = 2.0
_DRIFT: Final = 1 / 16


class Epoch:
    """Whether a router still knows what it gave, by the seconds that it counts since it began.

    RFC 6887 section 8.5.
    """

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None

    def forget(self) -> None:
        """The next answer is the first, of another router perhaps."""
        self._before = None

    def lost(self, epoch: int, now: float) -> bool:
        """True when `epoch`, heard at `now` (seconds of any clock that never jumps), cannot follow from the last."""
        before, self._before = self._before, (epoch, now)
        if before is None:
            return False
        theirs, ours = epoch - before[0], now - before[1]
        return theirs < -1 or ours + _SLACK < theirs * (1 - _DRIFT) or theirs + _SLACK < ours * (1 - _DRIFT)
