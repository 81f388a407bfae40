"""A pytest plugin that takes one kind of rule out of every table: `WARDMESH_MUTANT=KIND pytest -p tests.kernel.mutant`.

A kind is a chain and a rule with what differs between grants, peers and ports left out: dropping one rule of a base
chain, or the same rule in the chains of all profiles.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest

from agentd.kernel import ruleset as tables
from agentd.model import LinkSettings, Ruleset
from controller.wire.netmap import Netmap

__all__ = ["kind", "kinds", "without"]

_PER_NAME: Final = {"from", "to", "grant"}  # chains of which there is one for each profile or grant
_PER_RELAYED: Final = "relay/from/"  # and how the names begin of those for hosts that a relay passes on for


def kind(chain: str, rule: str) -> str:
    """What stays the same when names, ports and times change. Single ports and ranges are one rule in meaning."""
    chain, at, _service = chain.partition("_at_")
    first = chain.partition("/")[0]
    text = re.sub(r"meta l4proto \. th (sport|dport)|(?:tcp|udp) (sport|dport)", r"ports \1\2", rule)
    text = re.sub(r"@(in|out|from|to)[^\s]*", r"@\1", text)
    text = re.sub(r"grant/[^\s\"]+", "grant", re.sub(r"time < \d+", "time < T", text))
    text = re.sub(r"relay\.to/\w+", "relay.to", re.sub(r"\d+ mbytes", "N mbytes", text))
    if chain.startswith(_PER_RELAYED):
        return f"relay/from: {text}"
    return f"{first if first in _PER_NAME else chain}{' of a service' if at else ''}: {text}"


def kinds(ruleset: Ruleset) -> list[str]:
    """Every kind of rule in a table, each once."""
    return sorted({kind(name, rule) for name, chain in ruleset.chains.items() for rule in chain.rules})


def without(ruleset: Ruleset, dropped: str) -> Ruleset:
    """The table without the rules of one kind. Of a grant that ends, only the end is dropped: else nothing is left."""
    chains = {
        name: replace(chain, rules=tuple(_kept(name, chain.rules, dropped))) for name, chain in ruleset.chains.items()
    }
    return replace(ruleset, chains=chains)


def _kept(chain: str, rules: tuple[str, ...], dropped: str) -> Iterator[str]:
    for rule in rules:
        if kind(chain, rule) != dropped:
            yield rule
        elif "meta time <" in rule:
            yield re.sub(r"meta time < \d+ ", "", rule)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    """Put the mutant in the place of the compiler before anything imports it, conftest.py first of all."""
    dropped, compile_ruleset = os.environ["WARDMESH_MUTANT"], tables.compile_ruleset

    def compile_mutant(netmap: Netmap, link: LinkSettings, now: float) -> Ruleset:
        return without(compile_ruleset(netmap, link, now), dropped)

    tables.compile_ruleset = compile_mutant
