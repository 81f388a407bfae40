"""Kernel WireGuard behind NATs and firewalls finds its peers directly, as far as theory allows."""

import json
from typing import Any

import pytest

from tests.kernel.finders import finders, place
from tests.lab import Lab, eventually
from tests.lab.mesh import ALLOW_ALL, Agent, Controller

# By which packets that nobody inside asked for are let in (RFC 4787 section 5), and a host's own firewall.
KINDS = ("public", "independent", "address", "port", "firewall")


def test_paths_are_direct_between_all_kinds_of_nats_and_firewalls_that_map_alike() -> None:
    with finders(*KINDS, *KINDS) as hosts:
        left, right = hosts[: len(KINDS)], hosts[len(KINDS) :]
        natted = {host.host.name for host in hosts if host.prober.nat == "endpoint-independent"}
        assert natted == {host.host.name for host in hosts if host.host.name.startswith(("indep", "addr", "port"))}
        for one in left:
            one.meet(*right)
        for other in right:
            other.meet(*left)
        pairs = [(one, other) for one in left for other in right]
        missing = [(one, other) for one, other in pairs if not one.reaches(other)]
        eventually(
            lambda: all(one.reaches(other) for one, other in missing),
            40,
            what=f"{[(one.host.name, other.host.name) for one, other in missing]} to reach each other",
        )
        eventually(lambda: all(one.works_directly(other) for one, other in pairs), 30, what="a path for each pair")


def test_paths_from_behind_a_nat_that_maps_each_destination_anew_lead_to_whoever_lets_strangers_in() -> None:
    with finders("symmetric", "public", "independent", "address") as (one, *others):
        assert one.prober.nat == "endpoint-dependent"
        one.meet(*others)
        for other in others:
            other.meet(one)
        for other in others:
            eventually(lambda other=other: one.reaches(other), 40, what=f"{other.host.name} to be reached")


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
        # It is about the path, not about what policy lets pass on it.
        controller.put_policy("grants: [{from: ['*'], to: ['*'], ip: ['tcp:9']}]")
        assert "answered" in left.run("ping", "right", "-c", "1")
        for other in ("left", "nobody"):
            assert left.run("ping", other, "-c", "1", check=False) == ""
