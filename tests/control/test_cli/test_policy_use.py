"""policy diff, history, rollback and explain, as commands against a real controller."""

from collections.abc import Iterator

import pytest

from .bench import Cli

POLICY = """\
grants:
  - {from: tag:caller, to: tag:callee, ip: [tcp:443, icmp], note: for the test}
"""


@pytest.fixture
def nodes(cli: Cli) -> Iterator[None]:
    """Two static peers: nodes without an agent."""
    names = {"caller": "tag:caller", "callee": "tag:callee"}
    for name, tag in names.items():
        done = cli("peer", "add", name, "--generate-key", "--tag", tag, "--output", f"{name}.conf")
        assert done.code == 0, done
    yield
    for name in names:
        assert cli("peer", "delete", name, "--yes").code == 0


def apply(cli: Cli, text: str) -> int:
    (cli.home / "applied.yaml").write_text(text)
    return int(cli("policy", "apply", "applied.yaml", "--json").json()["revision"])


@pytest.mark.usefixtures("nodes")
def test_diff_and_explain_follow_the_policy(cli: Cli) -> None:
    apply(cli, "grants: []\n")
    question = ("policy", "explain", "--from", "caller", "--to", "callee", "--port", "tcp:443")
    denied = cli(*question)
    assert denied.code == 1
    assert "denied: no grant names it" in denied.out
    assert cli("policy", "diff", "-", stdin=POLICY).out.splitlines()[1].split() == (
        ["caller", "callee", "icmp,", "tcp:443", "-"]
    )
    assert cli("policy", "diff", "-", "--json", stdin=POLICY).json()["pairs"] == 1
    apply(cli, POLICY)
    same = cli("policy", "diff", "-", stdin=POLICY)
    assert (same.code, same.out) == (0, "")
    assert "No access changes" in same.err
    allowed = cli(*question)
    assert allowed.code == 0
    assert "line 2, column 5: for the test" in allowed.out
    assert "offline" in allowed.out
    assert cli(*question, "--json").json()["allowed"] is True


def test_diff_places_errors_in_the_file(cli: Cli) -> None:
    (cli.home / "bad.yaml").write_text(POLICY.replace("443", "99999"))
    done = cli("policy", "diff", "bad.yaml")
    assert done.code == 1
    assert "bad.yaml:2:" in done.err


def test_rollback_puts_an_earlier_text_in_force_and_history_shows_both(cli: Cli) -> None:
    old, new = apply(cli, "grants: [] # old\n"), apply(cli, "grants: [] # new\n")
    done = cli("policy", "rollback", str(old))
    assert done.code == 0
    assert f"revision {old} is in force again" in done.err
    assert cli("policy", "show").out == "grants: [] # old\n"
    newest, *_ = found = cli("policy", "history", "--json", "--limit", "3").json()
    assert [one["revision"] for one in found[1:]] == [new, old]
    assert newest["text"] == "grants: [] # old\n"
    lines = cli("policy", "history", "--limit", "3").out.splitlines()
    assert [line.split()[0] for line in lines] == ["REVISION", str(newest["revision"]), str(new), str(old)]
    assert "already" in cli("policy", "rollback", str(old)).err


def test_rollback_to_what_never_was_names_the_remedy(cli: Cli) -> None:
    done = cli("policy", "rollback", "999999999")
    assert done.code == 1
    assert "wardmesh policy history" in done.err


@pytest.mark.usefixtures("nodes")
def test_explain_refuses_wrong_questions(cli: Cli) -> None:
    for source, port, said in (("nobody", "icmp", "nobody"), ("callee", "icmp", "itself"), ("caller", "ftp", "port")):
        done = cli("policy", "explain", "--from", source, "--to", "callee", "--port", port)
        assert done.code == 1
        assert said in done.err
