"""What is said of other programs' nftables tables that hide the mesh. Pure; finding them is `kernel.hiding`'s part."""

from typing import Final

from .local_api import HidingChain
from .model import Hiding

__all__ = ["notice", "shown"]

_LISTED: Final = 3  # kinds of traffic that a notice names
_VERBS: Final = {
    ("drop", True): "drops",
    ("drop", False): "may drop",
    ("divert", True): "sends elsewhere",
    ("divert", False): "may send elsewhere",
}


def shown(found: Hiding) -> HidingChain:
    """The same for `agentd status --json`."""
    return HidingChain(
        family=found.family,
        table=found.table,
        chain=found.chain,
        hook=found.hook,
        effect="divert" if found.diverts else "drop",
        by_policy=found.by_policy,
        certain=found.certain,
        packets=found.packets,
        traffic=found.traffic,
    )


def notice(found: HidingChain) -> str:
    """Which table, what it does to which traffic, and the remedy, in a sentence."""
    policy = " (policy drop)" if found.by_policy else ""
    counted = f"; its rule has counted {found.packets} packets" if found.packets else ""
    verb = _VERBS[found.effect, found.certain]
    listed = ", ".join(found.traffic[:_LISTED])
    more = len(found.traffic) - _LISTED
    return (
        f"table {found.family} {found.table}, chain {found.chain}{policy} {verb} {listed}"
        f"{f' and {more} more' if more > 0 else ''}{counted}: accept it there, before what refuses it"
    )
