"""`wardmesh audit calls`: one line a call, filters, following; what a caller chose never reaches the terminal raw."""

import asyncio
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from controller.clock import utc_now
from controller.store.engine import Engines
from controller.store.store import Store
from controller.wire.call_records import CallRecord

from ..calls import KEY, ended, record
from .bench import Cli, Controller
from .test_policy_and_audit import _line


@pytest.fixture
def service() -> str:
    """Of this test only: the controller is everybody's."""
    return f"s-{secrets.token_hex(4)}"


def keep(controller: Controller, *records: CallRecord, own: bool = True) -> None:
    """As the controller does it when a host tells."""

    async def tell() -> None:
        engines = Engines(f"sqlite:///{controller.state_dir / 'controller.db'}")
        store = Store(engines, utc_now)
        services = {record.service for record in records if own and record.service is not None}
        await store.keep_calls("n-host", secrets.token_hex(16), 1, records, services)
        await store.close()

    asyncio.run(tell())


def allowed(number: int, **fields: Any) -> CallRecord:
    return ended(number, event="gateway:call:allowed", outcome=None, **fields)


def rows(cli: Cli, *arguments: str) -> list[list[str]]:
    done = cli("audit", "calls", *arguments)
    assert done.code == 0, done
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in done.out.splitlines()[1:]]


def test_a_breached_limit_is_a_line_of_its_own(cli: Cli, controller: Controller, service: str) -> None:
    breach = {"event": "gateway:limit:breached", "decision": None, "detail": "more than 5 calls in 10 s"}
    keep(controller, record(1, service=service), record(1, service=service, **breach))
    lines = rows(cli, "--service", service)
    assert [lines[0][4], lines[0][-1]] == ["-", "limit:breached; more than 5 calls in 10 s"]
    found = json.loads(cli("audit", "calls", "--service", service, "--json").out)
    assert [entry["record"]["event"] for entry in found] == ["gateway:limit:breached", "gateway:call:denied"]


def test_a_call_is_one_line_with_who_what_why_and_how_long(cli: Cli, controller: Controller, service: str) -> None:
    one, two, three = ({"service": service, "id": f"{service}-{number}"} for number in range(3))
    keep(controller, allowed(1, **one), ended(2, **one), record(3, **two), allowed(4, **three))
    assert rows(cli, "--service", service) == [
        ["2026-01-01 12:00:04.000Z", "agent", service, "tools/call tool-4", "allowed", "readers", "running", "-"],
        [
            "2026-01-01 12:00:03.000Z",
            "agent",
            service,
            "tools/call tool-3",
            "denied",
            "-",
            "-",
            "no grant allows this",
        ],
        ["2026-01-01 12:00:02.000Z", "agent", service, "tools/call tool-2", "allowed", "readers", "12.5", "-"],
    ]
    assert [row[3] for row in rows(cli, "--service", service, "--denied")] == ["tools/call tool-3"]
    assert len(rows(cli, "--service", service, "--all")) == 4
    assert len(rows(cli, "--service", service, "--limit", "2")) == 2
    assert [row[3] for row in rows(cli, "--service", service, "--tool", "tool-4")] == ["tools/call tool-4"]
    told = cli("audit", "calls", "--service", service, "--json").json()
    assert [entry["record"]["event"].rpartition(":")[2] for entry in told] == ["allowed", "denied", "ended", "allowed"]


def test_calls_are_found_by_moment_and_by_how_long_ago(cli: Cli, controller: Controller, service: str) -> None:
    keep(controller, record(1, service=service), record(2, service=service, time=utc_now()))
    assert len(rows(cli, "--service", service, "--since", "1h")) == 1
    assert len(rows(cli, "--service", service, "--until", "2026-01-01T12:00:02")) == 1
    assert len(rows(cli, "--service", service, "--since", "2026-01-01T13:00:02+01:00")) == 1
    done = cli("audit", "calls", "--since", "yesterday")
    assert done.code in {1, 2}
    assert "yesterday" in done.err


def test_calls_of_a_node_that_is_gone_are_found_by_its_id(cli: Cli, controller: Controller, service: str) -> None:
    caller = {"node": service, "name": "gone", "address": "100.88.0.2", "key": KEY}
    keep(controller, record(1, service=service, caller=caller))
    assert len(rows(cli, "--caller", service)) == 1
    done = cli("audit", "calls", "--caller", "nobody-ever")
    assert done.code == 1
    assert "nobody-ever" in done.err


def test_what_callers_choose_is_never_printed_raw(cli: Cli, controller: Controller, service: str) -> None:
    evil = "\x1b]0;owned\x07\r\n\x9b31m\u202e"
    keep(
        controller,
        record(
            1,
            service=service,
            call={"era": "modern", "method": evil, "name": evil},
            decision={"deny": 1, "message": evil},
            detail=evil,
        ),
        ended(2, service=service, id=evil, decision={"allow": evil}, outcome=None),
    )
    shown = cli("audit", "calls", "--service", service).out
    assert len(shown.splitlines()) == 3
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert r"\x1b]0;owned\x07" in shown
    told = cli("audit", "calls", "--service", service, "--json")
    assert all(character.isprintable() or character == "\n" for character in told.out)
    assert told.json()[1]["record"]["detail"] == evil


def test_what_the_trail_says_of_itself_is_shown(cli: Cli, controller: Controller, service: str) -> None:
    gap = CallRecord(event="gateway:audit:gap", time=record().time, dropped=3, refused=2)
    refusal = record(5, service=service, event="gateway:request:refused", decision=None, call=None, detail="no JSON")
    keep(controller, gap, refusal)
    assert any("3 records were not kept; 2 calls were refused" in row[-1] for row in rows(cli, "--node", "n-host"))
    (row,) = rows(cli, "--service", service)
    assert row[3:] == ["request:refused", "refused", "-", "-", "no JSON"]


def test_follow_prints_what_comes_once_and_when_it_has_ended(
    cli: Cli, controller: Controller, service: str, tmp_path: Path
) -> None:
    keep(controller, record(9, service=service, id="before"))
    process = cli.start("audit", "calls", "--follow", "--service", service)
    try:
        assert b"tool-9" in _line(process)
        # Older by their host's clock than what was there: it comes when it comes.
        keep(controller, allowed(1, service=service, id="x"), ended(2, service=service, id="x"))
        assert b"tool-2" in _line(process)
        keep(controller, record(3, service=service))
        assert b"tool-3" in _line(process)
        process.send_signal(2)
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out, err) == (130, b"", b"")
    finally:
        process.kill()
        process.communicate()


def test_nothing_is_an_empty_list(cli: Cli) -> None:
    done = cli("audit", "calls", "--service", "nowhere", "--json")
    assert json.loads(done.out) == []
    assert cli("audit", "calls", "--service", "nowhere").out == ""


def test_what_a_host_only_claims_is_said_to_be_a_claim(cli: Cli, controller: Controller, service: str) -> None:
    keep(controller, record(1, service=service, id=service), own=False)
    assert rows(cli, "--service", service) == []
    (row,) = [row for row in rows(cli, "--node", "n-host", "--limit", "1000") if service in row[2]]
    assert row[2] == f"{service} (claimed)"
