"""The audit trail: what is written of a call, what never is, and what happens when there is no room."""

import asyncio
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from agentd.gateway.audit import AuditLog, SpoolEvent, arguments_digest, canonical_json, describe
from agentd.gateway.spool import SpoolReader, SpoolWriter
from agentd.gateway.types import (
    Allow,
    AuditEvent,
    AuditRecord,
    Call,
    ClientInfo,
    Deny,
    Outcome,
    Particulars,
    RecordForm,
    TraceContext,
)
from controller.wire.mcp import AuditRules
from tests.gateway.harness import soon

from .policies import caller

SMALL: dict[str, Any] = {"most_bytes": 40_000, "segment_bytes": 4_000, "reserve": 4_000}


def make_call(arguments: Mapping[str, Any] | None = None, **fields: Any) -> Call:
    return Call(
        **{
            "service": "github",
            "era": "modern",
            "method": "tools/call",
            "name": "get_file",
            "arguments": arguments,
            "request_id": 7,
            "body": b"{}",
            **fields,
        }
    )


def record(event: AuditEvent = AuditEvent.CALL_ALLOWED, **fields: Any) -> AuditRecord:
    return AuditRecord(
        **{
            "event": event,
            "time": 1000.0,
            "id": "r1",
            "service": "github",
            "caller": caller(),
            "call": make_call({"path": "/a"}),
            "decision": Allow("g1"),
            **fields,
        }
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(entry.payload) for entry in SpoolReader(directory).read(100_000)]


def test_a_record_says_who_what_and_why() -> None:
    call = make_call(
        {"path": "/a"}, client_info=ClientInfo("claude", "1"), trace=TraceContext("00-aa-bb-01", baggage="k=v")
    )
    line = describe(record(call=call, session="s3cret"), AuditRules())
    assert line == {
        "event": "gateway:call:allowed",
        "time": 1000.0,
        "id": "r1",
        "service": "github",
        "caller": {
            "node": "n-agent-1",
            "name": "agent-1",
            "address": "192.0.2.1",
            "key": "nPzpP0wYnqyYkmpDCYQ1qCZh7aiVwXZ4jq1K4wXJpzA=",
        },
        "call": {
            "era": "modern",
            "method": "tools/call",
            "name": "get_file",
            "request_id": 7,
            "arguments_digest": "sha256:" + hashlib.sha256(b'{"path":"/a"}').hexdigest(),
            "client_unverified": {"name": "claude", "version": "1"},
            "trace": {"traceparent": "00-aa-bb-01", "baggage": "k=v"},
        },
        "decision": {"allow": "g1"},
        "session": "sha256:" + hashlib.sha256(b"s3cret").hexdigest()[:32],
    }


def test_a_denial_and_an_end_are_told() -> None:
    denied = describe(record(AuditEvent.CALL_DENIED, decision=Deny(40300, "no", "a grant")), AuditRules())
    assert denied["decision"] == {"deny": 40300, "message": "no", "grant_needed": "a grant"}
    ended = describe(record(AuditEvent.CALL_ENDED, outcome=Outcome(200, 10, 20, 0.5)), AuditRules())
    assert ended["outcome"] == {"status": 200, "bytes_in": 10, "bytes_out": 20, "seconds": 0.5}
    assert "arguments_digest" not in ended["call"]  # its CALL_ALLOWED, with the same id, has it


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ({"a": 1, "b": [1.0, "é"]}, {"b": [1, "\u00e9"], "a": 1.0}),
        ({"\U0001f600": 1, "\ufb33": 2}, {"\ufb33": 2, "\U0001f600": 1}),
    ],
)
def test_equal_arguments_have_equal_digests(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert arguments_digest(make_call(left)) == arguments_digest(make_call(right))
    assert arguments_digest(make_call(left)) == "sha256:" + hashlib.sha256(rfc8785.dumps(left)).hexdigest()


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.text()
        | st.floats(allow_nan=False, allow_infinity=False),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_fast_canonical_form_is_the_canonical_form(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


def test_every_character_is_written_canonically() -> None:
    for start in range(0, 0x11000, 256):
        text = "".join(chr(c) for c in range(start, start + 256) if not 0xD800 <= c < 0xE000)
        assert canonical_json([text]) == rfc8785.dumps([text])


def test_arguments_without_a_canonical_form_are_digested_as_they_came() -> None:
    call = make_call({"n": 2**60}, body=b'{"n":1152921504606846976}')
    assert arguments_digest(call) == "sha256-body:" + hashlib.sha256(call.body).hexdigest()


def test_arguments_are_written_by_option_and_secrets_never() -> None:
    arguments = {
        "path": "/a",
        "Api_Key": "k-123456",
        "nested": [{"my_password": {"a": 1}, "note": "use Bearer abcdefgh12345678 please"}],
        "pem": "-----BEGIN RSA PRIVATE KEY-----",
        "t": "ghp_abcdefghijklmnopqrst",
    }
    assert "arguments" not in describe(record(call=make_call(arguments)), AuditRules())["call"]
    written = describe(record(call=make_call(arguments)), AuditRules(arguments=True))["call"]["arguments"]
    assert written == {
        "path": "/a",
        "Api_Key": "[masked]",
        "nested": [{"my_password": "[masked]", "note": "use [masked] please"}],
        "pem": "[masked]",
        "t": "[masked]",
    }
    assert arguments["Api_Key"] == "k-123456"  # the call itself is not changed


def test_secrets_in_a_uri_are_masked() -> None:
    call = make_call(method="resources/read", name="https://u:hunter2@h.example/x?access_token=abc&page=2")
    name = describe(record(call=call), AuditRules())["call"]["name"]
    assert name == "https://u:[masked]@h.example/x?access_token=[masked]&page=2"


def test_texts_that_callers_choose_are_bounded() -> None:
    big = "x" * 1_000_000
    call = make_call({"a": big}, name=big, request_id=big, client_info=ClientInfo(big, big), trace=TraceContext(big))
    line = describe(record(call=call, detail=big), AuditRules(arguments=True))
    assert len(json.dumps(line)) < 12_000
    assert line["call"]["arguments_bytes"] > 1_000_000


def test_a_lone_surrogate_does_not_stop_the_trail(tmp_path: Path) -> None:
    log = AuditLog(SpoolWriter(tmp_path), lambda _: AuditRules())
    assert log.record(record(call=make_call(name="a\ud800b")))
    assert lines(tmp_path)[0]["call"]["name"] == "a?b"


def fill(log: AuditLog) -> int:
    number = 0
    while log.gap == 0:
        log.record(record())
        number += 1
    return number - 1


def test_a_full_spool_denies_by_default_and_still_records_the_ends(tmp_path: Path) -> None:
    log = AuditLog(SpoolWriter(tmp_path, **SMALL), lambda _: AuditRules())
    taken = fill(log)
    assert taken > 20
    assert log.record(record()) is False
    assert log.record(record(AuditEvent.CALL_ENDED, decision=None, outcome=Outcome(200, 1, 1, 0.1))) is True
    written = lines(tmp_path)
    assert [line["event"] for line in written[taken:]] == [SpoolEvent.GAP_OPENED, AuditEvent.CALL_ENDED]


def test_a_full_spool_may_drop_and_counts_the_gap(tmp_path: Path) -> None:
    now = 0.0
    writer = SpoolWriter(tmp_path, **SMALL, clock=lambda: now)
    log = AuditLog(writer, lambda _: AuditRules(full="drop"))
    fill(log)
    assert all(log.record(record(time=1001.0 + number)) for number in range(5))
    reader = SpoolReader(tmp_path)
    reader.acknowledge(reader.read(100_000)[-1].seq)
    now = 10.0
    assert log.record(record(time=2000.0))
    gap, after = (json.loads(entry.payload) for entry in reader.read())
    assert gap == {
        "event": "gateway:audit:gap",
        "time": 1005.0,
        "dropped": 6,
        "refused": 0,
        "since": 1000.0,
        "until": 1005.0,
    }
    assert after["time"] == 2000.0
    assert log.gap == 0


async def test_a_gap_is_told_when_there_is_room_again_although_nobody_calls(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, most_bytes=400_000, reserve=1000)
    log = AuditLog(writer, lambda _: AuditRules(), sync_seconds=0.01)
    fill(log)
    log.start()
    reader = SpoolReader(tmp_path)
    reader.acknowledge(reader.read(1_000_000)[-1].seq)
    (gap,) = await soon(reader.read)
    assert json.loads(gap.payload)["refused"] == 1
    await log.close()


def test_refused_calls_are_told_from_lost_events(tmp_path: Path) -> None:
    now = 0.0
    writer = SpoolWriter(tmp_path, **SMALL, clock=lambda: now)
    log = AuditLog(writer, lambda _: AuditRules())
    fill(log)
    assert log.record(record(AuditEvent.CALL_DENIED)) is False
    reader = SpoolReader(tmp_path)
    reader.acknowledge(reader.read(100_000)[-1].seq)
    now = 10.0
    log.record(record())
    gap = json.loads(reader.read()[0].payload)
    assert (gap["refused"], gap["dropped"]) == (1, 1)


def test_a_crash_is_told_in_the_trail(tmp_path: Path) -> None:
    log = AuditLog(SpoolWriter(tmp_path), lambda _: AuditRules())
    log.record(record())
    log._writer.close()
    (segment,) = tmp_path.glob("*.wal")
    with segment.open("ab") as file:
        file.write(b"torn")
    AuditLog(SpoolWriter(tmp_path), lambda _: AuditRules(), clock=lambda: 5.0)
    assert lines(tmp_path)[1] == {"event": "gateway:audit:recovered", "time": 5.0, "torn_bytes": 4}


async def test_the_log_syncs_in_the_background_and_closes_whole(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path)
    log = AuditLog(writer, lambda _: AuditRules(), sync_seconds=0.01)
    log.start()
    log.record(record())
    async with asyncio.timeout(10):
        while writer._dirty:
            await asyncio.sleep(0.005)
    log.record(record())
    await log.close()
    assert len(lines(tmp_path)) == 2


async def test_a_disk_that_fails_to_sync_is_as_good_as_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError("input/output error")

    writer = SpoolWriter(tmp_path)
    log = AuditLog(writer, lambda _: AuditRules(), sync_seconds=0.01)
    monkeypatch.setattr("os.fsync", fail)
    log.start()
    async with asyncio.timeout(10):
        while log.disk_error is None:
            await asyncio.sleep(0.005)
    assert log.record(record()) is False
    monkeypatch.undo()
    await log.close()


TEXTS = st.text(max_size=20) | st.sampled_from(['"', "%d %%b", "\\", "\x00", "\ud800", "x" * 2000])


IDS = st.integers(-(2**63), 2**64 - 1) | TEXTS


TRACES = st.none() | st.builds(TraceContext, TEXTS, st.none() | TEXTS, st.none() | TEXTS)
PLAIN = st.text(max_size=20)
ARGUMENTS = st.none() | st.dictionaries(PLAIN, PLAIN | st.integers(-(2**63), 2**63) | st.booleans(), max_size=3)


@given(
    name=st.none() | TEXTS,
    client=TEXTS,
    ids=st.tuples(IDS | st.none(), IDS | st.none()),
    arguments=st.tuples(ARGUMENTS, ARGUMENTS),
    traces=st.tuples(TRACES, TRACES),
    rules=st.builds(AuditRules, arguments=st.booleans()),
)
def test_a_record_from_a_form_says_what_one_that_was_written_alone_says(
    tmp_path_factory: pytest.TempPathFactory,
    name: str | None,
    client: str,
    ids: tuple[int | str | None, int | str | None],
    arguments: tuple[dict[str, Any] | None, dict[str, Any] | None],
    traces: tuple[TraceContext | None, TraceContext | None],
    rules: AuditRules,
) -> None:
    first, call = (
        make_call(
            arguments[one],
            name=name,
            client_info=ClientInfo(client, "1"),
            request_id=ids[one],
            trace=traces[one],
            body=b"x" * 77,
        )
        for one in (0, 1)
    )
    like = record(call=first, session="s3cret")
    like_end = replace(like, event=AuditEvent.CALL_ENDED, outcome=Outcome(200, 1, 2, 0.5))
    own = Particulars(call.request_id, call.arguments, call.body, call.trace)
    begin = replace(like, time=1795248000.123456, id="r2", call=call)
    end = replace(like_end, time=1795248001.5, id="r2", call=call, outcome=Outcome(200, 77, 88, 9.5e-05))
    directory = tmp_path_factory.mktemp("spool")
    with SpoolWriter(directory) as writer:
        log = AuditLog(writer, lambda _service: rules)
        assert log.allowed(log.form(like), begin.time, "r2", own)
        assert log.ended(log.form(like_end), end.time, "r2", (77, 88), 9.5e-05)
        assert log.record(begin)
        assert log.record(end)
    written = lines(directory)
    assert written[:2] == written[2:]


def test_a_form_is_not_filled_while_the_spool_is_full(tmp_path: Path) -> None:
    with SpoolWriter(tmp_path, most_bytes=2000, segment_bytes=500, reserve=1000) as writer:
        log = AuditLog(writer, lambda _service: AuditRules())
        form = log.form(record())
        taken = [log.allowed(form, 1000.0, "r2", Particulars(1, {"path": "/a"}, b"")) for _ in range(10)]
    assert taken[0]
    assert not taken[-1]
    assert len(lines(tmp_path)) == sum(taken)


def an_end(log: AuditLog) -> RecordForm:
    return log.form(record(AuditEvent.CALL_ENDED, outcome=Outcome(200, 0, 0, 0.0)))


async def test_ends_of_calls_are_written_before_the_next_record(tmp_path: Path) -> None:
    log = AuditLog(SpoolWriter(tmp_path), lambda _service: AuditRules(), sync_seconds=1000)
    log.start()
    form, end = log.form(record()), an_end(log)
    for number in ("1", "2"):
        assert log.ended(end, 1000.0, f"end-{number}", (1, 1), 0.5)
    assert log.allowed(form, 1001.0, "begin", Particulars(1, {}, b""))
    assert [line["id"] for line in lines(tmp_path)] == ["end-1", "end-2", "begin"]
    assert log.ended(end, 1000.0, "end-3", (1, 1), 0.5)
    assert log.record(record(id="denied"))
    assert [line["id"] for line in lines(tmp_path)] == ["end-1", "end-2", "begin", "end-3", "denied"]
    assert log.ended(end, 1000.0, "end-4", (1, 1), 0.5)
    await log.close()
    assert lines(tmp_path)[-1]["id"] == "end-4"


async def test_an_end_is_written_when_the_loop_has_turned(tmp_path: Path) -> None:
    log = AuditLog(SpoolWriter(tmp_path), lambda _service: AuditRules(), sync_seconds=1000)
    log.start()
    assert log.ended(an_end(log), 1000.0, "end", (1, 1), 0.5)
    turned = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turned.set_result, None)
    await turned
    assert [line["id"] for line in lines(tmp_path)] == ["end"]
    await log.close()


async def test_ends_that_find_no_room_are_counted_each(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, most_bytes=4000, segment_bytes=1000, reserve=1000)
    while writer.append(b"x" * 10, urgent=True):
        pass
    log = AuditLog(writer, lambda _service: AuditRules(), sync_seconds=1000)
    log.start()
    for number in range(3):
        assert log.ended(an_end(log), 1000.0, f"end-{number}", (1, 1), 0.5)
    await soon(lambda: log.gap == 3)
    await log.close()
