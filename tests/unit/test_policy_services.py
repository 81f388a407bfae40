"""Services in the policy language: how they are written, what a grant to one opens, and to whom."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy import PolicyError, check, compile_policy, parse
from controller.policy.model import Held, Member, Packet, may_pass
from controller.policy.model import selects as matches
from controller.wire.mcp import (
    AuditRules,
    Equals,
    HostIn,
    HttpUpstream,
    Limits,
    Matches,
    OneOf,
    Range,
    Rate,
    StdioUpstream,
    Under,
)
from controller.wire.netmap import AddressSet, Netmap, Rule, SelfNode
from controller.wire.rest import PolicyFinding
from controller.wire.rules import Flow, allowing

from .mesh_fleet import MESH, NOW, fleet, node

FLEET = fleet([node(1, "agents"), node(2, "agents"), node(3, "tools"), node(4, "tools"), node(5, "db")])
SERVICES = """\
services:
  db: {on: tag:db, port: 5432}
  files: {on: [h3], port: 3000, kind: mcp}
  github:
    on: [tag:tools]
    mcp: {upstream: "http://127.0.0.1:3000/mcp"}
  web: {on: tag:tools, http: {upstream: "http://127.0.0.1:8000"}}
"""


def one_fault(text: str) -> PolicyFinding:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    (finding,) = caught.value.findings
    return finding


def warnings(text: str) -> list[str]:
    report = check(text, FLEET, now=NOW)
    assert report.ok, report
    return [finding.code for finding in report.findings]


def gateway(mcp: str) -> Any:
    found = parse(f"services: {{x: {{on: tag:a, mcp: {mcp}}}}}").services["x"].gateway
    assert found is not None
    return found


def rule(text: str) -> Any:
    """The tests of one argument rule."""
    document = parse(
        "services: {x: {on: tag:a, mcp: {upstream: 'http://h/'}}}\n"
        f"grants: [{{from: tag:b, to: svc:x, mcp: {{tools: t, args: {{t: {{a: {text}}}}}}}}}]"
    )
    mcp = document.grants[0].mcp
    assert mcp is not None
    return mcp.args[0].arguments[0]


def test_services_are_read() -> None:
    services = parse(SERVICES).services
    assert [(s.name, s.port, s.gateway is None) for s in services.values()] == [
        ("db", 5432, True),
        ("files", 3000, True),
        ("github", 80, False),
        ("web", 80, False),
    ]
    github, web = services["github"].gateway, services["web"].gateway
    assert github is not None
    assert web is not None
    assert (github.kind, github.port, github.addresses, github.names) == ("mcp", 80, (), ())
    assert github.upstream == HttpUpstream(url="http://127.0.0.1:3000/mcp")
    assert web.kind == "http"


def test_a_command_and_all_settings_of_a_service_are_read() -> None:
    found = gateway(
        "{command: [mcp-files, --root, /srv], environment: {LANG: C, DEPTH: 3}, directory: /srv, per: caller,"
        " path: /here, local_files: true, origins: ['https://app.example.com'],"
        " limits: {body: 2048, streams: 3, cool_down: 1.5, calls: 5/m},"
        " audit: {arguments: true, mask: ['*pin*'], full: drop}}"
    )
    assert found.upstream == StdioUpstream(
        command=("mcp-files", "--root", "/srv"), environment={"LANG": "C", "DEPTH": "3"}, directory="/srv", per="caller"
    )
    assert (found.path, found.local_files, found.origins) == ("/here", True, ("https://app.example.com",))
    assert found.limits == Limits(body=2048, streams=3, cool_down=1.5, calls=Rate(calls=5, seconds=60))
    assert found.audit == AuditRules(arguments=True, mask=(*AuditRules().mask, "*pin*"), full="drop")


def service(text: str) -> str:
    return f"services:\n  x: {text}\n"


def granting(rest: str, to: str = "svc:github") -> str:
    return f"{SERVICES}grants:\n  - {{from: tag:agents, to: {to}, {rest}}}\n"


@pytest.mark.parametrize(
    ("text", "code", "place", "words"),
    [
        (service("{port: 1}"), "missing-key", (2, 6), "needs on"),
        (service("{on: tag:a}"), "missing-key", (2, 6), "needs a port, or mcp or http"),
        (service("{on: [], port: 1}"), "empty", (2, 11), "is empty"),
        (service("{on: svc:y, port: 1}"), "selector", (2, 11), "only stand in 'to'"),
        (service("{on: tag:a, port: 0}"), "port", (2, 24), "not a port"),
        (service("{on: tag:a, port: 1-2}"), "port", (2, 24), "one port"),
        (service("{on: tag:a, port: 1, kind: udp}"), "value", (2, 33), "tcp or mcp"),
        (service("{on: tag:a, prt: 1, port: 2}"), "unknown-key", (2, 18), "did you mean 'port'?"),
        (service("{on: tag:a, port: 1, mcp: {upstream: 'http://h/'}}"), "value", (2, 24), "served by the gateway"),
        (service("{on: tag:a, http: {upstream: 'http://h/'}, mcp: {}}"), "value", (2, 6), "both mcp and http"),
        (service("{on: tag:a, mcp: {}}"), "missing-key", (2, 23), "upstream (a URL) or command"),
        (service("{on: tag:a, mcp: {upstream: ftp://h/}}"), "value", (2, 34), "not an upstream"),
        (service("{on: tag:a, mcp: {upstream: 'http://u:secret@h/'}}"), "value", (2, 34), "without credentials"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', per: caller}}"), "value", (2, 52), "goes with command"),
        (service("{on: tag:a, mcp: {command: ls}}"), "type", (2, 33), "must be a list"),
        (service("{on: tag:a, mcp: {command: []}}"), "value", (2, 33), "command"),
        (service("{on: tag:a, mcp: {command: [x], per: host}}"), "value", (2, 43), "service or caller"),
        (service("{on: tag:a, mcp: {command: [x], directory: y}}"), "value", (2, 49), "must start with /"),
        (service("{on: tag:a, http: {upstream: 'http://h/', per: x}}"), "unknown-key", (2, 48), "'per'"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', path: mcp}}"), "value", (2, 23), "path"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', origins: x/y}}"), "value", (2, 56), "web origin"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', limits: {body: 9}}}"), "value", (2, 55), "1024"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', limits: {calls: 9}}}"), "rate", (2, 63), "500/10s"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', local_files: 1}}"), "type", (2, 60), "true or false"),
        (service("{on: tag:a, mcp: {upstream: 'http://h/', audit: {full: no}}}"), "value", (2, 61), "deny or drop"),
        ("services: {X: {on: tag:a, port: 1}}", "name", (1, 12), "DNS label"),
        ("services: {x: {on: tag:a, port: 1},\n  svc:x: {on: tag:a, port: 1}}", "duplicate-key", (2, 3), "line 1"),
        (granting("mcp: {}", "svc:githb"), "unknown-service", (9, 28), "did you mean 'github'?"),
        (granting("note: x", "tag:tools"), "missing-key", (9, 5), "needs ip"),
        (granting("note: x", "[svc:db, tag:tools]"), "missing-key", (9, 5), "a grant to tag:tools needs ip"),
        (granting("ip: tcp:80"), "service-ip", (9, 28), "grant to it without ip"),
        (granting("mcp: {}", "svc:db"), "mcp", (9, 28), "svc:db is no service with mcp"),
        (granting("mcp: {}", "svc:web"), "mcp", (9, 28), "svc:web is no service with mcp"),
        (granting("ip: tcp:1, mcp: {}", "tag:tools"), "mcp", (9, 28), "tag:tools is no service"),
        (granting("mcp: {tool: x}"), "unknown-key", (9, 46), "did you mean 'tools'?"),
        (granting("mcp: {tools: ['']}"), "value", (9, 54), "not a name pattern"),
        (granting("mcp: {tools: a, args: {b: {c: {equals: 1}}}}"), "tool", (9, 63), "do not name"),
        (granting("mcp: {tools: a, limits: {a: often}}"), "rate", (9, 68), "500/10s"),
        (granting("mcp: {tools: a, limits: {a: 0/s}}"), "rate", (9, 68), "out of bounds"),
        (granting("mcp: {tools: a, schemas: {a: {type: nonsense}}}"), "value", (9, 69), "cannot be used"),
        (granting("mcp: {tools: a, schemas: {a: 1}}"), "type", (9, 69), "JSON Schema object"),
        (granting("mcp: {tools: a, args: {a: {}}}"), "empty", (9, 66), "name an argument"),
        (granting("mcp: {tools: a, args: {a: {p: {}}}}"), "missing-key", (9, 70), "equals, one_of"),
        (granting("mcp: {tools: a, args: {a: {p: {undr: /x}}}}"), "unknown-key", (9, 71), "did you mean 'under'?"),
        (granting("mcp: {tools: a, args: {a: {p: {under: /x/..}}}}"), "value", (9, 78), "cannot stand in a rule"),
        (granting("mcp: {tools: a, args: {a: {p: {pattern: '(?=x)'}}}}"), "value", (9, 80), "linear time"),
        (granting("mcp: {tools: a, args: {a: {p: {host: 'x y'}}}}"), "value", (9, 77), "not a host"),
        (granting("mcp: {tools: a, args: {a: {p: {range: {min: 3, max: 1}}}}}"), "value", (9, 78), "backwards"),
        (granting("mcp: {tools: a, args: {a: {p: {range: {min: '3'}}}}}"), "type", (9, 84), "must be a number"),
        (granting("mcp: {tools: a, args: {a: {p: {one_of: x}}}}"), "type", (9, 79), "list of values"),
        (f"{SERVICES}tests: [{{from: h1, to: svc:db, accept: {{tools: x}}}}]", "mcp", (8, 24), "only such have calls"),
        (f"{SERVICES}tests: [{{from: h1, to: svc:github, accept: {{}}}}]", "empty", (8, 44), "name a tool"),
        (f"{SERVICES}tests: [{{from: h1, to: svc:github, deny: {{tools: [{{a: 1}}]}}}}]", "type", (8, 55), "mapping"),
        (
            f"{SERVICES}tests: [{{from: h1, to: svc:github, deny: {{tools: [{{a: {{}}, b: {{}}}}]}}}}]",
            "type",
            (8, 51),
            "one",
        ),
        (f"{SERVICES}grants: [{{from: svc:db, to: tag:a, ip: icmp}}]", "selector", (8, 17), "only stand in 'to'"),
        (f"{SERVICES}groups: {{g: [svc:db]}}", "selector", (8, 14), "only stand in 'to'"),
    ],
)
def test_a_fault_is_named_with_its_place(text: str, code: str, place: tuple[int, int], words: str) -> None:
    finding = one_fault(text)
    assert (finding.code, finding.line, finding.column) == (code, *place), finding
    assert words in finding.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{equals: 5}", Equals(value=5)),
        ("{equals: '5'}", Equals(value="5")),
        ("{equals: {a: [true, null, 1.5]}}", Equals(value={"a": [True, None, 1.5]})),
        ("{one_of: [open, closed, 1]}", OneOf(values=("open", "closed", 1))),
        ("{pattern: '[a-z]+'}", Matches(pattern="[a-z]+")),
        ("{range: {min: 1, max: 1e2}}", Range(minimum=1, maximum=100.0)),
        ("{range: {max: 3}}", Range(maximum=3)),
        ("{under: /project-x/}", Under(paths=("/project-x",))),
        ("{under: [/a, docs]}", Under(paths=("/a", "docs"))),
        ("{host: ['*.example.com']}", HostIn(hosts=("*.example.com",))),
    ],
)
def test_argument_rules_are_read(text: str, expected: object) -> None:
    found = rule(text)
    assert found.tests == (expected,)
    assert (found.optional, found.each) == (False, False)


def test_an_argument_may_be_optional_or_a_list_and_have_several_rules() -> None:
    found = rule("{under: /x, pattern: '.*txt', optional: true, each: true}")
    assert found.tests == (Under(paths=("/x",)), Matches(pattern=".*txt"))
    assert (found.optional, found.each) == (True, True)


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
        for address, name in targets:
            if source.name == name:
                continue
            for port in (79, 80, 81, 82):
                flow = {"protocol": "tcp", "port": port}
                out = Flow(direction="out", peer=address, **flow)
                into = Flow(direction="in", peer=source.addresses[0], local=address, **flow)
                told = name is not None and all(
                    (allowing(maps[source.name], out, NOW), allowing(maps[name], into, NOW))
                )
                packet = Packet(source.addresses[0], address, "tcp", port)
                assert told == may_pass(document, MEMBERS, packet, NOW, held), (source.name, address, port)


def test_rules_are_what_the_wire_can_carry() -> None:
    policy = compile_policy(parse(granting("mcp: {tools: x}", "[svc:github]")))
    view = policy.view(policy.role("h3", ["tag:tools"], []))
    assert all(Rule.model_validate_json(rule.model_dump_json()) == rule for rule in view.rules.values())
