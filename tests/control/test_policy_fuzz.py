"""Malformed policy documents over REST: each is accepted, or refused with the place of each fault, never half of it.

The documents come from valid ones by small damage, as a hand or a broken editor does it. The seed is printed;
WARDMESH_FUZZ_SEED repeats a run.
"""

import json
import os
import random
import secrets
from collections.abc import Callable
from typing import Any, Final

import pytest

from controller.policy.findings import Findings
from controller.policy.reader import Reader
from controller.policy.tree import read_tree
from controller.server import Running

from .hosts import new_node
from .support import Client

pytestmark = pytest.mark.fresh_input

DOCUMENTS: Final = 1000
PUT_EVERY: Final = 5
VALID: Final = """\
hosts:
  lab: 100.64.0.0/10
  six: fd77:7761:7264::/48
tags:
  tag:agents: [group:ops]
  tag:tools: []
groups:
  ops: [tag:agents, alice]
services:
  db: {on: [tag:tools], port: 5432}
  files: {on: tag:tools, port: 3000, kind: mcp}
  github:
    on: [tag:tools, group:ops]
    mcp:
      upstream: "http://127.0.0.1:3000/mcp"
      path: /mcp
      origins: ["https://app.example.com"]
      limits: {body: 65536, calls: 100/10s, cool_down: 2.5}
      audit: {arguments: true, mask: ["*pin*"], full: drop}
  notes:
    on: bob
    mcp: {command: [notes, --dir, /srv], environment: {LANG: C}, directory: /srv, per: caller, local_files: true}
  models: {on: tag:tools, http: {upstream: "http://127.0.0.1:8000"}}
grants:
  - {from: tag:agents, to: [svc:db, svc:models, svc:files]}
  - from: tag:agents
    to: svc:github
    mcp:
      tools: [search_*, get_file]
      deny_tools: [search_secrets]
      resources: ["file:///srv/**"]
      prompts: review
      methods: ["tasks/*"]
      args:
        get_file:
          path: {under: [/project-x]}
          ref: {pattern: "[a-z]+", optional: true}
          lines: {range: {min: 1, max: 500}, one_of: [1, 2.5, "x"], each: true}
          url: {host: ["*.example.com"], equals: {a: [null, true]}}
      schemas: {get_file: {type: object, required: [path]}}
      limits: {get_file: 500/10s}
  - from: [tag:agents, group:ops]
    to: [tag:tools, host:lab]
    ip: [tcp:443, udp:53, tcp:8000-8100, icmp]
    note: agents call tools
    expires: 2099-01-31T18:00:00Z
  - {from: node:bob, to: alice, ip: "*"}
tests:
  - from: tag:agents
    to: tag:tools
    accept: [tcp:443]
    deny: [tcp:22, "udp:54"]
  - from: tag:agents
    to: svc:github
    accept:
      tools: [search_code]
      prompts: [review]
    deny: {tools: [search_secrets, {get_file: {path: /etc/passwd}}], resources: "file:///etc/passwd"}
"""
TREE: Final = read_tree(VALID)
assert TREE is not None
BASES: Final = (VALID, json.dumps(Reader(Findings()).json(TREE), indent=1), "grants: []\n")
PIECES: Final = (
    *":-[]{},\"'*&!|>%@`#?\t\n ",
    *("tcp:", "udp:", "icmp", "65536", "0", "-1", "~", "null", "tag:", "group:", "node:", "host:", "/33", "::", "=>"),
    *("svc:", "svc:github", "mcp: {}", "tools: []", "http:", "/10s", "true", "1e308", "(?=", "/../", "%2e", "command:"),
    *("<<: *a", "&a ", "!!python/object:os.system ", "---\n", "...\n", "%YAML 9.9\n", "2026-13-01", "1e999", "0x1F"),
    *("\u2028", "\x85", "\ufeff", "\u202e", "\u00e9", "\U0001d400", "[" * 40, "{a: " * 20, "9" * 400, "grants:\n"),
)
Damage = Callable[[random.Random, str], str]


def insert(chance: random.Random, text: str) -> str:
    at = chance.randint(0, len(text))
    return f"{text[:at]}{chance.choice(PIECES)}{text[at:]}"


def cut(chance: random.Random, text: str) -> str:
    at = chance.randint(0, len(text))
    return text[:at] + text[at + chance.randint(1, 12) :]


def truncate(chance: random.Random, text: str) -> str:
    return text[: chance.randint(0, len(text))]


def repeat(chance: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [text]
    at = chance.randrange(len(lines))
    return "".join([*lines[:at], lines[at] * chance.randint(2, 4), *lines[at + 1 :]])


def swap(chance: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [text]
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    lines[one], lines[other] = lines[other], lines[one]
    return "".join(lines)


def indent(chance: random.Random, text: str) -> str:
    lines = text.splitlines(keepends=True) or [text]
    at = chance.randrange(len(lines))
    lines[at] = chance.choice((" ", "  ", "\t", "- ", "")) + lines[at].lstrip(" " if chance.random() < 0.5 else "")
    return "".join(lines)


DAMAGES: Final[tuple[Damage, ...]] = (insert, insert, cut, truncate, repeat, swap, indent)


def malformed(chance: random.Random) -> str:
    text = chance.choice(BASES)
    for _ in range(chance.randint(1, 3)):
        text = chance.choice(DAMAGES)(chance, text)
    return text


def assert_located(findings: list[dict[str, Any]], text: str) -> None:
    errors = [finding for finding in findings if finding["severity"] == "error"]
    assert errors, text
    for error in errors:
        assert error["message"], text
        # The end of a text that has no last newline may be counted as the line after it.
        assert 1 <= error["line"] <= len(text.split("\n")) + text.count("\u2028") + text.count("\x85") + 1, (
            error,
            text,
        )
        assert error["column"] >= 1, (error, text)


@pytest.mark.timeout(600)  # seconds; a thousand documents where other tests run, too
async def test_a_malformed_document_is_accepted_or_refused_with_its_place(
    controller: Running, admin: Client, anyone: Client
) -> None:
    seed = int(os.environ.get("WARDMESH_FUZZ_SEED") or secrets.randbelow(2**32))
    print(f"WARDMESH_FUZZ_SEED={seed}")
    chance = random.Random(seed)
    for name, tag in (("alice", "tag:agents"), ("bob", "tag:tools")):
        await new_node(admin, anyone, name, tags=[tag])
    first = await admin.put("/policy", json={"text": VALID}, headers={"if-match": "*"})
    assert first.status_code == 200, first.text
    in_force = first.json()
    accepted = 0
    for number in range(DOCUMENTS):
        text = malformed(chance)
        answer = await admin.post("/policy/check", json={"text": text})
        assert answer.status_code == 200, (answer.text, text)
        report = answer.json()
        accepted += report["ok"]
        if not report["ok"]:
            assert_located(report["findings"], text)
        if number % PUT_EVERY == 0:
            in_force = await put(admin, text, report["ok"], in_force)
            assert (await admin.get("/policy")).json() == in_force, text
            assert controller.context.hub.policy()[0] == in_force["revision"]
    print(f"{accepted} of {DOCUMENTS} accepted")
    assert 0 < accepted < DOCUMENTS / 2  # else the damage is too great, or too small, to say anything


async def put(admin: Client, text: str, ok: bool, in_force: dict[str, Any]) -> dict[str, Any]:
    """The policy that must be in force afterwards."""
    answer = await admin.put("/policy", json={"text": text}, headers={"if-match": f'"{in_force["revision"]}"'})
    found: dict[str, Any] = answer.json()
    if ok:
        assert (answer.status_code, found["text"]) == (200, text), answer.text
        return found
    assert (answer.status_code, found["type"]) == (422, "urn:wardmesh:problem:policy-refused"), (answer.text, text)
    assert_located(found["errors"], text)
    return in_force
