"""Answers that are the gateway's own: JSON-RPC errors and the HTTP statuses that go with them. Pure."""

from collections.abc import Mapping
from typing import Any, Final

import orjson

from .eras import METHOD_NOT_FOUND, Refusal
from .types import Code, Deny, Era, RequestId

__all__ = ["JSON", "denial", "error_body", "status_of"]

JSON: Final = (b"content-type", b"application/json")


def error_body(id: RequestId | None, code: int, message: str, data: Mapping[str, Any] | None = None) -> bytes:  # noqa: A002 - JSON-RPC's word
    """A JSON-RPC error response."""
    error: dict[str, Any] = {"code": int(code), "message": message}
    if data is not None:
        error["data"] = data
    return orjson.dumps({"jsonrpc": "2.0", "id": id, "error": error})


def denial(deny: Deny, era: Era, id: RequestId | None) -> Refusal:  # noqa: A002
    """The refusal that says a decision, to a request in a way that a model can act on."""
    data = {"grant_needed": deny.grant_needed} if deny.grant_needed is not None else None
    if id is None:
        return Refusal(403, deny.code, deny.message, None, data)
    return Refusal(status_of(deny.code, era), deny.code, deny.message, id, data)


def status_of(code: int, era: Era) -> int:
    """The HTTP status of a JSON-RPC error of ours.

    A modern server answers an unknown method with 404. Otherwise errors are answers (200): statuses of 4xx make clients
    start over with authorisation or a new session, and legacy clients wait for ever after a 5xx.
    """
    if era == "modern" and code == METHOD_NOT_FOUND:
        return 404
    if code in _OURS and (era == "modern" and code // 100 >= 500):
        return code // 100
    return 200


_OURS: Final = frozenset(int(code) for code in Code)
