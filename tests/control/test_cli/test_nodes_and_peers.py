"""node and peer, against static peers: they are nodes that need no host."""

import re
import stat
import subprocess
from collections.abc import Iterator

import pytest

from .bench import Cli


@pytest.fixture
def peer(cli: Cli, request: pytest.FixtureRequest) -> Iterator[str]:
    """A static peer with a name of its own, gone after the test."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[-40:].strip("-")
    assert cli("peer", "add", name, "--generate-key", "--tag", "tag:people", "--json").json()
    (cli.home / f"{name}.conf").rename(cli.home / "peer.conf")
    yield name
    cli("peer", "delete", name, "--yes")


def test_a_generated_key_stays_on_this_machine(cli: Cli, peer: str) -> None:
    path = cli.home / "peer.conf"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    private = re.search(r"^PrivateKey = (\S+)$", path.read_text(), re.MULTILINE)
    assert private
    public = subprocess.run(["wg", "pubkey"], input=private[1], capture_output=True, text=True, check=True).stdout
    node = cli("node", "show", peer, "--json").json()
    assert node["public_key"] == public.strip()
    assert private[1] not in cli("audit", "list", "--json").out + cli("peer", "config", peer).out


def test_the_wg_quick_file_is_one_that_wg_quick_takes(cli: Cli, peer: str) -> None:
    stripped = subprocess.run(
        ["wg-quick", "strip", cli.home / "peer.conf"], capture_output=True, text=True, check=True
    ).stdout
    assert stripped.count("[Interface]") == 1
    assert "PrivateKey = " in stripped
    address = cli("node", "show", peer, "--json").json()["addresses"][0]
    assert address in (cli.home / "peer.conf").read_text()


def test_a_file_without_a_peer_is_said_to_be_one(cli: Cli, peer: str) -> None:
    done = cli("peer", "config", peer)
    assert "[Peer]" not in done.out
    assert f"wardmesh peer config {peer}" in done.err


def test_json_does_not_repeat_the_file_with_the_private_key(cli: Cli) -> None:
    done = cli("peer", "add", "quiet", "--generate-key", "--json")
    assert done.json()["file"] == "quiet.conf"
    assert "PrivateKey" not in done.out
    assert cli("peer", "delete", "quiet", "--yes").code == 0


def test_a_public_key_gives_a_file_without_a_private_one(cli: Cli) -> None:
    private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True).stdout.strip()
    done = cli("peer", "add", "nas", "--public-key", public)
    assert done.code == 0, done
    assert "[Interface]" in done.out
    assert not re.search(r"^PrivateKey", done.out, re.MULTILINE)
    (cli.home / "nas.key").write_text(private)
    complete = cli("peer", "config", "nas", "--key-from", "nas.key").out
    assert f"PrivateKey = {private.strip()}" in complete
    assert cli("peer", "delete", "nas", "--yes").code == 0


def test_config_is_renewed_in_place_with_the_key_of_the_old_file(cli: Cli, peer: str) -> None:
    path = cli.home / "peer.conf"
    before = path.read_text()
    refused = cli("peer", "config", peer, "--key-from", path, "-o", path)
    assert refused.code == 1
    assert "--force" in refused.err
    assert path.read_text() == before
    assert cli("peer", "config", peer, "--key-from", path, "-o", path, "--force").code == 0
    assert re.findall("PrivateKey.*", path.read_text()) == re.findall("PrivateKey.*", before)


def test_config_refuses_the_key_of_another_peer(cli: Cli, peer: str) -> None:
    private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout
    done = cli("peer", "config", peer, "--key-from", "-", stdin=private)
    assert done.code == 2
    assert private.strip() not in done.err
    assert peer in done.err


def test_an_existing_file_is_refused_before_the_peer_is_made(cli: Cli) -> None:
    (cli.home / "taken.conf").write_text("mine")
    done = cli("peer", "add", "taken", "--generate-key")
    assert done.code == 2
    assert (cli.home / "taken.conf").read_text() == "mine"
    assert cli("node", "show", "taken").code == 1


def test_a_file_that_cannot_be_written_leaves_no_peer(cli: Cli) -> None:
    (cli.home / "notdir").write_text("")
    done = cli("peer", "add", "lost", "--generate-key", "-o", "notdir/lost.conf")
    assert done.code == 1
    assert "notdir" in done.err
    assert cli("node", "show", "lost").code == 1


def test_a_qr_code_is_shown_and_no_file_written(cli: Cli) -> None:
    done = cli("peer", "add", "scanned", "--generate-key", "--qr")
    assert done.code == 0, done
    assert done.out.count("█") > 100
    assert not (cli.home / "scanned.conf").exists()
    assert cli("peer", "delete", "scanned", "--yes").code == 0


def test_a_name_that_is_taken_is_the_controllers_problem_passed_on(cli: Cli, peer: str) -> None:
    problem = cli("peer", "add", peer, "--generate-key", "-o", "other.conf", "--json").problem()
    assert problem["status"] == 409
    assert problem["type"].startswith("urn:wardmesh:problem:")
    assert peer in problem["detail"]
    assert not (cli.home / "other.conf").exists()


def test_nodes_are_named_by_name_or_id(cli: Cli, peer: str) -> None:
    by_name = cli("node", "show", peer, "--json").json()
    assert cli("node", "show", by_name["id"], "--json").json() == by_name


@pytest.mark.parametrize("name", ["nosuchnode", "No Such", "../policy", "a/b", "", "ñ"])
def test_a_node_that_is_not_there_is_named(cli: Cli, name: str) -> None:
    done = cli("node", "show", name)
    assert done.code == 1
    assert repr(name) in done.err
    assert "wardmesh node list" in done.err


def test_list_has_a_line_a_node_for_pipes(cli: Cli, peer: str) -> None:
    lines = [line for line in cli("node", "list").out.splitlines() if line.split()[0] == peer]
    assert len(lines) == 1
    assert "tag:people" in lines[0]
    names = [node["name"] for node in cli("node", "list", "--tag", "tag:people", "--json").json()]
    assert peer in names
    assert peer in cli("peer", "list").out
    assert peer not in [node["name"] for node in cli("node", "list", "--kind", "agent", "--json").json()]


def test_rename_keeps_address_and_key(cli: Cli, peer: str) -> None:
    before = cli("node", "show", peer, "--json").json()
    after = cli("node", "rename", peer, "renamed", "--json").json()
    assert after["name"] == "renamed"
    assert {k: after[k] for k in ("id", "addresses", "public_key")} == {
        k: before[k] for k in ("id", "addresses", "public_key")
    }
    assert cli("node", "rename", "renamed", peer).code == 0


def test_tags_are_added_removed_set_and_cleared(cli: Cli, peer: str) -> None:
    def tags(*arguments: str) -> list[str]:
        found: list[str] = cli("node", "tag", peer, *arguments, "--json").json()["tags"]
        return found

    assert tags("--add", "tag:a", "--add", "tag:b", "--remove", "tag:people") == ["tag:a", "tag:b"]
    assert tags("--set", "tag:c") == ["tag:c"]
    assert tags("--clear") == []
    assert cli("node", "tag", peer, "--add", "nonsense").code == 2


def test_disable_and_enable_and_their_repetition(cli: Cli, peer: str) -> None:
    for verb, state in (("disable", "disabled"), ("disable", "disabled"), ("enable", "active"), ("enable", "active")):
        assert cli("node", verb, peer, "--json").json()["state"] == state
    cli("node", "disable", peer)
    done = cli("node", "approve", peer)
    assert done.code == 2
    assert "enable" in done.err


def test_delete_refuses_to_guess_without_a_terminal(cli: Cli, peer: str) -> None:
    done = cli("node", "delete", peer)
    assert done.code == 2
    assert "--yes" in done.err
    assert cli("node", "show", peer).code == 0


def test_delete_asks_on_a_terminal(cli: Cli, peer: str) -> None:
    assert cli.on_terminal("node", "delete", peer, prompt="[y/N]", answer="n").code == 1
    assert cli("node", "show", peer).code == 0
    assert cli.on_terminal("node", "delete", peer, prompt="[y/N]", answer="y").code == 0
    assert cli("node", "show", peer).code == 1


def test_ctrl_c_at_the_question_exits_130_and_deletes_nothing(cli: Cli, peer: str) -> None:
    assert cli.on_terminal("node", "delete", peer, prompt="[y/N]", answer=None).code == 130
    assert cli("node", "show", peer).code == 0


def test_peer_commands_say_when_a_node_is_not_there(cli: Cli) -> None:
    assert "nosuchpeer" in cli("peer", "delete", "nosuchpeer", "--yes").err
