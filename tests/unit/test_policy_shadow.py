"""Grants that give nothing of their own: warned about with the lines of those that do, and never wrongly."""

import json

import pytest
from hypothesis import given

from controller.policy import check, parse
from controller.policy.model import Member, Packet, may_pass
from controller.policy.shadow import shadowed
from controller.records import Fleet

from .mesh_fleet import NOW, fleet, fleets, node

FLEET = fleet([node(1, "a"), node(2, "b"), node(3, "c")])
MORE = """\
groups: {g: [tag:a, tag:c]}
services:
  s: {on: tag:b, mcp: {upstream: "http://h/"}}
  db: {on: tag:b, port: 5432}
grants:
"""


def lines(*grants: str) -> dict[int, list[int]]:
    """Line of each grant without effect, with the lines that cover it; the first grant is line 1."""
    document = parse(MORE + "".join(f"  - {{{grant}}}\n" for grant in grants))
    first = MORE.count("\n")
    return {
        grant.place.line - first: [other.place.line - first for other in by] for grant, by in shadowed(document, NOW)
    }


@pytest.mark.parametrize(
    ("grants", "expected"),
    [
        (["from: tag:a, to: tag:b, ip: 'tcp:1-9'", "from: tag:a, to: tag:b, ip: tcp:5"], {2: [1]}),
        (["from: tag:a, to: tag:b, ip: tcp:5", "from: tag:a, to: tag:b, ip: 'tcp:1-9'"], {1: [2]}),
        (["from: '*', to: '*', ip: '*'", "from: group:g, to: [h1, tag:b], ip: [icmp, 'udp:53']"], {2: [1]}),
        (["from: group:g, to: tag:b, ip: tcp:1", "from: tag:a, to: tag:b, ip: tcp:1"], {2: [1]}),
        (["from: tag:a, to: tag:b, ip: tcp:1", "from: group:g, to: tag:b, ip: tcp:1"], {1: [2]}),
        (
            [
                "from: tag:a, to: tag:b, ip: 'tcp:1-5'",
                "from: tag:a, to: tag:b, ip: 'tcp:6-9'",
                "from: tag:a, to: tag:b, ip: 'tcp:4-7'",
            ],
            {3: [1, 2]},
        ),
        (["from: [tag:a, h9], to: tag:b, ip: tcp:1", "from: [tag:a, tag:c], to: tag:b, ip: tcp:1"], {}),
        (["from: tag:a, to: tag:b, ip: tcp:1", "from: tag:a, to: tag:b, ip: [tcp:1, icmp]"], {1: [2]}),
        (["from: tag:a, to: tag:b, ip: tcp:1", "from: tag:a, to: tag:b, ip: udp:1"], {}),
        (["from: tag:a, to: svc:db", "from: tag:a, to: tag:b, ip: tcp:5432"], {2: [1]}),
        (["from: tag:a, to: svc:s, mcp: {tools: x}", "from: tag:a, to: '*', ip: '*'"], {}),
        (["from: tag:a, to: svc:s, mcp: {tools: [x, y]}", "from: tag:a, to: svc:s, mcp: {tools: x}"], {2: [1]}),
        (["from: '*', to: svc:s, mcp: {tools: 'x*'}", "from: tag:a, to: svc:s, mcp: {tools: xy}"], {2: [1]}),
        (
            ["from: tag:a, to: svc:s, mcp: {tools: 'x*', deny_tools: xy}", "from: tag:a, to: svc:s, mcp: {tools: xy}"],
            {},
        ),
        (
            [
                "from: tag:a, to: svc:s, mcp: {tools: x, args: {x: {p: {under: /a}}}}",
                "from: tag:a, to: svc:s, mcp: {tools: x}",
            ],
            {1: [2]},
        ),
        (["from: tag:a, to: svc:s, mcp: {tools: x, limits: {x: 1/s}}", "from: tag:a, to: svc:s"], {2: [1]}),
        (["from: tag:a, to: svc:s, mcp: {prompts: x}", "from: tag:a, to: svc:s, mcp: {resources: x}"], {}),
        (
            [
                "from: tag:a, to: tag:b, ip: tcp:1, expires: 2090-01-01T00:00:00Z",
                "from: tag:a, to: tag:b, ip: [tcp:1, icmp]",
            ],
            {1: [2]},
        ),
        (
            [
                "from: tag:a, to: tag:b, ip: tcp:1",
                "from: tag:a, to: tag:b, ip: [tcp:1, icmp], expires: 2090-01-01T00:00:00Z",
            ],
            {},
        ),
        (
            [
                "from: tag:a, to: tag:b, ip: tcp:1",
                "from: tag:a, to: tag:b, ip: [tcp:1, icmp], expires: 2020-01-01T00:00:00Z",
            ],
            {},
        ),
    ],
)
def test_a_grant_that_others_cover_is_found(grants: list[str], expected: dict[int, list[int]]) -> None:
    assert lines(*grants) == expected


def test_of_two_that_cover_each_other_one_stays() -> None:
    one = "from: [tag:a, group:g], to: tag:b, ip: tcp:1"
    assert lines(one, "from: [group:g], to: tag:b, ip: tcp:1") == {2: [1]}


def test_the_warning_names_the_line_of_the_other() -> None:
    text = "grants:\n- {from: tag:a, to: tag:b, ip: 'tcp:*'}\n- {from: tag:a, to: tag:b, ip: tcp:1}\n"
    (finding,) = check(text, FLEET, now=NOW).findings
    assert (finding.severity, finding.code, finding.line) == ("warning", "shadowed-grant", 3)
    assert "line 2 grants all of it already" in finding.message


def test_what_can_match_nobody_says_why() -> None:
    text = (
        "hosts: {far: 192.0.2.0/24}\ngroups: {people: [user:alice]}\n"
        "grants: [{from: [far, people], to: tag:a, ip: icmp}]"
    )
    messages = [f.message for f in check(text, FLEET, now=NOW).findings]
    assert any("192.0.2.0/24 is outside of the mesh" in message for message in messages)
    assert any("holds users only" in message for message in messages)


@given(fleets())
def test_without_a_shadowed_grant_the_same_packets_pass(among: Fleet) -> None:
    document = parse(among.policy.text)
    text = json.loads(among.policy.text)
    gone = {document.grants.index(grant) for grant, _ in shadowed(document, NOW)}
    rest = parse(json.dumps(text | {"grants": [g for i, g in enumerate(text["grants"]) if i not in gone]}))
    members = [Member(n.name, n.tags, n.addresses) for n in among.nodes.values() if n.state == "active"]
    for source in members:
        for destination in members:
            for protocol, port in (("icmp", None), ("tcp", 1), ("tcp", 4), ("udp", 6), ("udp", 9)):
                packet = Packet(source.addresses[0], destination.addresses[0], protocol, port)
                assert may_pass(document, members, packet, NOW) == may_pass(rest, members, packet, NOW)
