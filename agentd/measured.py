"""What monitoring is told of this host: numbers only, bounded whatever the size of the mesh. Knows no format.

Peers are counted by the age of their last handshake and never named: who is in the mesh is not for every scraper.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .answers import Parts, peers_now
from .model import Counted, KernelError
from .session import Phase

__all__ = ["AGES", "Measured", "age", "measure"]

# Seconds. 180 after a handshake its keys are refused (REJECT_AFTER_TIME in WireGuard's paper, section 6.1).
_AGES: Final = {"3m": 180.0, "1h": 3600.0, "1d": 86400.0}
AGES: Final = (*_AGES, "older", "never")


@dataclass(frozen=True, slots=True)
class Measured:
    """The host at one moment. `peers`, by age of handshake, and `counted` are None when the kernel does not tell."""

    desired: int
    in_force: int
    applies: Mapping[str, int]  # by outcome: done, refused
    drifts: int
    is_saved: bool
    is_connected: bool
    certificate_until: float | None  # seconds since the epoch
    unshipped: int  # records of calls in the gateway's spools, as they said last
    peers: Mapping[str, int] | None
    counted: Counted | None


async def measure(parts: Parts) -> Measured:
    """Look at the daemon and at its kernel. Raises StateError when a state file is damaged."""
    applier = parts.applier
    certificate = parts.state.certificate()
    try:
        ages = Counter(age(peer.handshake_age) for peer in await peers_now(parts))
        peers, counted = {name: ages[name] for name in AGES}, await parts.kernel.count()
    except KernelError:
        peers, counted = None, None
    return Measured(
        desired=applier.desired.netmap.revision if applier.desired else 0,
        in_force=applier.in_force.revision if applier.in_force else 0,
        applies={"done": applier.done, "refused": applier.refused},
        drifts=applier.drifts,
        is_saved=applier.save_error is None,
        is_connected=parts.control.standing.phase is Phase.STREAMING,
        certificate_until=certificate.not_valid_after_utc.timestamp() if certificate else None,
        unshipped=parts.records.unshipped,
        peers=peers,
        counted=counted,
    )


def age(seconds: float | None) -> str:
    """Which of AGES a handshake has that was so many seconds ago."""
    if seconds is None:
        return "never"
    return next((name for name, limit in _AGES.items() if seconds < limit), "older")
