"""Services in the policy document: what is read, and each fault with its place."""

import pytest

from controller.policy import parse
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

from .policy_services import SERVICES, gateway, granting, one_fault, rule


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
