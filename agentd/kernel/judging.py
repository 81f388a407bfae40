"""May this flow pass this kernel, by the tables that are in it now? Pure, but for the look-ups it is given.

Judged are the first packet and the answer to it, by our own table and by everybody else's: both must let both pass.
"""

from dataclasses import dataclass
from typing import Final

from agentd.model import LinkSettings
from controller.wire.asking import Judged
from controller.wire.netmap import Netmap
from controller.wire.rules import Flow

from .conditions import Answer
from .hiding import other_ends
from .listing import ListedChain, Listing
from .probes import Probe, of_flow
from .ruleset import identifier
from .verdicts import Lookup, outcomes

__all__ = ["Judge"]

_GRANT: Final = "grant/"


class _RefusedError(Exception):
    """Our own table does not accept a packet; the message says which chain."""


@dataclass(frozen=True, slots=True)
class Judge:
    """The tables of one moment. `netmap` gives grants their names and this host its addresses."""

    listing: Listing
    lookup: Lookup
    link: LinkSettings
    netmap: Netmap
    now: float

    def judge(self, flow: Flow) -> Judged:
        """What the kernel does with this flow."""
        addresses = self.netmap.node.addresses
        own = flow.local or next((one for one in addresses if (":" in one) == (":" in flow.peer)), None)
        if own is None:
            return Judged(passes=False, why=f"this host has no address of the family of {flow.peer}")
        if not any(self._is_ours(chain) for chain in self.listing.chains.values()):
            return Judged(passes=False, why=f"table inet {self.link.table} is not in the kernel")
        packets = list(of_flow(flow, own, self.link, self.now))
        try:
            chains = [self._accepting(probe) for probe in packets]
        except _RefusedError as error:
            return Judged(passes=False, why=str(error))
        return self._by_others(packets, self._grant_of(chains[0]))

    def _by_others(self, packets: list[Probe], grant: str | None) -> Judged:
        ends = [end for probe in packets for end in other_ends(self.listing, self.lookup, probe, self.link.table)]
        if not ends:
            return Judged(passes=True, grant=grant)
        certain = [outcome for _, outcome, is_certain in ends if is_certain]
        culprits = certain or [outcome for _, outcome, _ in ends]
        places = ", ".join(dict.fromkeys(str(outcome.place) for outcome in culprits))
        if certain:
            return Judged(passes=False, grant=grant, why=f"refused by {places}"[:1000])
        return Judged(passes=None, grant=grant, why=f"perhaps refused by {places}, which cannot be read"[:1000])

    def _accepting(self, probe: Probe) -> str:
        """The chain of a grant in which our own table accepts the packet, "" without one. Raises _RefusedError."""
        found = ""
        for hook in probe.hooks:
            for chain in filter(self._is_ours, self.listing.base_chains(hook)):
                for outcome in outcomes(self.listing, chain, probe.packet, self.lookup):
                    if outcome.verdict != "accept":
                        raise _RefusedError(f"{outcome.place} refuses {probe.traffic}")
                    if outcome.sure is not Answer.YES:
                        raise _RefusedError(f"{outcome.place} holds what agentd did not write and cannot read")
                    if outcome.place.chain.startswith(_GRANT):
                        found = outcome.place.chain
        return found

    def _grant_of(self, chain: str) -> str | None:
        """The name that people gave to the grant of a chain, which may end in the time when it ends."""
        written = "/".join(chain.split("/")[:2]).removeprefix(_GRANT)
        names = (rule.grant for rule in self.netmap.rules.values())
        return next((name for name in names if identifier(name) == written), None)

    def _is_ours(self, chain: ListedChain) -> bool:
        return chain.name.family == "inet" and chain.name.table == self.link.table
