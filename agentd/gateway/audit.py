"""What the audit trail says of a call, and where it goes: each record becomes one line of JSON in the spool.

Arguments are a digest (SHA-256 of RFC 8785 canonical JSON) unless the service's rules ask for them, and then with
secrets masked. What a client says of itself is marked unverified. Texts that callers choose are cut to a bound.
"""

import asyncio
import contextlib
import hashlib
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

import orjson
import rfc8785

from controller.wire.matching import TextTest, compile_globs
from controller.wire.mcp import AuditRules

from .spool import FRAME_BYTES, SpoolWriter
from .types import Allow, AuditEvent, AuditRecord, Call, Caller, Decision, Outcome, Particulars, RecordForm

__all__ = ["AuditLog", "SpoolEvent", "arguments_digest", "canonical_json", "describe", "masked"]

_NO_RULES: Final = AuditRules()
_LONGEST_TEXT: Final = 1024
_REMEMBERED_TEXT: Final = 256  # callers choose names: what is remembered of them is bounded in length and number
_LARGEST_ARGUMENTS: Final = 16 * 1024
_ROOM_AGAIN: Final = 64 * 1024  # for a few records: what room for one alone would open and close gap after gap
_LARGEST_CANONICAL: Final = 256 * 1024
MASKED: Final = "[masked]"
# Secrets that give themselves away by their form, wherever they stand.
_SECRET: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----"
    r"|\bBearer\s+[\w.~+/=-]{8,}"
    r"|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"
    r"|\b(?:gh[opsu]_|github_pat_|glpat-|sk-|xox[abprs]-|wm[ak]_|wmj1\.|AKIA|AIza)[\w-]{12,}",
    re.ASCII,
)
# What must still find room when the spool is nearly full: the end of what was begun while there was some.
_URGENT: Final = frozenset({AuditEvent.CALL_ENDED, AuditEvent.SESSION_CLOSED, AuditEvent.STREAM_REVOKED})
# What does not happen when it cannot be recorded, if the service's rules say deny.
_REFUSABLE: Final = frozenset({AuditEvent.CALL_ALLOWED, AuditEvent.SESSION_OPENED})


class SpoolEvent(StrEnum):
    """Events of the trail itself."""

    GAP_OPENED = "gateway:audit:gap-opened"  # in the reserve, so that a crash cannot hide that there was a gap
    GAP = "gateway:audit:gap"  # records that found no room: how many, and from when to when
    RECOVERED = "gateway:audit:recovered"  # bytes that a crash left torn at the end of the spool


def arguments_digest(call: Call | Particulars) -> str:
    """`sha256:HEX` of the arguments' canonical JSON; `sha256-body:HEX` of the raw body when that has no such form.

    RFC 8785 has none for integers beyond 2^53, which not all parsers read alike; and a body beyond 256 KB would hold
    up everybody's calls (9 us a KB).
    """
    try:
        if len(call.body) > _LARGEST_CANONICAL:
            return "sha256-body:" + hashlib.sha256(call.body).hexdigest()
        canonical = canonical_json(dict(call.arguments or {}))
    except rfc8785.CanonicalizationError:
        return "sha256-body:" + hashlib.sha256(call.body).hexdigest()
    return "sha256:" + hashlib.sha256(canonical).hexdigest()


def canonical_json(value: Any) -> bytes:
    """RFC 8785. Raises rfc8785.CanonicalizationError for what has no such form."""
    # orjson is ten times faster and writes the same where neither number format nor key order can differ.
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS) if _is_plain(value) else rfc8785.dumps(value)


def _is_plain(value: Any) -> bool:
    """No floats, no integers beyond 2^53, and only ASCII keys, which sort alike in UTF-8 and UTF-16."""
    kind = type(value)
    if kind is dict:
        for key, inner in value.items():  # a loop: all() with a generator costs three times as much, for every call
            if not key.isascii() or not (type(inner) is str or _is_plain(inner)):
                return False
        return True
    if kind is list:
        return all(map(_is_plain, value))
    return kind is str or kind is bool or value is None or (kind is int and -(2**53) < value < 2**53)


def masked(value: Any, is_secret: TextTest) -> Any:
    """A JSON value without the values of members that `is_secret` names, and without texts that look like secrets."""
    if isinstance(value, dict):
        return {key: MASKED if is_secret(key) else masked(inner, is_secret) for key, inner in value.items()}
    if isinstance(value, list):
        return [masked(inner, is_secret) for inner in value]
    return _SECRET.sub(MASKED, value) if isinstance(value, str) else value


def describe(record: AuditRecord, rules: AuditRules) -> dict[str, Any]:
    """The record as it is written. Absent members are absent facts."""
    line: dict[str, Any] = {
        "event": record.event,
        "time": record.time,
        "id": record.id,
        "service": record.service,
        "caller": _caller(record.caller),
    }
    if record.call is not None:
        line["call"] = _call(record.call, rules, whole=record.event is not AuditEvent.CALL_ENDED)
    if record.decision is not None:
        line["decision"] = _decision(record.decision)
    if record.outcome is not None:
        line["outcome"] = _outcome(record.outcome)
    if record.session is not None:
        # A digest: whoever reads the trail must not be able to continue the session.
        line["session"] = "sha256:" + hashlib.sha256(record.session.encode()).hexdigest()[:32]
    if record.detail is not None:
        line["detail"] = _text(record.detail)
    return line


# Remembered, because callers repeat themselves, and making them anew is a third of what a record costs. Shared by
# records: not to be changed.
@lru_cache(maxsize=1024)
def _caller(caller: Caller) -> dict[str, Any]:
    return {"node": caller.node_id, "name": caller.name, "address": caller.address, "key": caller.public_key}


@lru_cache(maxsize=1024)
def _client(name: str, version: str) -> dict[str, Any]:
    return {"name": _text(name), "version": _text(version)}


def _name(name: str, mask: tuple[str, ...]) -> str:
    return _text(_masked_query(name, _secret_names(mask)))


_remembered_name = lru_cache(maxsize=1024)(_name)


def _call(call: Call, rules: AuditRules, *, whole: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"era": call.era, "method": _text(call.method)}
    if call.name is not None:
        named = _remembered_name if len(call.name) <= _REMEMBERED_TEXT else _name
        line["name"] = named(call.name, rules.mask)
    if not whole:
        return line
    if call.client_info is not None:
        line["client_unverified"] = _client(call.client_info.name, call.client_info.version)
    return line | _particulars(call, rules)


def _particulars(call: Call | Particulars, rules: AuditRules) -> dict[str, Any]:
    """What calls that are alike differ in."""
    line: dict[str, Any] = {}
    if call.request_id is not None:
        line["request_id"] = _text(call.request_id) if isinstance(call.request_id, str) else call.request_id
    if call.arguments is not None:
        line["arguments_digest"] = arguments_digest(call)
        if rules.arguments:
            line |= _arguments(call.arguments, rules)
    if call.trace is not None:
        line["trace"] = {key: _text(value) for key, value in asdict(call.trace).items() if value is not None}
    return line


def _arguments(arguments: Mapping[str, Any], rules: AuditRules) -> dict[str, Any]:
    clean = masked(dict(arguments), _secret_names(rules.mask))
    size = len(orjson.dumps(clean))
    return {"arguments": clean} if size <= _LARGEST_ARGUMENTS else {"arguments_bytes": size}


def _decision(decision: Decision) -> dict[str, Any]:
    if isinstance(decision, Allow):
        return {"allow": decision.grant}
    line: dict[str, Any] = {"deny": int(decision.code), "message": _text(decision.message)}
    if decision.grant_needed is not None:
        line["grant_needed"] = _text(decision.grant_needed)
    return line


def _outcome(outcome: Outcome) -> dict[str, Any]:
    line: dict[str, Any] = {
        "status": outcome.status,
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
        "seconds": outcome.seconds,
    }
    if outcome.error is not None:
        line["error"] = outcome.error
    if outcome.problem is not None:
        line["problem"] = _text(outcome.problem)
    return line


def _text(value: str) -> str:
    if not value.isascii():
        value = value.encode("utf-8", "replace").decode()  # a lone surrogate has no UTF-8 form
    if "\0" in value:
        value = value.replace("\0", "\ufffd")  # which databases do not keep
    return value if len(value) <= _LONGEST_TEXT else value[:_LONGEST_TEXT] + "…"


def _masked_query(name: str, is_secret: TextTest) -> str:
    """A URI or path, with the values of secret query parameters and the password of its authority masked."""
    if "/" not in name and "?" not in name:
        return _SECRET.sub(MASKED, name)
    name = _SECRET.sub(MASKED, re.sub(r"(://[^/@\s:]{0,256}:)[^/@\s]{1,1024}@", rf"\1{MASKED}@", name))
    path, mark, query = name.partition("?")
    if not mark:
        return name
    pairs = (pair.partition("=") for pair in query.split("&"))
    return f"{path}?" + "&".join(k + e + (MASKED if e and is_secret(k) else v) for k, e, v in pairs)


@lru_cache(maxsize=64)
def _secret_names(globs: tuple[str, ...]) -> TextTest:
    return compile_globs(globs, fold=True)


# As %r, in a twentieth of the time.
_number: Final[Callable[[float], bytes]] = orjson.dumps

# What stands in a template until it is escaped: nobody's text can contain it.
_BLANK: Final = secrets.token_hex(16)


def _template(line: dict[str, Any]) -> bytes:
    """The line with blanks, for bytes %, where records of calls that are alike differ.

    Of one without an outcome the last is what follows in its call, each member with a comma before it.
    """
    outcome = line.get("outcome")
    blanks: dict[bytes, bytes] = {}

    def blank(where: dict[str, Any], key: str, form: bytes) -> None:
        where[key] = text = f"{_BLANK}{len(blanks)}"
        blanks[b'"%b"' % text.encode()] = form

    blank(line, "time", b"%b")
    blank(line, "id", b'"%b"')
    if outcome is None:
        line["call"][_BLANK] = None
        blanks[b',"%b":null' % _BLANK.encode()] = b"%b"
    else:
        for key, form in (("bytes_in", b"%d"), ("bytes_out", b"%d"), ("seconds", b"%b")):
            blank(outcome, key, form)
    template = orjson.dumps(line).replace(b"%", b"%%")
    for text, form in blanks.items():
        template = template.replace(text, form)
    return template


@dataclass(slots=True)
class _Gap:
    """What was not recorded since the last record that was. `refused` calls did not happen, `dropped` events did."""

    dropped: int = 0
    refused: int = 0
    since: float = 0.0
    until: float = 0.0


class AuditLog:
    """The gateway's AuditSink. `rules_of` gives a service's rules now; None for a service that is no more."""

    def __init__(
        self,
        writer: SpoolWriter,
        rules_of: Callable[[str], AuditRules | None],
        *,
        sync_seconds: float = 1.0,
        synced: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`synced` is called whenever more of the trail may be told to others."""
        self._writer = writer
        self._rules_of = rules_of
        self._sync_seconds, self._on_sync = sync_seconds, synced
        self._gap = _Gap()
        self._syncing: asyncio.Task[None] | None = None
        self._late: list[bytes] = []  # ends of calls, not written yet
        self.disk_error: str | None = None
        if writer.torn_bytes:
            line = {"event": SpoolEvent.RECOVERED, "time": clock(), "torn_bytes": writer.torn_bytes}
            self._append(orjson.dumps(line), urgent=True)

    @property
    def gap(self) -> int:
        """Records that found no room and are not yet accounted for in the trail."""
        return self._gap.dropped + self._gap.refused

    def start(self) -> None:
        """Sync regularly from now on, in a thread of the running loop."""
        self._syncing = asyncio.create_task(self._sync_regularly())

    async def close(self) -> None:
        """Write what is left and sync."""
        if self._syncing is not None:
            self._syncing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._syncing
            self._syncing = None
        self._write_late()
        self._close_gap()
        await asyncio.to_thread(self._writer.close)
        self._on_sync()

    def record(self, record: AuditRecord) -> bool:
        """Take the record. False: there is no room and the service's rules are to deny what cannot be recorded."""
        rules = self._rules_of(record.service) or _NO_RULES
        urgent = record.event in _URGENT
        payload = orjson.dumps(describe(record, rules))
        self._write_late()
        # In order, but for the end of a call, which may use the reserve before the gap is closed.
        if (self._close_gap(len(payload)) or urgent) and self._append(payload, urgent=urgent):
            return True
        self._miss(record.time, refused=record.event in _REFUSABLE and rules.full == "deny")
        return rules.full == "drop"

    def _miss(self, now: float, *, refused: bool) -> None:
        """Count a record that found no room."""
        if not self.gap:
            self._append(orjson.dumps({"event": SpoolEvent.GAP_OPENED, "time": now}), urgent=True)
            self._gap.since = now
        self._gap.until = max(self._gap.until, now)
        self._gap.dropped += not refused
        self._gap.refused += refused

    def form(self, record: AuditRecord) -> RecordForm:
        """What records like this one have in common, until the service's rules change."""
        rules = self._rules_of(record.service) or _NO_RULES
        if record.call is not None:
            alike = replace(record.call, request_id=None, arguments=None, body=b"", trace=None)
            record = replace(record, call=alike)
        return RecordForm(record, _template(describe(record, rules)), rules)

    def allowed(self, form: RecordForm, time: float, record_id: str, call: Particulars) -> bool:
        """Take a CALL_ALLOWED like the form's. False: it was not taken; `record` is to say what follows."""
        if self.gap or self.disk_error is not None:
            return False
        told = _particulars(call, form.rules)
        following = b"," + orjson.dumps(told)[1:-1] if told else b""
        payload = form.template % (_number(time), record_id.encode(), following)
        if not self._writer.append(*self._late, payload):
            return False
        self._late.clear()
        return True

    def ended(self, form: RecordForm, time: float, record_id: str, sizes: tuple[int, int], seconds: float) -> bool:
        """Take a CALL_ENDED like the form's, to write it before the next record or when the loop has turned."""
        if self.gap:
            return False
        payload = form.template % (_number(time), record_id.encode(), *sizes, _number(seconds))
        if self._syncing is None:
            return self._writer.append(payload, urgent=True)
        if not self._late:
            self._syncing.get_loop().call_soon(self._write_late)
        self._late.append(payload)
        return True

    def _write_late(self) -> None:
        late, self._late = self._late, []
        if late and not self._writer.append(*late, urgent=True):
            for payload in late:
                if not self._append(payload, urgent=True):
                    self._miss(time.time(), refused=False)

    def _append(self, payload: bytes, *, urgent: bool) -> bool:
        if self.disk_error is not None and not urgent:
            return False  # a disk that loses what it took is as good as full
        return self._writer.append(payload, urgent=urgent)

    def _close_gap(self, following: int = 0) -> bool:
        """Account for what found no room, once there is room for that and for the `following` bytes. True: no gap."""
        if not self.gap:
            return True
        payload = orjson.dumps({"event": SpoolEvent.GAP, "time": self._gap.until, **asdict(self._gap)})
        if not self._writer.has_room(len(payload) + following + 2 * FRAME_BYTES):
            return False
        if not self._append(payload, urgent=False):
            return False
        self._gap = _Gap()
        return True

    async def _sync_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._sync_seconds)
            self._close_gap(_ROOM_AGAIN)  # also when nobody calls any more
            before = self._writer.synced
            try:
                await asyncio.to_thread(self._writer.sync)
                self.disk_error = None
            except OSError as error:
                self.disk_error = str(error)
            if self._writer.synced != before:
                self._on_sync()
