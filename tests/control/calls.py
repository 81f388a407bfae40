"""Records of calls for tests."""

from datetime import UTC, datetime, timedelta
from typing import Any

from controller.wire.call_records import CallRecord

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPOOL = "0123456789abcdef" * 2
KEY = "nPzpP0wYnqyYkmpDCYQ1qCZh7aiVwXZ4jq1K4wXJpzA="


def record(number: int = 0, **changes: Any) -> CallRecord:
    """A denied call, `number` seconds after noon."""
    return CallRecord.model_validate(
        {
            "event": "gateway:call:denied",
            "time": NOON + timedelta(seconds=number),
            "id": f"r{number}",
            "service": "github",
            "caller": {"node": "n-agent", "name": "agent", "address": "100.88.0.2", "key": KEY},
            "call": {"era": "modern", "method": "tools/call", "name": f"tool-{number}"},
            "decision": {"deny": 40300, "message": "no grant allows this"},
            **changes,
        }
    )


def ended(number: int = 0, **changes: Any) -> CallRecord:
    """The end of an allowed call."""
    outcome = {"status": 200, "bytes_in": 10, "bytes_out": 20, "seconds": 0.0125}
    fields = {"event": "gateway:call:ended", "decision": {"allow": "readers"}, "outcome": outcome}
    return record(number, **(fields | changes))
