"""Which controller is believed, and where the token may come from."""

import json
import ssl
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .bench import Cli, Controller, free_port, running_controller


@pytest.fixture
def ca(nobody: Cli, controller: Controller) -> tuple[Path, str]:
    """The controller's CA as a file, and its fingerprint as openssl prints it."""
    path = nobody.home / "ca.pem"
    path.write_text(ssl.get_server_certificate(("127.0.0.1", controller.port)))
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-fingerprint", "-sha256", "-in", controller.state_dir / "ca.pem"],
        capture_output=True,
        text=True,
        check=True,
    )
    path.write_bytes((controller.state_dir / "ca.pem").read_bytes())
    return path, done.stdout.strip()


def test_login_with_a_ca_file_saves_a_session_only_its_owner_can_read(
    nobody: Cli, controller: Controller, ca: tuple[Path, str]
) -> None:
    done = nobody("login", controller.url, "--ca", ca[0], "--token-file", "-", stdin=controller.token + "\n")
    assert done.code == 0, done
    assert stat.S_IMODE(nobody.saved.stat().st_mode) == 0o600
    assert stat.S_IMODE(nobody.saved.parent.stat().st_mode) == 0o700
    assert nobody("status", "--json").json()["mesh"]["name"]
    assert controller.token not in done.out + done.err


def test_login_takes_the_fingerprint_as_openssl_prints_it(
    nobody: Cli, controller: Controller, ca: tuple[Path, str]
) -> None:
    done = nobody("login", controller.url, "--ca-sha256", ca[1], stdin=controller.token)
    assert done.code == 0, done


def test_login_refuses_another_fingerprint_before_it_asks_for_the_token(nobody: Cli, controller: Controller) -> None:
    done = nobody("login", controller.url, "--ca-sha256", "00" * 32, "--json", stdin=controller.token)
    assert done.problem()["type"].endswith(":untrusted")
    assert not nobody.saved.exists()


def test_login_without_a_terminal_does_not_trust_an_unknown_ca(nobody: Cli, controller: Controller) -> None:
    done = nobody("login", controller.url, stdin=controller.token)
    assert done.code == 2
    assert "--ca-sha256" in done.err
    assert not nobody.saved.exists()


def test_login_shows_the_fingerprint_and_asks(nobody: Cli, controller: Controller, ca: tuple[Path, str]) -> None:
    token_file = nobody.home / "token"
    token_file.write_text(controller.token)
    asked = ("login", controller.url, "--token-file", token_file)
    declined = nobody.on_terminal(*asked, prompt="[y/N]", answer="")
    assert declined.code == 1
    assert ca[1].partition("=")[2].replace(":", "").lower() in declined.out
    assert not nobody.saved.exists()
    agreed = nobody.on_terminal(*asked, prompt="[y/N]", answer="y")
    assert agreed.code == 0, agreed
    assert nobody("status").code == 0


def test_login_asks_for_the_token_without_echo(nobody: Cli, controller: Controller, ca: tuple[Path, str]) -> None:
    done = nobody.on_terminal("login", controller.url, "--ca", ca[0], prompt="token for", answer=controller.token)
    assert done.code == 0, done
    assert controller.token not in done.out


def test_ctrl_c_at_the_token_prompt_exits_130(nobody: Cli, controller: Controller, ca: tuple[Path, str]) -> None:
    done = nobody.on_terminal("login", controller.url, "--ca", ca[0], prompt="token for", answer=None)
    assert done.code == 130
    assert not nobody.saved.exists()


def test_login_refuses_a_token_the_controller_does_not_know(nobody: Cli, controller: Controller) -> None:
    done = nobody("login", controller.url, "--yes", "--json", stdin="wma_" + "A" * 40)
    assert done.problem()["status"] == 401
    assert not nobody.saved.exists()


def test_login_refuses_what_is_no_token_and_does_not_repeat_it(nobody: Cli, controller: Controller) -> None:
    done = nobody("login", controller.url, "--yes", stdin="hunter2")
    assert done.code == 2
    assert "hunter2" not in done.out + done.err


def test_a_second_login_keeps_the_pinned_ca_and_notices_another(
    nobody: Cli, cli: Cli, controller: Controller, tmp_path: Path
) -> None:
    again = cli("login", controller.url, stdin=controller.token)  # pinned before: nothing to ask
    assert again.code == 0, again
    with running_controller(tmp_path) as impostor:
        saved = json.loads(cli.saved.read_text())
        cli.saved.write_text(json.dumps(saved | {"url": impostor.url}))
        done = cli("login", impostor.url, "--json", "--yes", stdin=impostor.token)
        assert done.problem()["type"].endswith(":untrusted")
        assert "pin" in done.problem()["detail"]
        assert cli("status", "--json").problem()["type"].endswith(":untrusted")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("http://127.0.0.1:1",), "https"),
        (("https://127.0.0.1:1/path",), "https://mesh.example.com"),
        (("https://127.0.0.1:99999",), "99999"),
        (("https://127.0.0.1:1", "--ca", "nowhere.pem"), "nowhere.pem"),
        (("https://127.0.0.1:1", "--ca-sha256", "abc"), "64 hexadecimal"),
        (("https://127.0.0.1:1", "--ca-sha256", "00" * 32, "--ca", "x"), "one of them"),
    ],
)
def test_login_says_what_is_wrong_with_an_argument(nobody: Cli, arguments: tuple[str, ...], said: str) -> None:
    done = nobody("login", *arguments, stdin="wma_x")
    assert done.code in {1, 2}
    assert said in done.err


def test_logout_forgets_and_may_be_repeated(cli: Cli) -> None:
    assert cli("logout", "--json").json() == {"removed": True}
    assert cli("logout", "--json").json() == {"removed": False}
    assert cli("status", "--json").problem()["type"].endswith(":not-logged-in")


def test_the_environment_replaces_the_saved_session_as_a_whole(
    nobody: Cli, cli: Cli, controller: Controller, ca: tuple[Path, str]
) -> None:
    variables = {"WARDMESH_URL": controller.url, "WARDMESH_TOKEN": controller.token, "WARDMESH_CA": str(ca[0])}
    assert Cli(nobody.home / "elsewhere", variables).home != nobody.home
    (nobody.home / "elsewhere").mkdir()
    assert Cli(nobody.home / "elsewhere", variables)("status", "--json").json()["mesh"]["id"]
    half = Cli(nobody.home, {"WARDMESH_URL": controller.url})("status", "--json").problem()
    assert half["type"].endswith(":not-logged-in")
    assert "WARDMESH_TOKEN" in half["detail"]


def test_a_damaged_session_file_is_named(cli: Cli) -> None:
    cli.saved.write_text("{")
    done = cli("status")
    assert done.code == 1
    assert str(cli.saved) in done.err
    assert "login" in done.err


@contextmanager
def plain_http_server(directory: Path) -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen(
        ["python3", "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={"PYTHONUNBUFFERED": "1", "PATH": "/usr/bin:/bin"},
    )
    try:
        assert server.stdout is not None
        assert b"Serving" in server.stdout.readline()
        yield f"https://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def test_login_recognises_a_port_that_does_not_speak_tls(nobody: Cli, tmp_path: Path) -> None:
    with plain_http_server(tmp_path) as url:
        done = nobody("login", url, "--json", "--yes", stdin="wma_x")
    assert done.problem()["type"].endswith(":bad-answer")
