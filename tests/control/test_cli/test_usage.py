"""What a new user meets: help with examples, wrong arguments, no login, nobody there."""

import json
import re
import subprocess

import pytest
from typer.testing import CliRunner

from controller.client.app import app
from controller.client.verbs import VERBS

from .bench import BIN, Cli, free_port

COMMANDS = [
    "",
    "login",
    "logout",
    "status",
    "ca",
    "node",
    "node list",
    "node show",
    "node rename",
    "node tag",
    "node approve",
    "node disable",
    "node enable",
    "node delete",
    "key",
    "key create",
    "key list",
    "key show",
    "key revoke",
    "peer",
    "peer add",
    "peer list",
    "peer config",
    "peer delete",
    "policy",
    "policy show",
    "policy check",
    "policy apply",
    "policy diff",
    "policy history",
    "policy rollback",
    "policy schema",
    "policy counters",
    "policy explain",
    "grant",
    "grant list",
    "grant show",
    "grant extend",
    "grant revoke",
    "service",
    "service list",
    "service show",
    "service move",
    "path",
    "path list",
    "path netcheck",
    "relay",
    "relay list",
    "relay show",
    "audit",
    "audit list",
    "audit denied",
    "audit calls",
    "token",
    "token create",
    "token list",
    "token revoke",
]


def help_of(command: str) -> str:
    """In this process: it has no other effect, and thirty starts of an interpreter are slow."""
    done = CliRunner().invoke(app, [*command.split(), "--help"], prog_name="wardmesh")
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_of_its_command(command: str) -> None:
    examples = help_of(command).partition("Examples")[2]
    assert f"wardmesh {command}".rstrip() in examples


def test_the_list_of_commands_here_is_complete() -> None:
    """A new command is not forgotten above: the groups' own lists are compared with it."""
    for group in sorted({command.rpartition(" ")[0] for command in COMMANDS}):
        panel = help_of(group).partition("Commands")[2].partition("╰")[0]
        named = set(re.findall(r"^│ ([a-z]+) ", panel, re.MULTILINE))
        listed = {command.split()[-1] for command in COMMANDS if command and " ".join(command.split()[:-1]) == group}
        assert named == listed


@pytest.mark.parametrize("name", VERBS)
def test_the_list_of_verbs_says_of_each_what_its_own_help_says(name: str) -> None:
    own = VERBS[name].load(name).help
    assert own.partition("\n\n")[0].replace("\n", " ") == VERBS[name].help


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("node",),
        ("frobnicate",),
        ("node", "show"),
        ("node", "list", "--frobnicate"),
        ("node", "list", "--state", "asleep"),
        ("key", "create", "--uses", "0"),
        ("key", "create", "--uses", "2", "--unlimited"),
        ("key", "create", "--ttl", "soon"),
        ("key", "create", "--tag", "web"),
        ("peer", "add", "phone"),
        ("peer", "add", "Phone", "--generate-key"),
        ("peer", "add", "phone", "--public-key", "AAAA"),
        ("node", "tag", "db1"),
        ("node", "tag", "db1", "--set", "tag:a", "--add", "tag:b"),
    ],
)
def test_wrong_usage_exits_2(nobody: Cli, arguments: tuple[str, ...]) -> None:
    assert nobody(*arguments).code == 2


def test_wrong_usage_names_the_help_that_explains_it(nobody: Cli) -> None:
    assert "`wardmesh key create --help`" in nobody("key", "create", "--frobnicate").err


def test_a_misspelt_command_is_answered_with_the_one_that_was_meant(nobody: Cli) -> None:
    assert "Did you mean 'relay'? See `wardmesh --help`" in nobody("relya").err


def test_wrong_usage_with_json_is_a_problem(nobody: Cli) -> None:
    done = nobody("key", "create", "--tag", "web", "--json")
    assert done.code == 2
    assert done.problem()["detail"] == "'web' is not a tag: write it as tag:NAME"
    assert done.out == ""


@pytest.mark.parametrize("command", [c for c in COMMANDS if c in {"status", "node list", "key create", "policy show"}])
def test_without_a_login_the_remedy_is_named(nobody: Cli, command: str) -> None:
    done = nobody(*command.split())
    assert done.code == 1
    assert "wardmesh login URL" in done.err
    assert done.out == ""


def test_nobody_there_names_the_url_and_the_remedy(nobody: Cli) -> None:
    url = f"https://127.0.0.1:{free_port()}"
    done = Cli(nobody.home, {"WARDMESH_URL": url, "WARDMESH_TOKEN": "wma_x"})("status")
    assert done.code == 1
    assert url in done.err
    assert "wardmesh-controller serve" in done.err


def test_a_host_name_that_does_not_exist_names_the_url(nobody: Cli) -> None:
    done = Cli(nobody.home, {"WARDMESH_URL": "https://controller.invalid", "WARDMESH_TOKEN": "wma_x"})("node", "list")
    assert done.code == 1
    assert "https://controller.invalid" in done.err


def test_version(nobody: Cli) -> None:
    assert nobody("--version").out.startswith("wardmesh ")


def test_a_reader_that_goes_away_is_no_traceback(cli: Cli) -> None:
    for _ in range(3):
        cli("token", "create", "--role", "read", "--ttl", "1h", "--note", "x" * 200)
    done = subprocess.run(
        ["bash", "-c", f"{BIN}/wardmesh audit list --json --limit 500 | true"],
        capture_output=True,
        text=True,
        env=cli.environment(),
        check=False,
    )
    assert done.stderr == ""


def test_problems_of_both_sides_have_one_form(nobody: Cli, cli: Cli) -> None:
    here = json.loads(nobody("node", "show", "a/b", "--json").err)
    there = json.loads(cli("key", "show", "nosuchkey", "--json").err)
    assert set(here) == set(there) >= {"type", "title", "status", "detail"}
    assert there["status"] == 404
