"""Reading a policy: what is accepted, and how each fault is named with its place."""

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy import PolicyError, parse
from controller.policy.tree import MAX_DEPTH, MAX_TEXT, MAX_VALUES
from controller.wire.rest import PolicyFinding

from .mesh_fleet import policies

WHOLE = """\
hosts:
  lab: 100.64.8.0/24
  printer: fd00:1::9
tags:
  tag:agents: [group:ops]
  tools:
groups:
  ops: [tag:agents, bastion]
grants:
  - from: [tag:agents, ops]
    to: tag:tools
    ip: [tcp:443, udp:53, tcp:8000-8100, icmp]
    note: agents call tools
    expires: 2027-01-31T18:00:00+01:00
  - {from: "*", to: [lab], ip: ["tcp:*", "*"]}
tests:
  - from: tag:agents
    to: tag:tools
    accept: [tcp:443]
    deny: tcp:22
"""


def findings(text: str) -> tuple[PolicyFinding, ...]:
    with pytest.raises(PolicyError) as caught:
        parse(text)
    return caught.value.findings


def only(text: str) -> PolicyFinding:
    (finding,) = findings(text)
    return finding


def grant(**parts: str) -> str:
    """A document with one grant, one line a key; `from` starts on line 2, the others follow."""
    fields = {"from": "tag:a", "to": "tag:b", "ip": "[tcp:443]"} | {k.rstrip("_"): v for k, v in parts.items()}
    return "grants:\n  -\n" + "".join(f"    {key}: {value}\n" for key, value in fields.items())


def test_a_whole_document_is_read() -> None:
    document = parse(WHOLE)
    first, second = document.grants
    assert [s.key for s in first.from_] == ["tag:agents", "group:ops"]
    assert [s.key for s in first.to] == ["tag:tools"]
    assert first.expires == 1801414800
    assert first.note == "agents call tools"
    assert first.place == (10, 5)
    assert [s.key for s in second.to] == ["host:lab"]
    assert str(document.hosts["printer"].prefix) == "fd00:1::9/128"
    assert document.tags is not None
    assert document.tags["agents"].owners == ("group:ops",)
    assert [s.key for s in document.groups["ops"].members] == ["tag:agents", "node:bastion"]
    assert document.tests[0].deny[0].text == "tcp:22"


@pytest.mark.parametrize(
    "text", ["", "\n", "# nothing yet\n", "{}", "grants:\n", "grants: []", "---\n", "\ufeffgrants: []"]
)
def test_an_empty_document_grants_nothing(text: str) -> None:
    assert parse(text).grants == ()


def test_json_is_read_however_it_is_indented() -> None:
    document = {"grants": [{"from": ["tag:a"], "to": ["*"], "ip": ["tcp:443"]}], "hosts": {"lab": "10.0.0.0/8"}}
    for indent in (None, 2, "\t"):
        assert parse(json.dumps(document, indent=indent)).grants == parse(json.dumps(document)).grants


@pytest.mark.parametrize(
    ("text", "code", "place", "words"),
    [
        ("grant: []", "unknown-key", (1, 1), "did you mean 'grants'?"),
        ("- a", "type", (1, 1), "mapping"),
        ("grants: {}", "type", (1, 9), "list"),
        ("grants: []\ngrants: []", "duplicate-key", (2, 1), "line 1"),
        ("hosts: {lab: 10.0.0.0/8,\n  lab: 10.0.0.0/8}", "duplicate-key", (2, 3), "line 1"),
        ("tags: {web: [],\n  tag:web: []}", "duplicate-key", (2, 3), "line 1"),
        ("hosts: {lab: 10.0.0.1/8}", "prefix", (1, 14), "host bits"),
        ("hosts: {lab: fe80::%eth0/64}", "prefix", (1, 14), "scope"),
        ("hosts: {Lab: 10.0.0.0/8}", "name", (1, 9), "DNS label"),
        ("hosts: {l\u0430b: 10.0.0.0/8}", "name", (1, 9), "U+0430"),
        ("hosts: {ops: 10.0.0.0/8}\ngroups: {ops: [tag:a]}", "ambiguous", (2, 10), "line 1"),
        ("groups: {ops: [tag:a, group:ops]}", "group-member", (1, 23), "tags, nodes, hosts and users"),
        ("groups: {ops: []}", "empty", (1, 15), "empty"),
        ("tags: {web: [group:opps]}\ngroups: {ops: [db]}", "unknown-group", (1, 14), "did you mean 'ops'?"),
        (grant(from_="['tag:']"), "selector", (3, 12), "DNS label"),
        (grant(from_="[]"), "empty", (3, 11), "from is empty"),
        (grant(from_=""), "type", (3, 10), "text"),
        (grant(from_="[host:labb]") + "hosts: {lab: 10.0.0.0/8}", "unknown-host", (3, 12), "did you mean 'lab'?"),
        (grant(from_="[tgg:a]"), "selector", (3, 12), "did you mean 'tag'?"),
        (grant(from_="[tag:a.b]"), "selector", (3, 12), "DNS label"),
        (grant(from_="[{a: b}]"), "type", (3, 12), "text"),
        (
            grant(from_="tag:web") + "tags: {tag:webs: [], tag:b: []}",
            "unknown-tag",
            (3, 11),
            "did you mean 'tag:webs'?",
        ),
        (grant(ip="[tpc:443]"), "ip", (5, 10), "did you mean 'tcp'?"),
        (grant(ip="[gre]"), "ip", (5, 10), "never pass"),
        (grant(ip="[sctp:80]"), "ip", (5, 10), "never pass"),
        (grant(ip="[tcp]"), "ip", (5, 10), "lacks ports"),
        (grant(ip="['tcp:']"), "ip", (5, 10), "not a port"),
        (grant(ip="[tcp:0]"), "ip", (5, 10), "not a port"),
        (grant(ip="[tcp:65536]"), "ip", (5, 10), "not a port"),
        (grant(ip="[tcp:-1]"), "ip", (5, 10), "not a port"),
        (grant(ip="[tcp:9-8]"), "ip", (5, 10), "write 8-9"),
        (grant(ip="[tcp:\u0664]"), "ip", (5, 10), "not a port"),
        (grant(ip="[icmp:8]"), "ip", (5, 10), "no ports"),
        (grant(ip="[443]"), "ip", (5, 10), "names no protocol"),
        (grant(expires="soon"), "expires", (6, 14), "2027-01-31T18:00:00Z"),
        (grant(expires="2027-01-31T18:00:00"), "expires", (6, 14), "time zone"),
        (grant(expires="2027-01-31"), "expires", (6, 14), "time zone"),
        (grant(note="x" * 501), "note", (6, 11), "500"),
        (grant(expire="x"), "unknown-key", (6, 5), "did you mean 'expires'?"),
        ("grants:\n  - from: tag:a\n    to: tag:b", "missing-key", (2, 5), "ip"),
        ("grants:\n  -", "type", (2, 4), "fill it in"),
        ("tests: [{from: tag:a, to: tag:b}]", "missing-key", (1, 9), "accept, deny"),
        ("grants: [{from: &x tag:a}]", "alias", (1, 17), "anchors"),
        ("a: [*x]", "alias", (1, 5), "anchors"),
        ("grants: [{from: *}]", "syntax", (1, 18), "quoted"),
        ("hosts: !!python/object:os.system {}", "yaml-tag", (1, 8), "python/object"),
        ("a: 1\n---\nb: 2", "syntax", (2, 1), "more than one document"),
        ("a: b: c", "syntax", (1, 5), "not allowed"),
        ("hosts:\n\tlab: 1", "syntax", (2, 1), "token"),
        ("a: 'x", "syntax", (1, 6), "quoted scalar"),
        ("a: \x07", "syntax", (1, 4), "character"),
        ("a: 1\nb: \ud800", "syntax", (2, 4), "surrogate"),
        ("[" * 17 + "]" * 17, "too-deep", (1, 17), str(MAX_DEPTH)),
    ],
)
def test_a_fault_is_named_with_its_place(text: str, code: str, place: tuple[int, int], words: str) -> None:
    finding = only(text)
    assert (finding.code, finding.line, finding.column) == (code, *place)
    assert words in finding.message


def test_all_faults_are_reported_at_once() -> None:
    text = grant(ip="[tcp:0, udp]") + "hosts: {A: 10.0.0.0/8}\nnonsense: 1"
    assert [finding.code for finding in findings(text)] == ["ip", "ip", "name", "unknown-key"]


@pytest.mark.parametrize("text", ["[" * 1_000_000, "{a: " * 200_000, "- " * 300_000, "? " * 300_000, "'" * 1_000_000])
def test_nesting_without_end_is_refused_quickly(text: str) -> None:
    started = time.monotonic()
    findings(text)
    assert time.monotonic() - started < 5


def test_size_is_bounded() -> None:
    assert only("#" * (MAX_TEXT + 1)).code == "too-large"
    assert only("[" + "a," * (MAX_VALUES + 1) + "]").code == "too-large"


def test_an_alias_bomb_is_refused_at_its_first_anchor() -> None:
    bomb = "a: &a [x, x]\n" + "".join(f"{chr(c + 1)}: &{chr(c + 1)} [*{chr(c)}, *{chr(c)}]\n" for c in range(97, 120))
    assert (only(bomb).code, only(bomb).line) == ("alias", 1)


def test_words_that_yaml_takes_for_values_are_names_here() -> None:
    document = parse("grants: [{from: [no, 1234, true], to: [off], ip: [icmp]}]")
    assert [s.key for s in document.grants[0].from_] == ["node:no", "node:1234", "node:true"]


def test_grant_ids_follow_what_is_granted_and_nothing_else() -> None:
    one = "{from: [tag:a, h1], to: tag:b, ip: [tcp:443, tcp:80]}"
    same = "{to: [tag:b], note: other, ip: [tcp:80, tcp:443], from: [h1, tag:a], expires: 2027-01-01T00:00:00Z}"
    other = "{from: [tag:a, h1], to: tag:b, ip: [tcp:443, tcp:81]}"
    (first,) = parse(f"grants: [{one}]").grants
    before, again, twice = parse(f"grants: [{other}, {same}, {one}]").grants
    assert again.id == first.id
    assert before.id != first.id
    assert twice.id == f"{first.id}-2"


@given(policies())
def test_every_valid_document_is_read(text: str) -> None:
    assert len(parse(text).grants) == len(json.loads(text)["grants"])


@given(st.text())
def test_any_text_is_a_document_or_a_policy_error(text: str) -> None:
    with contextlib.suppress(PolicyError):
        parse(text)


def test_users_own_tags_directly_and_by_group() -> None:
    document = parse(
        "tags: {agents: [group:ops, user:bob], tools: []}\ngroups: {ops: [user:alice, h1], all: [tag:agents]}"
    )
    assert [document.owns(user, "tag:agents") for user in ("alice", "bob", "carol", "h1")] == [True, True, False, False]
    assert not document.owns("alice", "tag:tools")
    assert not document.owns("alice", "tag:unknown")
    assert not parse("").owns("alice", "tag:agents")


def test_a_user_is_no_source_of_traffic() -> None:
    text = "groups: {ops: [user:alice, h1]}\ngrants: [{from: group:ops, to: h2, ip: icmp}]"
    assert [s.key for s in parse(text).groups["ops"].members] == ["node:h1"]
    assert "traffic comes from nodes" in only("grants: [{from: user:alice, to: h2, ip: icmp}]").message


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("tags: {a: [alice]}", "owner", "user:NAME or group:NAME"),
        ("tags: {a: ['user:Alice B']}", "owner", "not a user's name"),
        ("groups: {a: ['user:']}", "user", "not a user's name"),
    ],
)
def test_an_owner_that_is_nobody_is_an_error(text: str, code: str, words: str) -> None:
    assert only(text).code == code
    assert words in only(text).message
