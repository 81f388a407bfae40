"""Agents that only a relay brings together: what they find and say, and that no packet of theirs passes a process."""

import json
from collections.abc import Iterator

import pytest

from tests.kernel.relayed_agents import RelayedAgents, passed_on, relayed_agents, wakeups
from tests.lab import eventually

pytestmark = pytest.mark.timeout(300)  # a controller and three daemons start on the guest's one CPU
MEGABYTES = 20


@pytest.fixture(scope="module")
def agents() -> Iterator[RelayedAgents]:
    with relayed_agents() as running:
        yield running


def test_agents_behind_symmetric_nats_find_the_relay_that_the_policy_names_and_show_it(agents: RelayedAgents) -> None:
    agents.reach()
    left = agents.left
    eventually(lambda: "by way of relay relay" in left.run("ping", "right", "-c", "1", check=False), 60)
    peers = json.loads(left.run("paths", "--json"))["peers"]
    (paths,) = (peer["paths"] for peer in peers if peer["name"] == "right")
    assert {path["relay"] for path in paths if path["chosen"]} == {"relay"}
    (seen,) = json.loads(left.run("netcheck", "--json"))["relays"]
    assert (seen["name"], seen["region"], seen["chosen"]) == ("relay", "eu", True)
    assert "by relay relay" in left.run("paths")
    assert "relay (eu) answers" in left.run("netcheck")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rihgt", "rihgt is nobody that this host may talk to: did you mean 'right'?"),
        ("192.0.2.200", "192.0.2.200 is nobody that this host may talk to: look at `agentd peers`"),
        ("left", "left is this host itself"),
    ],
)
def test_a_ping_to_a_wrong_name_says_what_is_wrong_with_it(agents: RelayedAgents, name: str, said: str) -> None:
    assert said in agents.left.complaint("ping", name)


def test_the_controller_tells_who_uses_the_relay_and_what_it_passed_on(agents: RelayedAgents) -> None:
    agents.reach()
    wardmesh = agents.controller.wardmesh

    def told() -> bool:
        found = json.loads(wardmesh("relay", "show", "relay", "--json"))
        named = {(pair["source"], pair["destination"]) for pair in found["pairs"] if pair["bytes"]}
        assert named == {("left", "right"), ("right", "left")}, found
        assert [user["name"] for user in found["users"]] == ["left", "right"], found
        return True

    eventually(told, 90, what="what the relay counted, and what both hosts say of it", interval=1)
    assert "megabytes a second" in wardmesh("relay", "show", "relay")
    (seen,) = json.loads(wardmesh("path", "netcheck", "--node", "left", "--json"))
    assert seen["netcheck"]["nat"] == "endpoint-dependent"
    assert {each["kind"] for each in seen["netcheck"]["candidates"]} == {"host", "nat", "relay"}
    assert "endpoint-dependent" in wardmesh("path", "netcheck")


def test_what_is_relayed_wakes_no_process_on_either_host_or_the_relay(agents: RelayedAgents) -> None:
    agents.reach()
    before, packets = {name: wakeups(agent) for name, agent in agents.all.items()}, passed_on(agents.relay)
    agents.send("-n", f"{MEGABYTES}M")
    packets = passed_on(agents.relay) - packets
    assert packets > MEGABYTES * 2**20 / 1500
    # The daemons have work of their own, once a second or so. A process in the way is woken for every few packets.
    woken = {name: wakeups(agent) - before[name] for name, agent in agents.all.items()}
    assert all(times < packets / 50 for times in woken.values()), (woken, packets)
