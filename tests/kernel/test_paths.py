"""Kernel WireGuard behind NATs and firewalls finds its peers directly, as far as theory allows."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.finders import KINDS, finders, in_theory, place, two_of_each
from tests.lab import Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

README = Path(__file__).parents[1] / "README.md"


def written(direct: Callable[[str, str], bool]) -> str:
    """The table of the README."""
    rows = [["", *KINDS.values()], ["---"] * (len(KINDS) + 1)]
    rows += [
        [name, *("direct" if direct(kind, other) else "relayed" for other in KINDS)] for kind, name in KINDS.items()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


@pytest.mark.timeout(300)  # 21 hosts and 16 routers on the guest's one CPU
def test_paths_are_direct_between_all_kinds_of_hosts_where_theory_allows_it_and_relayed_elsewhere() -> None:
    kinds = list(KINDS)
    with Lab() as lab, two_of_each(lab, kinds, neighbour_of="port") as (left, right, near):
        nats = {kind: (left[kind].prober.nat, right[kind].prober.nat) for kind in kinds}
        assert {kind for kind in kinds if set(nats[kind]) == {"none"}} == {"public", "ipv6", "firewall"}
        assert {kind for kind in kinds if set(nats[kind]) == {"endpoint-dependent"}} == {"symmetric"}
        pairs = list(itertools.combinations_with_replacement(kinds, 2))
        for kind in kinds:
            others = [right[other] for one, other in pairs if one == kind]
            left[kind].meet(*others, *([near] if kind == "port" else []))
            right[kind].meet(*(left[one] for one, other in pairs if other == kind))
        near.meet(left["port"])
        missing = set(pairs)

        def found() -> bool:
            expected = {(a, b): {"lan", "direct"} if in_theory(a, b) else {"relay"} for a, b in missing}
            missing.difference_update(
                [pair for pair in missing if left[pair[0]].kind(right[pair[1]]) in expected[pair]]
            )
            return not missing

        eventually(found, 60, interval=0.5, what=f"a path for each of {missing}")
        silent = set(pairs)

        def reached() -> bool:
            silent.difference_update([(a, b) for a, b in silent if left[a].reaches(right[b])])
            return not silent

        eventually(reached, 60, what=f"an answer through the tunnel for each of {silent}")
        assert left["port"].kind(near) == near.kind(left["port"]) == "lan"
        direct = {frozenset(pair) for pair in pairs if left[pair[0]].works_directly(right[pair[1]])}
    table = written(lambda one, other: frozenset({one, other}) in direct)
    assert table == written(in_theory)
    assert table in README.read_text(), f"tests/README.md should say:\n{table}"


def test_two_hosts_that_begin_with_each_other_at_the_same_time_talk_before_wireguard_would_begin_again() -> None:
    with finders("public", "public") as (one, other):
        for finder in (one, other):
            finder.host.impair(delay_ms=50)  # each has begun long before it hears of the other
        one.meet(other)
        other.meet(one)
        # REKEY_TIMEOUT is 5 s.
        eventually(lambda: one.has_shaken_hands(other), 4, what="a handshake")
        assert one.reaches(other)


@pytest.mark.host_kernel
def test_paths_of_agents_behind_nats_are_found_by_way_of_the_controller_and_shown() -> None:
    with Lab() as lab:
        internet = lab.switch("internet")
        controller = Controller.start(lab.host("controller", internet))
        controller.put_policy(ALLOW_ALL)
        agents = [
            Agent.join(place(lab, internet, "port", name), controller.join_string(), backend="userspace")
            for name in ("left", "right")
        ]
        left, right = agents

        def shown(command: str) -> dict[str, Any]:
            answer: dict[str, Any] = json.loads(left.run(command, "--json"))
            return answer

        eventually(lambda: shown("netcheck")["nat"] == "endpoint-independent", 30, what="answers of STUN")
        seen = shown("netcheck")["reflexive"]
        assert seen
        eventually(lambda: set(seen) <= set(controller.node("left").endpoints), 30, what="the controller to know")

        def chosen() -> list[dict[str, Any]]:
            (peer,) = shown("paths")["peers"]
            return [path for path in peer["paths"] if path["chosen"] and path["state"] == "working"]

        eventually(chosen, 60, what="a path that works")
        assert chosen()[0]["rtt"] > 0
        address = right.status()["addresses"][0]
        eventually(
            lambda: left.host.run("ping", "-c1", "-W", "2", address, check=False).returncode == 0, 30, what="a ping"
        )
        assert "right" in left.run("paths")
        assert "endpoint-independent" in left.run("netcheck")
        summary = json.loads(left.run("ping", "right", "--count", "3", "--interval", "0.1", "--json"))
        assert (summary["name"], summary["sent"]) == ("right", 3)
        assert summary["pongs"][0]["endpoint"] == chosen()[0]["endpoint"]
        assert summary["received"] > 0
        assert "right answers directly from" in left.run("ping", address, "-c", "1")
        (shown_paths,) = shown("paths")["peers"]
        assert shown_paths["mtu"] == 1420

        def listed() -> list[dict[str, Any]]:
            paths = json.loads(controller.wardmesh("path", "list", "--node", "left", "--peer", "right", "--json"))
            return [path for path in paths if path["kind"] == "direct"]

        eventually(listed, 60, interval=0.5, what="the controller to know the path")
        assert (listed()[0]["endpoint"], listed()[0]["mtu"]) == (chosen()[0]["endpoint"], 1420)
        assert "direct" in controller.wardmesh("path", "list")
        # It is about the path, not about what policy lets pass on it.
        controller.put_policy("grants: [{from: ['*'], to: ['*'], ip: ['tcp:9']}]")
        assert "answered" in left.run("ping", "right", "-c", "1")
        for other in ("left", "nobody"):
            assert left.run("ping", other, "-c", "1", check=False) == ""
