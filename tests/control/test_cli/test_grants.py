"""wardmesh grant: made, listed, shown, extended and revoked, as commands against a real controller."""

from collections.abc import Iterator
from datetime import datetime

import pytest

from .bench import Cli

GRANT = ("--from", "caller", "--to", "tag:callee", "--ip", "tcp:22", "--ip", "icmp", "--ttl", "1h", "--reason", "INC-7")


@pytest.fixture
def cli(cli: Cli) -> Iterator[Cli]:
    """With two static peers: nodes without an agent."""
    names = {"caller": "tag:caller", "callee": "tag:callee"}
    for name, tag in names.items():
        done = cli("peer", "add", name, "--generate-key", "--tag", tag, "--output", f"{name}.conf")
        assert done.code == 0, done
    yield cli
    for name in names:
        assert cli("peer", "delete", name, "--yes").code == 0


def test_a_grant_is_made_shown_explained_extended_and_revoked(cli: Cli) -> None:
    made = cli("grant", *GRANT)
    assert made.code == 0, made
    grant_id = made.out.strip()
    assert "node:caller -> tag:callee tcp:22 icmp, until" in made.err
    row = next(line for line in cli("grant", "list").out.splitlines() if line.startswith(grant_id))
    assert all(word in row for word in ("active", "node:caller", "tag:callee", "tcp:22 icmp", "token:wma_", "INC-7"))
    explained = cli("policy", "explain", "--from", "caller", "--to", "callee", "--port", "tcp:22")
    assert explained.code == 0
    assert f"temporary grant {grant_id}" in explained.out
    assert "by token:wma_" in explained.out
    assert ": INC-7" in explained.out
    before = cli("grant", "show", grant_id, "--json").json()
    extended = cli("grant", "extend", grant_id, "--ttl", "2h", "--json").json()
    assert datetime.fromisoformat(extended["expires"]) > datetime.fromisoformat(before["expires"])
    assert "is revoked" in cli("grant", "revoke", grant_id).err
    assert "is revoked" in cli("grant", "revoke", grant_id).err
    assert cli("policy", "explain", "--from", "caller", "--to", "callee", "--port", "tcp:22").code == 1
    assert grant_id not in cli("grant", "list").out
    assert "revoked" in next(line for line in cli("grant", "list", "--all").out.splitlines() if grant_id in line)
    assert "revoked" in cli("grant", "show", grant_id).out
    again = cli("grant", "extend", grant_id, "--ttl", "3h")
    assert again.code == 1
    assert "was revoked at" in again.err


def test_tools_of_a_service_are_granted_for_a_while(cli: Cli) -> None:
    (cli.home / "policy.yaml").write_text(
        "services: {github: {on: [tag:callee], mcp: {upstream: 'http://127.0.0.1:3000/mcp'}}}\n"
    )
    assert cli("policy", "apply", "policy.yaml").code == 0
    to = ("--from", "caller", "--to", "svc:github")
    question = ("policy", "explain", *to, "--tool", "create_issue", "--args")
    assert cli(*question, '{"repo": "web"}').code == 1
    refused = cli("grant", *to, "--ttl", "1h", "--reason", "INC-7")
    assert (refused.code, "name what may be called on it" in refused.err) == (1, True)
    calls = ("--tool", "get_*", "--tool", "create_issue", "--deny-tool", "get_secret", "--limit", "get_*=5/10s")
    rules = '{"create_issue": {"repo": {"equals": "web"}}}'
    made = cli("grant", *to, *calls, "--args", rules, "--ttl", "1h", "--reason", "INC-7", "--json").json()
    assert made["mcp"]["tools"] == ["get_*", "create_issue"]
    explained = cli(*question, '{"repo": "web"}')
    assert (explained.code, f"temporary grant {made['id']}" in explained.out) == (0, True)
    assert cli(*question, '{"repo": "api"}').code == 1
    shown = cli("grant", "show", made["id"]).out
    assert all(word in shown for word in ('["get_*", "create_issue"]', '["get_secret"]', '"5/10s"', '"equals": "web"'))
    assert "get_* create_issue" in next(line for line in cli("grant", "list").out.splitlines() if made["id"] in line)
    assert cli("grant", "revoke", made["id"]).code == 0
    assert cli(*question, '{"repo": "web"}').code == 1


def test_the_list_says_which_grants_nothing(cli: Cli) -> None:
    (cli.home / "policy.yaml").write_text("groups: {callers: [tag:caller]}\n")
    assert cli("policy", "apply", "policy.yaml").code == 0
    made = cli("grant", "--from", "group:callers", *GRANT[2:], "--json").json()
    assert made["from"] == ["group:callers"]
    (cli.home / "policy.yaml").write_text("grants: []\n")
    applied = cli("policy", "check", "policy.yaml")
    assert f"temporary grant {made['id']}" in applied.err
    assert cli("policy", "apply", "policy.yaml").code == 0
    listed = cli("grant", "list")
    assert f"{made['id']} grants nothing" in listed.err
    assert "there is no group 'callers'" in listed.err
    assert "idle" in listed.out
    assert cli("grant", "revoke", made["id"]).code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--from", "caler", *GRANT[2:]), 1, "did you mean 'caller'?"),
        ((*GRANT[:4], "--ip", "tcp:ssh", *GRANT[8:]), 1, "ip:"),
        (GRANT[:-2], 2, "--reason"),
        (GRANT[:8], 2, "--ttl and --reason"),
        ((*GRANT[:9], "soon", *GRANT[10:]), 2, "not a duration"),
        ((*GRANT[:9], "31d", *GRANT[10:]), 1, "longer than this controller allows"),
        ((*GRANT, "list"), 2, "--from belongs after `list`"),
        ((*GRANT, "--tool", "x"), 1, "is no service with mcp"),
        ((*GRANT, "--tool", "x", "--args", "[]"), 2, "--args '[]' is not a JSON object"),
        ((*GRANT, "--tool", "x", "--limit", "5/s"), 2, "--limit '5/s' names no tool"),
        (("--tool", "x", "list"), 2, "--tool belongs after `list`"),
        (("show", "t00"), 1, "no temporary grant 't00'"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(cli: Cli, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = cli("grant", *arguments)
    assert done.code == code, done
    assert said in done.err


def test_the_help_has_the_form_that_makes_a_grant(cli: Cli) -> None:
    for arguments in ((), ("--help",)):
        said = cli("grant", *arguments)
        assert "wardmesh grant --from alice" in said.out + said.err
