"""policy and audit: a document travels from a file into force, and leaves a trace."""

import json
import re
import select
import subprocess
import time

from jsonschema_rs import Draft202012Validator

from .bench import Cli

GOOD = """\
grants:
  - from: [tag:agents]
    to: [tag:mcp]
    ip: [tcp:8000]
"""
BAD = """\
grants:
  - from: [tag:agents]
    to: [tag:mcp]
    ip: [tcp:99999]
"""


def test_check_accepts_and_changes_nothing(cli: Cli) -> None:
    (cli.home / "policy.yaml").write_text(GOOD)
    before = cli("policy", "show", "--json").json()
    done = cli("policy", "check", "policy.yaml", "--json")
    assert done.json()["ok"] is True
    assert cli("policy", "check", "-", stdin=GOOD).code == 0
    assert cli("policy", "show", "--json").json() == before


def test_check_places_each_error_and_exits_1(cli: Cli) -> None:
    (cli.home / "policy.yaml").write_text(BAD)
    done = cli("policy", "check", "policy.yaml")
    assert done.code == 1
    assert re.search(r"^policy\.yaml:4:\d+: error: .*99999", done.err, re.MULTILINE)


def test_apply_puts_the_text_in_force_as_it_was_written(cli: Cli) -> None:
    text = GOOD + "# a comment that must survive\n"
    (cli.home / "policy.yaml").write_text(text)
    applied = cli("policy", "apply", "policy.yaml", "--json").json()
    assert applied["text"] == text
    assert cli("policy", "show").out == text
    again = cli("policy", "apply", "policy.yaml", "--json").json()
    assert again["revision"] == applied["revision"]


def test_apply_refuses_errors_with_their_place(cli: Cli) -> None:
    before = cli("policy", "show", "--json").json()
    (cli.home / "policy.yaml").write_text(BAD)
    done = cli("policy", "apply", "policy.yaml")
    assert done.code == 1
    assert re.search(r"policy\.yaml:4:\d+: .*99999", done.err)
    assert cli("policy", "apply", "policy.yaml", "--json").problem()["errors"]
    assert cli("policy", "show", "--json").json() == before


def test_apply_if_revision_refuses_when_somebody_was_faster(cli: Cli) -> None:
    (cli.home / "a.yaml").write_text(GOOD)
    (cli.home / "b.yaml").write_text(GOOD.replace("8000", "9000"))
    old = cli("policy", "apply", "a.yaml", "--json").json()["revision"]
    new = cli("policy", "apply", "b.yaml", "--json").json()["revision"]
    refused = cli("policy", "apply", "a.yaml", "--if-revision", str(old))
    assert refused.code == 1
    assert str(new) in refused.err
    assert cli("policy", "apply", "a.yaml", "--if-revision", str(new)).code == 0


def test_an_empty_or_missing_file_is_refused(cli: Cli) -> None:
    (cli.home / "empty.yaml").write_text("\n")
    assert "empty.yaml" in cli("policy", "apply", "empty.yaml").err
    assert "nowhere.yaml" in cli("policy", "apply", "nowhere.yaml").err
    (cli.home / "latin.yaml").write_bytes(b"grants: [] # \xe9\n")
    assert "UTF-8" in cli("policy", "check", "latin.yaml").err


def test_audit_lists_changes_newest_first_with_filters(cli: Cli) -> None:
    for note in ("first", "second"):
        cli("key", "create", "--note", note)
    entries = cli("audit", "list", "--limit", "2", "--json").json()
    assert [entry["new"]["note"] for entry in entries] == ["second", "first"]
    assert entries[0]["previous"] == entries[1]["hash"]
    action = entries[0]["action"]
    assert {entry["action"] for entry in cli("audit", "list", "--action", action, "--json").json()} == {action}
    assert len(cli("audit", "list", "--limit", "2").out.splitlines()) == 3


def test_audit_follow_prints_new_entries_and_ctrl_c_exits_130(cli: Cli) -> None:
    process = cli.start("audit", "list", "--follow", "--limit", "1", "--json")
    try:
        assert process.stdout is not None
        first = json.loads(_line(process))
        cli("key", "create", "--note", "followed")
        entry = json.loads(_line(process))
        assert entry["seq"] > first["seq"]
        assert entry["new"]["note"] == "followed"
        process.send_signal(2)
        _, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (130, b"")
    finally:
        process.kill()
        process.communicate()


def _line(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    assert select.select([process.stdout], [], [], deadline - time.monotonic())[0]
    return process.stdout.readline()


def test_what_was_denied_is_nothing_where_no_host_is(cli: Cli) -> None:
    assert cli("audit", "denied", "--json").json() == []
    assert cli("audit", "denied").out == ""
    done = cli("audit", "denied", "--node", "nobody")
    assert done.code == 1
    assert "nobody" in done.err


def test_the_schema_of_documents_is_printed(cli: Cli) -> None:
    schema = cli("policy", "schema").json()
    assert schema["properties"]["grants"]["description"]
    assert Draft202012Validator(schema).is_valid({"grants": []})
    assert not Draft202012Validator(schema).is_valid({"grant": []})
