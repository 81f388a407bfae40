"""Documents with services, for the tests of what they mean."""

from typing import Any

import pytest

from controller.policy import PolicyError, parse
from controller.wire.rest import PolicyFinding

from .mesh_fleet import fleet, node

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


def granting(rest: str, to: str = "svc:github") -> str:
    """The services, and a grant to one of them."""
    return f"{SERVICES}grants:\n  - {{from: tag:agents, to: {to}, {rest}}}\n"
