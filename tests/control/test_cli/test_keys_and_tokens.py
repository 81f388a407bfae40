"""key and token: the secret is shown once, alone on standard output, and never again."""

from controller.wire.enrol import JoinString

from .bench import Cli, Controller


def test_create_prints_the_join_string_alone(cli: Cli, controller: Controller) -> None:
    done = cli("key", "create", "--tag", "tag:mcp", "--note", "rack 1")
    assert done.code == 0, done
    join = JoinString.decode(done.out)
    assert done.out == join.encode() + "\n"
    assert join.url == controller.url
    assert join.key not in done.err


def test_a_key_is_listed_shown_and_revoked_without_its_secret(cli: Cli) -> None:
    created = cli("key", "create", "--uses", "3", "--ttl", "2h", "--note", "autumn", "--json").json()
    key_id, secret = created["key"]["id"], JoinString.decode(created["join"]).key
    assert created["key"]["uses"] == 3
    for shown in (cli("key", "list"), cli("key", "show", key_id), cli("key", "list", "--json")):
        assert key_id in shown.out
        assert secret not in shown.out
    assert cli("key", "revoke", key_id).code == 2
    assert cli("key", "show", key_id, "--json").json()["revoked"] is None
    assert cli("key", "revoke", key_id, "--yes", "--json").json()["revoked"]
    assert "revoked" in cli("key", "show", key_id).out


def test_an_unlimited_key_has_no_limit(cli: Cli) -> None:
    created = cli("key", "create", "--unlimited", "--ephemeral", "--approval", "--json").json()["key"]
    assert (created["uses"], created["ephemeral"], created["approved"]) == (None, True, False)


def test_a_note_cannot_repaint_the_terminal(cli: Cli) -> None:
    note = "evil \x1b[2J [red]note"
    key_id = cli("key", "create", "--note", note, "--json").json()["key"]["id"]
    line = next(line for line in cli("key", "list").out.splitlines() if key_id in line)
    assert "\x1b" not in line
    assert "[red]note" in line


def test_a_read_token_may_look_and_not_change(cli: Cli, nobody: Cli, controller: Controller) -> None:
    done = cli("token", "create", "--role", "read", "--ttl", "1h", "--note", "dashboard")
    assert done.code == 0, done
    token = done.out.strip()
    assert token.startswith("wma_")
    variables = {
        "WARDMESH_URL": controller.url,
        "WARDMESH_TOKEN": token,
        "WARDMESH_CA": str(controller.state_dir / "ca.pem"),
    }
    reader = Cli(nobody.home, variables)
    assert reader("node", "list").code == 0
    assert reader("key", "create", "--json").problem()["status"] == 403


def test_a_revoked_token_is_refused_at_its_next_request(cli: Cli, nobody: Cli, controller: Controller) -> None:
    created = cli("token", "create", "--role", "read", "--json").json()
    variables = {
        "WARDMESH_URL": controller.url,
        "WARDMESH_TOKEN": created["secret"],
        "WARDMESH_CA": str(controller.state_dir / "ca.pem"),
    }
    reader = Cli(nobody.home, variables)
    assert reader("status").code == 0
    token_id = created["token"]["id"]
    assert cli("token", "revoke", token_id, "--yes").code == 0
    assert reader("status", "--json").problem()["status"] == 401
    listed = cli("token", "list").out
    assert created["secret"] not in listed
    assert cli("token", "revoke", "nosuchtoken", "--yes").code == 1
