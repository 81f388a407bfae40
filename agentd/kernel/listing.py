"""The tables that a kernel has, all of them, as nft lists them: parsed, and not understood. Pure.

`iptables-nft` writes matches that nft's JSON only names (`xt`); nft's own text has many of them in its words, so such a
rule carries its text, too.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from agentd.model import KernelError

__all__ = ["ChainName", "ListedChain", "ListedRule", "Listing", "needs_text", "parse_listing"]

Expression = Mapping[str, Any]

_TABLE: Final = re.compile(r"table (\S+) (\S+) \{")
_RULE: Final = re.compile(r"\s*(.*) # handle (\d+)$")


@dataclass(frozen=True, slots=True, order=True)
class ChainName:
    """Which chain of which table."""

    family: str
    table: str
    chain: str

    def __str__(self) -> str:
        return f"table {self.family} {self.table}, chain {self.chain}"


@dataclass(frozen=True, slots=True)
class ListedRule:
    """A rule: its expressions as nft's JSON has them (libnftables-json(5)), and its text where that says more."""

    handle: int
    expressions: tuple[Expression, ...]
    text: str = ""


@dataclass(frozen=True, slots=True)
class ListedChain:
    """A chain; `hook`, `priority`, `type` and `policy` are those of a base chain. `hook` is "" for others."""

    name: ChainName
    hook: str = ""
    priority: int = 0
    type: str = ""
    policy: str = "accept"
    rules: list[ListedRule] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Listing:
    """All chains, and the key types of named sets and maps by (family, table, name)."""

    chains: Mapping[ChainName, ListedChain]
    sets: Mapping[tuple[str, str, str], tuple[str, ...]]

    def base_chains(self, hook: str) -> Iterator[ListedChain]:
        """Those of one hook, in the order in which a packet meets them."""
        found = (chain for chain in self.chains.values() if chain.hook == hook)
        yield from sorted(found, key=lambda chain: (chain.priority, chain.name))


def needs_text(listed: str) -> bool:
    """True when the JSON names what only the text tells."""
    return '"xt"' in listed


def parse_listing(listed: str, text: str = "") -> Listing:
    """From `nft -j list ruleset` and, where `needs_text`, `nft -a list ruleset`. Raises KernelError."""
    try:
        items = json.loads(listed or '{"nftables": []}')["nftables"]
    except (ValueError, KeyError, TypeError) as error:
        raise KernelError(f"nft listed a ruleset that cannot be read: {error}") from error
    texts = dict(_texts(text))
    chains: dict[ChainName, ListedChain] = {}
    sets: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for item in items:
        if (chain := item.get("chain")) is not None:
            name = ChainName(chain["family"], chain["table"], chain["name"])
            chains[name] = _chain(name, chain)
        elif (rule := item.get("rule")) is not None:
            owner = chains[ChainName(rule["family"], rule["table"], rule["chain"])]
            key = (rule["family"], rule["table"], rule["handle"])
            owner.rules.append(ListedRule(rule["handle"], tuple(rule["expr"]), texts.get(key, "")))
        elif (named := item.get("set") or item.get("map")) is not None:
            sets[named["family"], named["table"], named["name"]] = _type(named["type"])
    return Listing(chains, sets)


def _chain(name: ChainName, chain: Mapping[str, Any]) -> ListedChain:
    if "hook" not in chain:
        return ListedChain(name)
    return ListedChain(name, chain["hook"], chain.get("prio", 0), chain.get("type", ""), chain.get("policy", "accept"))


def _type(found: Any) -> tuple[str, ...]:
    """The types of a key's parts; () for a key that is described in another way (`typeof`)."""
    if isinstance(found, str):
        return (found,)
    return tuple(found) if isinstance(found, list) and all(isinstance(part, str) for part in found) else ()


def _texts(text: str) -> Iterator[tuple[tuple[str, str, int], str]]:
    """Each rule's line by (family, table, handle); handles are a table's own."""
    family = table = ""
    for line in text.splitlines():
        if (opened := _TABLE.match(line)) is not None:
            family, table = opened.groups()
        elif (rule := _RULE.match(line)) is not None and not rule[1].endswith("{"):
            yield (family, table, int(rule[2])), rule[1]
