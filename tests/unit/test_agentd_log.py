"""Log lines: one an event, readable by people or machines; and systemd's datagrams."""

import json
import logging
import socket
from pathlib import Path

import pytest

from agentd import log
from agentd.sd_notify import notify


def test_plain_lines_are_one_line_with_their_facts(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "plain")
    logging.getLogger("agentd.test").info("in force revision=%d", 7, extra={"what": "two\nlines", "count": 3})
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.endswith(' info in force revision=7 what="two\\nlines" count=3\n')


def test_json_lines_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    log.set_up("info", "json")
    logging.getLogger("agentd.test").warning("two\nlines", extra={"path": Path("/x")})
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"], line["path"]) == ("warning", "two\nlines", "/x")


@pytest.mark.parametrize(("level", "shown"), [("debug", True), ("info", False)])
def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str], level: str, shown: bool) -> None:
    log.set_up(level, "plain")
    logging.getLogger("agentd.test").debug("detail")
    assert ("detail" in capsys.readouterr().err) is shown


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    path = f"@wardmesh-test/{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + path[1:] if abstract else path)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        notify(READY="1", STATUS="in force revision=7")
        assert receiver.recv(1024) == b"READY=1\nSTATUS=in force revision=7"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify(READY="1")
