"""The `agentd` command as people meet it: exit codes, one sentence, no traceback."""

import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from controller.wire.enrol import JoinString
from tests.lab import eventually

AGENTD = Path(sys.executable).parent / "agentd"
COMMANDS = ("join", "run", "status", "peers", "whois", "paths", "ping", "netcheck", "denied", "rotate-key", "leave")


def agentd(*arguments: str | Path, stdin: str = "", directory: Path) -> subprocess.CompletedProcess[str]:
    here = ("--state-dir", directory / "state", "--socket", directory / "agentd.sock")
    return subprocess.run([AGENTD, *here, *arguments], input=stdin, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, tmp_path: Path) -> None:
    shown = agentd(command, "--help", directory=tmp_path)
    assert shown.returncode == 0
    assert "Examples" in shown.stdout
    assert f"agentd {command}" in shown.stdout


def test_the_version_is_printed(tmp_path: Path) -> None:
    assert agentd("--version", directory=tmp_path).stdout.startswith("agentd 0.")


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        ("whois",),
        ("whois", "nobody"),
        ("status", "--jsn"),
        ("join",),
        ("leave", "now"),
        ("run", "--workers", "2"),
        ("ping",),
        ("ping", ""),
        ("ping", "x" * 400),
        ("ping", "db-1", "--count", "0"),
        ("netcheck", "db-1"),
    ],
)
def test_wrong_usage_is_2_and_points_to_the_help(arguments: tuple[str, ...], tmp_path: Path) -> None:
    refused = agentd(*arguments, directory=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--help" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "sentence"),
    [
        (("join", "-"), "hello", "this is not a join string: it must start with 'wmj1.'"),
        (("join", "-"), "wmj1.abcdef", "the join string is damaged"),
        (("join", "wmj1.abcdef"), "", "the join string is damaged"),
        (("join", "--join-file", "/nonexistent"), "", "cannot read the join string from /nonexistent"),
        (("join", "-", "--name", "web_1"), "wmj1.x", "--name: 'web_1' is not a DNS label"),
        (("run",), "", "has not joined; run `agentd join` first"),
        (("status",), "", "agentd is not running"),
        (("peers",), "", "agentd is not running"),
        (("whois", "192.0.2.1"), "", "agentd is not running"),
        (("paths", "--json"), "", "this host has not joined a mesh, so `agentd join` comes first"),
        (("netcheck", "--json"), "", "this host has not joined a mesh, so `agentd join` comes first"),
        (("ping", "db-1"), "", "this host has not joined a mesh, so `agentd join` comes first"),
        (("leave",), "", "has not joined"),
    ],
)
def test_a_refusal_is_1_and_one_sentence(arguments: tuple[str, ...], stdin: str, sentence: str, tmp_path: Path) -> None:
    refused = agentd(*arguments, stdin=stdin, directory=tmp_path)
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert sentence in refused.stderr
    assert not (tmp_path / "state").exists()


def test_a_wrong_configuration_file_stops_every_command(tmp_path: Path) -> None:
    (tmp_path / "agentd.toml").write_text("mtuu = 1400")
    for command in (("run",), ("status",), ("join", "-"), ("leave",)):
        refused = subprocess.run(
            [AGENTD, "--config", tmp_path / "agentd.toml", *command], capture_output=True, text=True, check=False
        )
        assert refused.returncode == 1
        assert "agentd.toml: unknown key 'mtuu': did you mean 'mtu'?" in refused.stderr


@contextmanager
def silent_server() -> Iterator[tuple[int, threading.Event]]:
    """Accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = threading.Event()
        kept = []

        def accept() -> None:
            kept.append(server.accept()[0])
            accepted.set()

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], accepted
        for connection in kept:
            connection.close()


def test_an_interrupted_join_is_130_without_a_traceback(tmp_path: Path) -> None:
    with silent_server() as (port, accepted):
        text = JoinString(url=f"https://127.0.0.1:{port}", ca="0" * 64, key="wmk_x").encode()
        command: list[str | Path] = [AGENTD, "--state-dir", tmp_path / "state", "join", "-"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            process.stdin.write(text)
            process.stdin.close()
            process.stdin = None
            assert accepted.wait(20)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in said


def test_a_join_string_that_is_typed_is_not_shown(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    command: list[str | Path] = [AGENTD, "--state-dir", tmp_path / "state", "join"]
    # In a session of its own, because a password prompt prefers the controlling terminal.
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    with os.fdopen(master, "r+b", buffering=0) as terminal:
        eventually(lambda: not termios.tcgetattr(terminal)[3] & termios.ECHO, what="a terminal without echo")
        terminal.write(b"wmj1.secret\n")
        shown = b""
        with suppress(OSError):  # EIO: the other end is closed
            while chunk := terminal.read(1024):
                shown += chunk
    assert process.wait(20) == 1
    assert b"damaged" in shown
    assert b"secret" not in shown
