"""Logs as lines on standard error, key=value or JSON, each with the id of the request that it belongs to.

What goes in is chosen by the callers: names, ids, statuses. Never headers, bodies or queries, where secrets are.
"""

import contextvars
import json
import logging
import secrets
import sys
import time
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["RequestLog", "configure", "request_id"]

_request_id: Final[contextvars.ContextVar[str]] = contextvars.ContextVar("request_id", default="none")
_log = logging.getLogger("controller.requests")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def request_id() -> str:
    """The id of the request being served; "none" outside of one."""
    return _request_id.get()


class _Formatter(logging.Formatter):
    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def format(self, record: logging.LogRecord) -> str:
        request = "" if request_id() == "none" else f" request={request_id()}"
        message = record.getMessage().replace("\n", "\\n").replace("\r", "\\r")
        line = f"{self.formatTime(record)} {record.levelname.lower()} {record.name}{request} {message}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(_Formatter):
    """One object a line: time, level, logger, message, request where there is one, and the facts of the event."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id() != "none":
            line["request"] = request_id()
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        facts = {key: value for key, value in vars(record).items() if key not in _STANDARD}
        return json.dumps(facts | line, default=str)


def configure(level: str = "info", *, json_lines: bool = False) -> None:
    """Send every log line of the process to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if json_lines else _Formatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # aiosqlite writes every statement with its values; Alembic every step.
    for chatty in ("aiosqlite", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class RequestLog:
    """ASGI middleware: gives each request an id, returns it as X-Request-Id, logs what came of it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or WebSocket."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        identifier = secrets.token_hex(8)
        _request_id.set(identifier)
        began = time.monotonic()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = identifier
                headers["x-content-type-options"] = "nosniff"
                # Answers hold keys, addresses and policy; none of them is for a cache.
                headers.setdefault("cache-control", "no-store")
            await send(message)

        state = scope.setdefault("state", {})
        try:
            await self._app(scope, receive, sending)
        finally:
            if scope["type"] == "http":
                # The raw path is percent-encoded, so that nobody can write a line of their own into the log.
                path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")
                facts = {
                    "method": scope["method"],
                    "path": path,
                    "status": status,
                    "milliseconds": round((time.monotonic() - began) * 1000, 1),
                    "actor": state.get("actor", "nobody"),
                    "client": (scope.get("client") or ("unknown",))[0],
                }
                _log.info("%s %s %d %.1fms actor=%s client=%s", *facts.values(), extra=facts)
