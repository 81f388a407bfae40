"""What the audit trail is told of each request, and when. Where it is kept is the sink's."""

import itertools
import os
import time
from dataclasses import replace
from typing import Final

from .http.exchange import Exchange
from .passage import Passage
from .types import (
    TRANSPORT_TERMINATE,
    Allow,
    AuditEvent,
    AuditRecord,
    AuditSink,
    Call,
    Caller,
    Decision,
    Outcome,
    Particulars,
    RecordForm,
    value,
)

__all__ = ["Asked", "CallForms", "Trail"]

_next_number = itertools.count().__next__
_PROCESS: Final = f"{time.time_ns():x}-{os.getpid():x}"


class Asked:
    """A request whose caller is known. `id` joins its records."""

    __slots__ = ("caller", "exchange", "id", "started")

    def __init__(self, exchange: Exchange, caller: Caller) -> None:
        self.exchange = exchange
        self.caller = caller
        self.started = time.perf_counter()
        self.id = f"{_PROCESS}-{_next_number()}"


@value
class CallForms:
    """What the records of calls like one have in common; that of the end, of those that ended well."""

    allowed: RecordForm
    ended: RecordForm


class Trail:
    """Records for one service."""

    def __init__(self, sink: AuditSink, service: str) -> None:
        self._sink = sink
        self._service = service

    def refused(self, asked: Asked, status: int, why: str, *, error: int | None = None, session: bool = False) -> None:
        """It never became a call. `session`: because it named a session that is not the caller's."""
        outcome = Outcome(status, 0, asked.exchange.bytes_out, time.perf_counter() - asked.started, error)
        event = AuditEvent.SESSION_REFUSED if session else AuditEvent.REQUEST_REFUSED
        self._sink.record(
            AuditRecord(event, time.time(), asked.id, self._service, asked.caller, outcome=outcome, detail=why)
        )

    def decided(self, asked: Asked, call: Call, decision: Decision, session: str | None, now: float) -> bool:
        """Before an allowed call is passed on. False: it must not be, because it cannot be recorded."""
        event = AuditEvent.CALL_ALLOWED if isinstance(decision, Allow) else AuditEvent.CALL_DENIED
        return self._sink.record(
            AuditRecord(event, now, asked.id, self._service, asked.caller, call, decision, session=session)
        )

    def breached(self, asked: Asked, call: Call, what: str) -> None:
        """A call went over a limit, and cost more than itself."""
        self._sink.record(
            AuditRecord(
                AuditEvent.LIMIT_BREACHED, time.time(), asked.id, self._service, asked.caller, call, detail=what
            )
        )

    def forms(self, asked: Asked, call: Call, decision: Allow, session: str | None) -> CallForms:
        """What the records of calls like this one have in common."""
        event, outcome = AuditEvent.CALL_ALLOWED, Outcome(200, 0, 0, 0.0)
        first = AuditRecord(event, 0.0, asked.id, self._service, asked.caller, call, decision, session=session)
        ended = self._sink.form(replace(first, event=AuditEvent.CALL_ENDED, outcome=outcome))
        return CallForms(self._sink.form(first), ended)

    def allowed(self, forms: CallForms, asked: Asked, call: Particulars, now: float) -> bool:
        """As `decided`, for a call like one before. False: nothing was recorded; `decided` is to say what follows."""
        return self._sink.allowed(forms.allowed, now, asked.id, call)

    def ended_well(self, forms: CallForms, asked: Asked, call: Particulars) -> bool:
        """As `ended`, for a call like one before that ended as most do. False: nothing was recorded; `ended` is to."""
        sizes, seconds = (len(call.body), asked.exchange.bytes_out), time.perf_counter() - asked.started
        return self._sink.ended(forms.ended, time.time(), asked.id, sizes, seconds)

    def ended(self, asked: Asked, passage: Passage, decision: Allow, session: str | None) -> None:
        """However it ended, also by cancellation."""
        call, exchange = passage.call, asked.exchange
        problem = passage.problem or (None if exchange.ended else "the client went away")
        outcome = Outcome(
            status=passage.status,
            bytes_in=len(call.body),
            bytes_out=asked.exchange.bytes_out,
            seconds=time.perf_counter() - asked.started,
            error=passage.error,
            problem=problem,
        )
        record = AuditRecord(
            AuditEvent.CALL_ENDED, time.time(), asked.id, self._service, asked.caller, call, decision, outcome, session
        )
        self._sink.record(record)
        if passage.session is not None and call.method == "initialize":
            self._sink.record(replace(record, event=AuditEvent.SESSION_OPENED, session=passage.session))
        elif call.method == TRANSPORT_TERMINATE and passage.status < 300:
            self._sink.record(replace(record, event=AuditEvent.SESSION_CLOSED))
        if passage.revoked is not None:
            self._sink.record(replace(record, event=AuditEvent.STREAM_REVOKED, detail=passage.revoked))
