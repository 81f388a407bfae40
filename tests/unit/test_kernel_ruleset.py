"""The table as data: which address ends at which grant, what its names are, and what changes when a map changes.

What the kernel makes of it is tested in tests/kernel/test_firewall.py.
"""

import itertools
from collections.abc import Iterable, Iterator

from hypothesis import given
from hypothesis import strategies as st

from agentd.kernel.firewall import render_change
from agentd.kernel.recompile import Recompiler
from agentd.kernel.ruleset import compile_ruleset, identifier
from agentd.model import LinkSettings, Ruleset
from controller.wire.netmap import AddressSet, Netmap, Protocol, Rule
from controller.wire.rules import Flow, allowing
from tests.kernel.maps import Member, allow, netmap

NOW = 1_800_000_000
LINK = LinkSettings()
MEMBERS = [Member(number) for number in range(2, 8)]
SETS = ["tag:a", "tag:b", "node:x", "odd name/é"]
SERVICES = {  # two that share an address, which no controller would allot
    "svc:one": frozenset({"100.64.8.1", "fd77:7761:7264::8:1"}),
    "svc:two": frozenset({"100.64.8.2", "fd77:7761:7264::8:2", "100.64.8.3"}),
    "svc:odd/é": frozenset({"100.64.8.3"}),
}
PLACES = [None, *sorted(frozenset[str]().union(*SERVICES.values()))]


def compiled(wanted: Netmap, now: float = NOW) -> Ruleset:
    return compile_ruleset(wanted, LINK, now)


def verdict(ruleset: Ruleset, flow: Flow) -> str | None:
    """The grant chain that the maps lead a flow's first packet to: what the kernel does, on the data."""
    address, direction, protocol, port = flow.peer, flow.direction, flow.protocol, flow.port
    family, at = "6" if ":" in address else "4", ""
    if flow.local is not None:
        place = ruleset.elements[f"held.{direction}{family}"].get(flow.local)
        if place is None:
            return None
        at = place.removeprefix(f"goto {direction}put")
    jump = ruleset.elements[f"{'from' if direction == 'in' else 'to'}{family}{at}"].get(address)
    if jump is None:
        return None
    profile = jump.removeprefix("jump ").partition("/")[2]
    if protocol == "icmp":
        chain = ruleset.chains[f"{'from' if direction == 'in' else 'to'}/{profile}"]
        return next((rule.rpartition(" ")[2] for rule in chain.rules if "icmp type echo-request" in rule), None)
    single = ruleset.elements.get(f"{direction}/{profile}", {}).get(f"{protocol} . {port}")
    if single is not None:
        return single.removeprefix("goto ")
    for key, goto in ruleset.elements.get(f"{direction}.{protocol}/{profile}", {}).items():
        low, _, high = key.partition("-")
        if port is not None and int(low) <= port <= int(high):
            return goto.removeprefix("goto ")
    return None


def in_sets(rules: list[Rule], membership: dict[str, set[int]], held: Iterable[str] = ()) -> Netmap:
    sets = {
        name: AddressSet(
            name=name,
            addresses=frozenset(
                address for index in members for address in (MEMBERS[index].address, MEMBERS[index].address6)
            ),
        )
        for name, members in membership.items()
    }
    sets |= {name: AddressSet(name=name, addresses=addresses) for name, addresses in SERVICES.items()}
    own = Member(1, held=tuple(sorted(held)))
    return netmap(own).model_copy(update={"sets": sets, "rules": {rule.id: rule for rule in rules}})


port = st.sampled_from([0, 1, 22, 80, 443, 444, 8000, 65535])
ranges = st.one_of(port, st.tuples(port, port).map(lambda pair: (min(pair), max(pair))))


@st.composite
def rule(draw: st.DrawFn) -> Rule:
    protocol: Protocol = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    return allow(
        draw(st.sampled_from(["in", "out"])),
        protocol,
        *(draw(st.lists(ranges, min_size=1, max_size=3)) if protocol != "icmp" else ()),
        peers=draw(st.lists(st.sampled_from([*SETS, "absent"]), min_size=1, max_size=2, unique=True)),
        grant=draw(st.sampled_from(["g1", "g2", "web", "until"])),
        expires=draw(st.sampled_from([None, NOW - 1, NOW, NOW + 100, NOW + 200])),
        local=draw(st.lists(st.sampled_from([*SERVICES, "absent"]), max_size=2, unique=True)),
    )


memberships = st.dictionaries(st.sampled_from(SETS), st.sets(st.integers(0, len(MEMBERS) - 1)), max_size=4)
held = st.sets(st.sampled_from([one for one in PLACES if one is not None] + ["100.64.8.9"]))
maps = st.builds(in_sets, st.lists(rule(), max_size=8), memberships, held)


@given(maps)
def test_the_table_allows_what_the_rules_allow(wanted: Netmap) -> None:
    ruleset = compiled(wanted)
    for flow in flows():
        allowed = allowing(wanted, flow, NOW)
        chain = verdict(ruleset, flow)
        assert (chain is not None) == bool(allowed), flow
        if chain is not None:
            # The grant that lasts longest counts, and its end is the kernel's to see.
            ends = [one.expires for one in allowed]
            last = None if None in ends else max(end for end in ends if end is not None)
            assert chain.partition("/until.")[2] == ("" if last is None else str(last))
            limit = "" if last is None else f"meta time < {last} "
            assert ruleset.chains[chain].rules[0].startswith(f"{limit}counter name")


def flows() -> Iterator[Flow]:
    for direction, protocol, local in itertools.product(("in", "out"), ("tcp", "udp", "icmp"), PLACES):
        for number in (None,) if protocol == "icmp" else (0, 22, 81, 443, 9000, 65535):
            for member in MEMBERS[:3]:
                peer = member.address6 if local and ":" in local else member.address
                yield Flow(direction=direction, peer=peer, protocol=protocol, port=number, local=local)


def test_a_service_that_comes_is_two_elements_a_family_and_so_is_one_that_goes() -> None:
    rules = [allow("in", "tcp", 443, peers=["tag:a"], local=["svc:one"]), allow("in", "tcp", 22, peers=["tag:a"])]
    away = compiled(in_sets(rules, {"tag:a": {0, 1}}))
    here = compiled(in_sets(rules, {"tag:a": {0, 1}}, SERVICES["svc:one"]))
    for word, text in (("add", render_change(away, here)), ("delete", render_change(here, away))):
        assert text is not None
        assert sorted(line.partition(" {")[0] for line in text.splitlines()) == [
            f"{word} element inet wardmesh {name}" for name in ("held.in4", "held.in6", "held.out4", "held.out6")
        ]


def test_rules_for_a_service_are_in_no_map_of_the_own_addresses() -> None:
    rules = [allow("in", "tcp", 443, peers=["tag:a"], local=["svc:one"])]
    ruleset = compiled(in_sets(rules, {"tag:a": {0}}, SERVICES["svc:one"]))
    assert not any(ruleset.elements[name] for name in ("from4", "from6", "to4", "to6"))
    assert ruleset.elements["from4_at_svc.one"] == {MEMBERS[0].address: "jump from/tag.a_at_svc.one"}


def test_a_member_that_joins_a_set_is_elements_alone() -> None:
    rules = [allow("in", "tcp", 443, peers=["tag:a"])]
    text = render_change(compiled(in_sets(rules, {"tag:a": {0, 1}})), compiled(in_sets(rules, {"tag:a": {0, 1, 2}})))
    assert text is not None
    assert [line.split()[:5] for line in text.splitlines()] == [
        ["add", "element", "inet", "wardmesh", name] for name in ("from4", "from6", "to4", "to6")
    ]


def test_a_change_of_the_own_address_keeps_the_counters() -> None:
    text = render_change(compiled(netmap(Member(1), Member(2))), compiled(netmap(Member(9), Member(2))))
    assert text is not None
    assert "counter inet" not in text


def test_ten_thousand_sources_and_two_hundred_rules_are_not_two_million_elements() -> None:
    everyone = AddressSet(name="all", addresses=frozenset(f"100.64.{n // 256}.{n % 256}" for n in range(10_000)))
    rules = {r.id: r for r in (allow("in", "tcp", n, peers=["all"], grant=f"g{n}") for n in range(1, 201))}
    wanted = netmap(Member(60_000)).model_copy(update={"sets": {"all": everyone}, "rules": rules})
    assert compiled(wanted).size() == 2 * 10_000 + 200


@given(st.lists(st.text(min_size=1, max_size=300), min_size=2, max_size=6, unique=True))
def test_different_names_have_different_identifiers(names: list[str]) -> None:
    found = [identifier(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(len(one) <= 120 and one.isascii() and "/" not in one and not set(' ;{}"') & set(one) for one in found)


def test_names_stay_readable() -> None:
    assert identifier("tag:web-servers") == "tag.web-servers"
    ruleset = compiled(netmap(Member(1), Member(2), rules=[allow("in", "tcp", 443, grant="grants[0]")]))
    assert "grant/grants_5b0_5d" in ruleset.chains


def test_no_name_of_ours_is_an_nft_keyword() -> None:
    ruleset = compiled(netmap(Member(1), Member(2), rules=[allow("in", "tcp", 443, peers=["all"], grant="log")]))
    for name in (*ruleset.chains, *ruleset.containers, *ruleset.counters):
        assert name not in {"log", "fwd", "drop", "accept", "counter", "limit", "map", "set", "in", "out"}


@given(st.lists(rule(), max_size=8), st.lists(st.tuples(memberships, st.integers(0, 150), held), max_size=6))
def test_a_table_made_from_the_one_before_is_the_same_table(
    rules: list[Rule], steps: list[tuple[dict[str, set[int]], int, set[str]]]
) -> None:
    again = Recompiler()
    for membership, later, holds in steps:
        wanted = in_sets(rules, membership, holds)
        assert again(wanted, LINK, NOW + later) == compiled(wanted, NOW + later)


def test_who_joins_a_set_compiles_no_chain_again() -> None:
    rules = [allow("in", "tcp", 80, peers=["tag:a"]), allow("in", "tcp", 81, peers=["tag:b"])]
    again = Recompiler()
    before = again(in_sets(rules, {"tag:a": {0, 1}, "tag:b": {2}}), LINK, NOW)
    after = again(in_sets(rules, {"tag:a": {0, 1, 3}, "tag:b": {2}}), LINK, NOW)
    assert after.chains is before.chains
    change = render_change(before, after)
    assert change is not None
    assert change.count("add element") == 4


def test_a_service_that_comes_compiles_no_chain_again() -> None:
    rules = [allow("in", "tcp", 443, peers=["tag:a"], local=["svc:one"])]
    again = Recompiler()
    before = again(in_sets(rules, {"tag:a": {0, 1}}), LINK, NOW)
    after = again(in_sets(rules, {"tag:a": {0, 1, 2}}, SERVICES["svc:one"]), LINK, NOW)
    assert after.chains is before.chains
    text = render_change(before, after)
    assert text is not None
    assert text.count("add element") == 4 + 4
