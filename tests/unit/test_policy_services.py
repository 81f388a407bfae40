"""Services in the policy language: how they are written, what a grant to one opens, and to whom."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy import check, compile_policy, parse
from controller.policy.model import Held, Member, Packet, may_pass
from controller.policy.model import selects as matches
from controller.wire.netmap import AddressSet, Netmap, Rule, SelfNode
from controller.wire.rules import Flow, allowing

from .mesh_fleet import MESH, NOW
from .policy_services import FLEET, SERVICES, granting


def warnings(text: str) -> list[str]:
    report = check(text, FLEET, now=NOW)
    assert report.ok, report
    return [finding.code for finding in report.findings]


def test_a_whole_mcp_grant_is_compiled_for_the_hosts_that_serve() -> None:
    text = granting(
        "mcp: {tools: [search_*, get_file], deny_tools: search_secrets, resources: 'file:///srv/**', prompts: p,"
        " methods: 'tasks/*', args: {get_file: {path: {under: /project-x}}}, schemas: {'search_*': {required: [q]}},"
        " limits: {get_file: 500/10s, '*': 1000/m}}, expires: 2090-01-01T00:00:00Z",
        "[svc:github]",
    )
    document = parse(text)
    policy = compile_policy(document)
    host = policy.view(policy.role("h3", ["tag:tools"], []))
    (grant,) = host.calls.values()
    assert grant.id == document.grants[0].id
    assert (grant.peers, grant.services, grant.expires) == (("tag:agents",), ("github",), 3786912000)
    assert (grant.tools, grant.deny_tools) == (("search_*", "get_file"), ("search_secrets",))
    assert (grant.resources, grant.prompts, grant.methods) == (("file:///srv/**",), ("p",), ("tasks/*",))
    assert [r.tools for r in grant.args] == [("get_file",), ("search_*",)]
    assert grant.args[1].arguments_schema == {"required": ["q"]}
    assert [(r.tools, r.rate.calls, r.rate.seconds) for r in grant.limits] == [
        (("get_file",), 500, 10),
        (("*",), 1000, 60),
    ]
    assert type(grant).model_validate_json(grant.model_dump_json()) == grant


def test_the_caller_of_a_service_gets_its_name_and_the_host_gets_the_service() -> None:
    policy = compile_policy(parse(granting("mcp: {tools: x}")))
    caller = policy.view(policy.role("h1", ["tag:agents"], []))
    host = policy.view(policy.role("h3", ["tag:tools"], []))
    assert [(r.direction, r.ports, r.peers, r.local) for r in caller.rules.values()] == [
        ("out", ((80, 80), (443, 443)), ("svc:github",), ())
    ]
    assert (caller.names, caller.sets, dict(caller.services), dict(caller.calls)) == (
        {"github"},
        {"svc:github"},
        {},
        {},
    )
    assert [(r.direction, r.ports, r.peers, r.local) for r in host.rules.values()] == [
        ("in", ((80, 80), (443, 443)), ("tag:agents",), ("svc:github",))
    ]
    assert (host.names, host.sets, set(host.services)) == (frozenset(), {"tag:agents"}, {"github", "web"})


def test_a_service_that_nobody_may_call_has_its_hosts_all_the_same() -> None:
    policy = compile_policy(parse(SERVICES))
    role = policy.role("h3", ["tag:tools"], [])
    assert role == {"svc:github", "svc:web"}
    assert set(policy.gateway_services) == {"github", "web"}
    assert policy.counterparts["svc:github"] == frozenset()
    assert dict(policy.view(role).rules) == {}


def test_a_host_hears_nothing_of_services_that_others_serve() -> None:
    text = SERVICES.replace("web: {on: tag:tools", "web: {on: h5") + (
        "grants: [{from: tag:agents, to: [svc:github, svc:web]}]"
    )
    policy = compile_policy(parse(text))
    (grant,) = policy.view(policy.role("h3", ["tag:tools"], [])).calls.values()
    assert grant.services == ("github",)


def test_a_service_on_a_group_is_on_its_members() -> None:
    text = "groups: {g: [tag:tools, h5]}\nservices: {x: {on: [group:g], port: 7}}\ngrants: [{from: h1, to: svc:x}]"
    policy = compile_policy(parse(text))
    assert policy.role("h5", [], []) == policy.role("h9", ["tag:tools"], []) == {"svc:x"}


def test_a_plain_service_is_its_hosts_and_its_port() -> None:
    document = parse(f"{SERVICES}grants: [{{from: tag:agents, to: [svc:db, svc:files]}}]")
    members = [Member(n.name, n.tags, n.addresses) for n in FLEET.nodes.values()]
    agent, file_host, _, database = (members[i].addresses[0] for i in (0, 2, 3, 4))

    def passes(destination: str, port: int) -> bool:
        return may_pass(document, members, Packet(agent, destination, "tcp", port), NOW)

    assert passes(database, 5432)
    assert passes(file_host, 3000)
    assert not passes(database, 3000)
    assert not passes(file_host, 5432)


def test_a_plain_service_may_be_granted_other_ports_too() -> None:
    document = parse(f"{SERVICES}grants: [{{from: tag:agents, to: svc:db, ip: [icmp]}}]")
    assert [entry.text for reach in document.grants[0].reaches for entry in reach.ip] == ["icmp"]


def test_moving_a_service_to_another_port_keeps_the_grants_id() -> None:
    grants = "grants: [{from: tag:agents, to: svc:db}]"
    (before,) = parse(SERVICES + grants).grants
    (after,) = parse(SERVICES.replace("5432", "5433") + grants).grants
    assert before.id == after.id
    assert before.reaches != after.reaches


def test_a_grant_of_other_calls_has_another_id() -> None:
    ids = [parse(granting(rest)).grants[0].id for rest in ("mcp: {tools: a}", "mcp: {tools: b}", "note: n")]
    assert len(set(ids)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (granting("mcp: {tools: '*'}"), []),
        (granting("note: x"), ["no-calls"]),
        (granting("note: x", "svc:web"), []),
        (granting("note: x", "svc:db"), []),
        ("services: {x: {on: tag:nobody, port: 1}}", ["idle-service"]),
        ("services: {h1: {on: tag:tools, mcp: {upstream: 'http://h/'}}}", ["ambiguous"]),
        (SERVICES.replace("[tag:tools]", "h1") + "grants: [{from: h1, to: svc:github, mcp: {tools: x}}]", []),
    ],
)
def test_what_a_service_lacks_is_a_warning(text: str, expected: list[str]) -> None:
    assert warnings(text) == expected


def test_a_service_on_an_unknown_node_is_an_error() -> None:
    report = check("services: {x: {on: [h11], port: 1}}", FLEET, now=NOW)
    assert [(f.code, f.column) for f in report.findings] == [("unknown-node", 21)]


def test_a_service_without_its_kind_is_suggested() -> None:
    report = check(f"{SERVICES}grants: [{{from: h1, to: github, ip: tcp:80}}]", FLEET, now=NOW)
    assert "did you mean 'svc:github'?" in report.findings[0].message


@pytest.mark.parametrize(
    ("test", "ok"),
    [
        ("{from: tag:agents, to: svc:github, accept: [tcp:80, tcp:443]}", True),
        ("{from: tag:agents, to: svc:github, deny: [tcp:444, udp:443, icmp]}", True),
        ("{from: tag:db, to: svc:github, deny: '*'}", True),
        ("{from: tag:agents, to: tag:tools, deny: tcp:80}", True),
        ("{from: tag:agents, to: svc:db, accept: tcp:5432, deny: tcp:80}", True),
        ("{from: tag:agents, to: svc:db, accept: tcp:5433}", False),
        ("{from: tag:db, to: svc:github, accept: tcp:80}", False),
        ("{from: tag:agents, to: svc:github, deny: tcp:80}", False),
    ],
)
def test_a_service_is_tested_at_its_own_addresses(test: str, ok: bool) -> None:
    text = f"{SERVICES}grants: [{{from: tag:agents, to: [svc:github, svc:db]}}]\ntests: [{test}]"
    assert check(text, FLEET, now=NOW).ok is ok


CALLS = (
    "grants:\n  - {from: tag:agents, to: svc:github, mcp: {tools: [search_*, get_file], deny_tools: search_secrets,"
    " resources: 'file:///srv/*', prompts: review, methods: 'tasks/*',"
    " args: {get_file: {path: {under: /project-x}}}}}\n"
    "  - {from: h2, to: svc:github, mcp: {tools: delete_repo}, expires: 2020-01-01T00:00:00Z}\n"
)


@pytest.mark.parametrize(
    ("test", "ok"),
    [
        ("accept: {tools: [search_code, get_file]}, deny: {tools: [search_secrets, delete_repo]}", True),
        ("accept: {tools: [{get_file: {path: /project-x/a}}]}", True),
        ("accept: {tools: {get_file: {path: /project-x/a}}}", True),
        ("deny: {tools: [{get_file: {path: /etc/passwd}}, {get_file: {}}, {get_file: {path: /project-x/../a}}]}", True),
        ("accept: {prompts: review, resources: 'file:///srv/a', methods: tasks/get}", True),
        ("deny: {prompts: other, resources: ['file:///srv/../etc'], methods: [x/y]}", True),
        ("accept: {tools: delete_repo}", False),
        ("accept: {tools: [{get_file: {path: /etc/passwd}}]}", False),
        ("deny: {tools: [get_file]}", False),
        ("deny: {prompts: review}", False),
    ],
)
def test_a_document_tests_calls_as_the_gateway_judges_them(test: str, ok: bool) -> None:
    report = check(f"{SERVICES}{CALLS}tests: [{{from: tag:agents, to: [svc:github], {test}}}]", FLEET, now=NOW)
    assert report.ok is ok, report


def test_a_failed_test_of_a_call_says_why() -> None:
    call = "{get_file: {path: /etc/passwd}}"
    text = f"{SERVICES}{CALLS}tests:\n  - {{from: tag:agents, to: svc:github, accept: {{tools: [{call}]}}}}"
    (finding,) = [f for f in check(text, FLEET, now=NOW).findings if f.severity == "error"]
    assert (finding.code, finding.line) == ("test-failed", 12)
    assert 'tool get_file with {"path": "/etc/passwd"} from node' in finding.message
    assert "argument 'path' must be a path below /project-x" in finding.message


def test_a_caller_without_a_grant_is_tested_against_nothing() -> None:
    text = f"{SERVICES}{CALLS}tests: [{{from: tag:db, to: svc:github, accept: {{tools: get_file}}}}]"
    (finding,) = [f for f in check(text, FLEET, now=NOW).findings if f.severity == "error"]
    assert "no grant leads there" in finding.message


# Against the reference model: any packet to a node or to a service, judged by what both its hosts are told.

MEMBERS = [Member(n.name, n.tags, n.addresses) for n in FLEET.nodes.values()]
sides = st.lists(
    st.sampled_from(["tag:agents", "tag:tools", "h1", "h3", "group:g", "host:low", "*"]), min_size=1, max_size=2
)
plain = st.builds(lambda on, port: {"on": on, "port": port}, sides, st.integers(79, 82))
served = st.builds(lambda on: {"on": on, "http": {"upstream": "http://h/"}}, sides)
grants = st.one_of(
    st.builds(lambda a, b: {"from": a, "to": b, "ip": ["tcp:80-81"]}, sides, sides | st.just(["svc:a"])),
    st.builds(
        lambda a, b: {"from": a, "to": b},
        sides,
        st.lists(st.sampled_from(["svc:a", "svc:b", "svc:c"]), min_size=1, max_size=3),
    ),
)
documents = st.builds(
    lambda a, b, c, some: json.dumps(
        {
            "hosts": {"low": "100.64.0.0/30"},
            "groups": {"g": ["tag:db", "h2"]},
            "services": {"a": a, "b": b, "c": c},
            "grants": some,
        }
    ),
    plain,
    served,
    served,
    st.lists(grants, max_size=4),
)
OWN = {"b": ("100.64.9.1", "fd00:1::901"), "c": ("100.64.9.2", "fd00:1::902")}


@given(documents, st.sampled_from([m.name for m in MEMBERS]), st.sampled_from([m.name for m in MEMBERS]))
def test_hosts_are_told_what_the_model_says_of_services(text: str, b_holder: str, c_holder: str) -> None:
    document = parse(text)
    policy = compile_policy(document)
    holders = {"b": b_holder, "c": c_holder}
    for service, name in holders.items():  # who holds a service is one of those that may serve it
        may_serve = [m.name for m in MEMBERS if any(matches(document, s, m) for s in document.services[service].on)]
        holders[service] = name if name in may_serve else next(iter(may_serve), "")
    held = {service: Held(OWN[service], name or None) for service, name in holders.items()}
    roles = {m: policy.role(m.name, m.tags, m.addresses) for m in MEMBERS}
    targets: list[tuple[str, str | None]] = [(m.addresses[0], m.name) for m in MEMBERS]
    targets += [(OWN[service][0], name or None) for service, name in holders.items()]

    def netmap(member: Member) -> Netmap:
        view = policy.view(roles[member])
        sets = {}
        for key in view.sets | {f"svc:{name}" for name in view.services}:
            own = OWN.get(key.removeprefix("svc:")) if key.startswith("svc:") else None
            everyone = [address for m in MEMBERS if key in roles[m] for address in m.addresses]
            sets[key] = AddressSet(name=key, addresses=frozenset(own if own else everyone))
        mine = tuple(a for service, name in holders.items() if name == member.name for a in OWN[service])
        me = SelfNode(id=member.name, name=member.name, addresses=member.addresses, held=mine)
        return Netmap(revision=1, mesh=MESH, node=me, sets=sets, rules=dict(view.rules))

    maps = {m.name: netmap(m) for m in MEMBERS}
    for source in MEMBERS:
        for address, holder in targets:
            if source.name == holder:
                continue
            for port in (79, 80, 81, 82):
                flow = {"protocol": "tcp", "port": port}
                out = Flow(direction="out", peer=address, **flow)
                into = Flow(direction="in", peer=source.addresses[0], local=address, **flow)
                told = holder is not None and all(
                    (allowing(maps[source.name], out, NOW), allowing(maps[holder], into, NOW))
                )
                packet = Packet(source.addresses[0], address, "tcp", port)
                assert told == may_pass(document, MEMBERS, packet, NOW, held), (source.name, address, port)


def test_rules_are_what_the_wire_can_carry() -> None:
    policy = compile_policy(parse(granting("mcp: {tools: x}", "[svc:github]")))
    view = policy.view(policy.role("h3", ["tag:tools"], []))
    assert all(Rule.model_validate_json(rule.model_dump_json()) == rule for rule in view.rules.values())
