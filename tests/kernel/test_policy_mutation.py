"""Every rule of the table is needed: without any one kind of them, a test of the firewall fails.

Each mutant takes seconds, so a regular run tries a few, another few each time; WARDMESH_MUTANTS=all tries all of them,
any other text those with it in their names, and WARDMESH_SEED repeats a choice.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from agentd.kernel.ruleset import compile_ruleset
from agentd.model import LinkSettings
from controller.wire.netmap import AddressSet, Direction, Protocol
from tests.kernel.maps import Member, allow, netmap
from tests.kernel.mutant import kinds, without
from tests.kernel.test_firewall_relays import host_map, relay_map

pytestmark = [pytest.mark.host_kernel, pytest.mark.fresh_input]

REGULAR: Final = 2
FILES: Final = (
    *("test_firewall_packets.py", "test_firewall.py", "test_firewall_services.py", "test_firewall_relays.py"),
    "test_paths_port.py",
)
FLOWS: Final[tuple[tuple[Protocol, tuple[int | tuple[int, int], ...]], ...]] = (
    ("tcp", (80, (90, 99))),
    ("udp", (53, (60, 69))),
    ("icmp", ()),
)
HERE: Final = Path(__file__).parent


def every_kind() -> list[str]:
    """The kinds of rules of tables that have all: single ports, ranges, ICMP, a grant that ends, a service; those
    of a relay, and of a host behind one."""
    directions: tuple[Direction, ...] = ("in", "out")
    rules = [
        allow(direction, protocol, *ports, expires=expires)
        for direction in directions
        for protocol, ports in FLOWS
        for expires in (None, int(time.time()) + 3600)
    ]
    rules.append(allow("in", "tcp", 7, grant="ends", expires=int(time.time()) + 3600))
    rules += [allow("in", protocol, local=["svc:x"]) for protocol in ("tcp", "udp", "icmp")]
    wanted = netmap(Member(1), Member(2), rules=rules)
    service = AddressSet(name="svc:x", addresses=frozenset({"100.64.50.1", "fd77:7761:7264::50:1"}))
    wanted = wanted.model_copy(update={"sets": wanted.sets | {"svc:x": service}})
    maps = (wanted, relay_map(), host_map())
    tables = [compile_ruleset(one, LinkSettings(probe_port=51821), time.time()) for one in maps]
    return sorted({kind for table in tables for kind in kinds(table)})


def chosen() -> list[str]:
    found = every_kind()
    if (wanted := os.environ.get("WARDMESH_MUTANTS")) is not None:
        return [one for one in found if wanted == "all" or wanted in one]
    seed = int(os.environ.get("WARDMESH_SEED", random.randrange(1 << 32)))
    print(f"WARDMESH_SEED={seed}")
    return random.Random(seed).sample(found, REGULAR)


@pytest.mark.timeout(3600)
def test_a_table_without_any_one_rule_fails_a_test() -> None:
    survivors = [dropped for dropped in chosen() if survives(dropped)]
    assert not survivors


def survives(dropped: str) -> bool:
    """True when the firewall's tests do not notice."""
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "tests.kernel.mutant"]
        + [str(HERE / name) for name in FILES],
        env=os.environ | {"WARDMESH_MUTANT": dropped},
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    print(f"{'SURVIVED' if ended.returncode == 0 else 'caught'}: {dropped}")
    assert ended.returncode in {0, 1}, ended.stdout + ended.stderr
    return ended.returncode == 0


def test_there_are_as_many_mutants_as_there_are_kinds_of_rules() -> None:
    rules = [allow("in", "tcp", 80), allow("out", "icmp")]
    whole = compile_ruleset(netmap(Member(1), Member(2), rules=rules), LinkSettings(), 0)
    for dropped in kinds(whole):
        assert len(kinds(without(whole, dropped))) == len(kinds(whole)) - 1, dropped
