"""The JSON Schema of the policy language: it accepts whatever the language does, and catches what it can."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema_rs import Draft202012Validator

from controller.policy import PolicyError, parse
from controller.policy.findings import Findings
from controller.policy.reader import Reader
from controller.policy.schema import policy_schema
from controller.policy.tree import read_tree

from ..control.test_policy_fuzz import BASES, malformed
from .mesh_fleet import policies
from .policy_services import SERVICES
from .test_policy_parse import WHOLE
from .test_policy_services import CALLS

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(policy_schema())


def value(text: str) -> Any:
    """The document as an editor sees it: YAML with numbers and truth values."""
    tree = read_tree(text)
    return None if tree is None else Reader(Findings()).json(tree)


def faults(text: str) -> list[str]:
    return [f"{error.instance_path}: {error.message}" for error in VALIDATOR.iter_errors(value(text))]


def examples(path: Path) -> list[str]:
    """The YAML blocks of a README that are whole documents."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if re.search(r"^(grants|services|tests):", block, re.MULTILINE)]


def test_the_schema_is_one() -> None:
    Draft202012Validator(policy_schema())
    assert json.loads(json.dumps(policy_schema())) == policy_schema()


def test_every_key_has_a_description() -> None:
    def walk(schema: Any, path: str) -> list[str]:
        if isinstance(schema, list):
            return [found for item in schema for found in walk(item, path)]
        if not isinstance(schema, dict):
            return []
        bare = [f"{path}.{k}" for k, part in schema.get("properties", {}).items() if "description" not in part]
        inner = [found for key, part in schema.items() if key != "required" for found in walk(part, f"{path}.{key}")]
        return bare + inner

    assert [path for path in walk(policy_schema(), "") if not path.endswith((".min", ".max"))] == []


@pytest.mark.parametrize("text", [WHOLE, SERVICES, SERVICES + CALLS, *BASES, "", "{}", "grants:", "grants: []"])
def test_documents_of_the_tests_are_valid(text: str) -> None:
    parse(text)
    assert faults(text) == []


@pytest.mark.parametrize("readme", ["README.md", "controller/policy/README.md"])
def test_documents_of_the_documentation_are_read_and_valid(readme: str) -> None:
    found = examples(ROOT / readme)
    assert found
    for text in found:
        parse(text)
        assert faults(text) == []


@given(policies())
def test_documents_that_are_drawn_are_valid(text: str) -> None:
    assert faults(text) == []


def test_whatever_the_language_accepts_is_valid() -> None:
    chance = random.Random(7)
    accepted = 0
    for _ in range(1500):
        text = malformed(chance)
        try:
            parse(text)
        except PolicyError:
            continue
        accepted += 1
        assert faults(text) == [], text
    assert accepted > 50


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "grant: []",
        "grants: {}",
        "grants: [{from: a, to: b, ip: [gre]}]",
        "grants: [{from: a, to: b, ip: [tcp]}]",
        "grants: [{from: a, to: b, ip: []}]",
        "grants: [{from: a, ip: [icmp]}]",
        "grants: [{from: svc:a, to: b, ip: [icmp]}]",
        "grants: [{from: user:a, to: b, ip: [icmp]}]",
        "grants: [{from: 'tag:', to: b, ip: [icmp]}]",
        "grants: [{from: a, to: svc:b, mcp: {tool: x}}]",
        "grants: [{from: a, to: svc:b, mcp: {tools: x, args: {x: {y: {undr: /z}}}}}]",
        "grants: [{from: a, to: svc:b, mcp: {tools: x, args: {x: {y: {}}}}}]",
        "grants: [{from: a, to: svc:b, mcp: {tools: x, limits: {x: often}}}]",
        "groups: {a: ['*']}",
        "groups: {a: []}",
        "tags: {a: [alice]}",
        "services: {a: {port: 1}}",
        "services: {a: {on: b}}",
        "services: {a: {on: b, port: 70000}}",
        "services: {a: {on: b, port: 1, mcp: {upstream: 'http://h/'}}}",
        "services: {a: {on: b, mcp: {}}}",
        "services: {a: {on: b, mcp: {upstream: 'ftp://h/'}}}",
        "services: {a: {on: b, http: {command: [x]}}}",
        "tests: [{from: a, to: b}]",
        "tests: [{from: a, to: b, accept: {tools: [{a: 1}]}}]",
        "tests: [{from: a, to: b, accept: {tool: a}}]",
    ],
)
def test_what_the_language_refuses_is_not_valid(text: str) -> None:
    with pytest.raises(PolicyError):
        parse(text)
    assert faults(text)
