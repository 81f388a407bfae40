"""Which tables of others drop or divert what the mesh needs, by the listing of all tables. Pure.

Claimed for certain only where every way through the other table ends so; where a condition cannot be read (an extension
of iptables, a queue), it is said that it may. What some packets pass and others do not (by source, by rate, by outside
link) is the administrator's business, and not told. Not seen: iptables-legacy, ingress hooks, bridges, XDP and tc.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from agentd.model import Hiding, LinkSettings
from controller.wire.netmap import Netmap

from .conditions import Answer
from .listing import ChainName, ListedChain, Listing
from .probes import Probe, probes
from .verdicts import Lookup, Outcome, outcomes

__all__ = ["hiding", "worst_of"]

_FAMILIES: Final = {False: {"ip", "inet"}, True: {"ip6", "inet"}}


def hiding(
    listing: Listing, lookup: Lookup, netmap: Netmap | None, link: LinkSettings, now: float
) -> tuple[Hiding, ...]:
    """One for each chain that does it, with all the traffic that it does it to."""
    found: dict[tuple[ChainName, ChainName, bool, bool], tuple[Outcome, str, list[str]]] = {}
    for probe in probes(netmap, link, now):
        for base, outcome, certain in other_ends(listing, lookup, probe, link.table):
            key = (base.name, outcome.place, certain, outcome.verdict == "divert")
            traffic = found.setdefault(key, (outcome, base.hook, []))[2]
            if probe.traffic not in traffic:
                traffic.append(probe.traffic)
    return tuple(
        Hiding(
            family=outcome.place.family,
            table=outcome.place.table,
            chain=outcome.place.chain,
            hook=hook,
            by_policy=outcome.by_policy,
            diverts=diverts,
            certain=certain,
            packets=outcome.packets,
            traffic=tuple(traffic),
        )
        for (_, _, certain, diverts), (outcome, hook, traffic) in found.items()
    )


def other_ends(
    listing: Listing, lookup: Lookup, probe: Probe, own_table: str
) -> Iterable[tuple[ListedChain, Outcome, bool]]:
    """The base chains of others that do not let the packet go on, where, and whether that is certain."""
    for hook in probe.hooks:
        for base in listing.base_chains(hook):
            name = base.name
            ours = name.family == "inet" and name.table == own_table
            # Address translation sees only the first packet of a flow.
            passed_by = probe.is_answer and base.type == "nat"
            if ours or passed_by or name.family not in _FAMILIES[probe.packet.six]:
                continue
            ended = outcomes(listing, base, probe.packet, lookup)
            if (worst := worst_of(ended)) is not None:
                yield base, worst, all(outcome.verdict != "accept" for outcome in ended)


def worst_of(ended: Sequence[Outcome]) -> Outcome | None:
    """The end that keeps the packet from going on, None where it goes on, or where that is left open."""
    bad = [outcome for outcome in ended if outcome.verdict != "accept"]
    good = min((outcome.sure for outcome in ended if outcome.verdict == "accept"), default=None)
    if not bad or (good is not None and good is not Answer.UNREAD):
        return None
    return min(bad, key=lambda outcome: outcome.sure)
