"""JSON-RPC bodies, read so strictly that no other reader of the same bytes can understand something else.

Pure. Refused: repeated keys (readers keep the first, the last, or either), keys of the protocol in another case (some
readers ignore case), numbers that readers round differently, invalid UTF-8, depth, batches, half of one kind of message
and half of another.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NoReturn

import orjson

from .types import RequestId, value

__all__ = ["INVALID_REQUEST", "PARSE_ERROR", "BodyError", "Message", "check_arguments", "load", "parse"]

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600

_LARGEST_INTEGER: Final = 2**64 - 1
_SMALLEST_INTEGER: Final = -(2**63)
_LONGEST_NUMBER: Final = 64  # characters; a double needs 24
_ENVELOPE: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_PARAMS: Final = frozenset({"name", "uri", "arguments", "_meta", "cursor", "protocolVersion", "capabilities"})
_LONGEST_ID: Final = 1024
_LONGEST_METHOD: Final = 256


class BodyError(Exception):
    """The body is not one message that everybody reads alike. `code` is JSON-RPC's; `id` is the request's if known."""

    def __init__(self, code: int, message: str, id: RequestId | None = None) -> None:  # noqa: A002 - JSON-RPC's word
        super().__init__(message)
        self.code = code
        self.id = id


@value
class Message:
    """One parsed message. `params` is empty for a response."""

    kind: Literal["request", "notification", "response"]
    id: RequestId | None
    method: str
    params: Mapping[str, Any]


def parse(body: bytes, depth: int) -> Message:
    """Parse one message whose objects and arrays nest at most `depth` deep. Raises BodyError."""
    return _message(load(body, depth))


def load(body: bytes, depth: int) -> Any:
    """Any JSON text that everybody reads alike. Raises BodyError."""
    try:
        loaded = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BodyError(PARSE_ERROR, f"the body is not JSON: {error}") from None
    # A body that serialises to itself had no repeated key (it would be gone) and no number that was changed by reading.
    # Clients that write compact JSON pay only for this; the others for a second, slower parse with every check.
    if orjson.dumps(loaded) != body:
        loaded = _load_slowly(body)
    # Every level opens with a bracket, so few brackets are proof without a walk.
    # (Taking them out is the fastest way to count them: a tenth of what `count` takes.)
    if 2 * len(body) - len(body.replace(b"{", b"")) - len(body.replace(b"[", b"")) > depth:
        _check_depth(loaded, depth)
    return loaded


def _load_slowly(body: bytes) -> Any:
    try:
        return json.loads(
            body,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_constant,
        )
    except RecursionError:
        raise BodyError(PARSE_ERROR, "the body nests too deep") from None
    except ValueError as error:
        raise BodyError(PARSE_ERROR, f"the body is not JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for number, key in enumerate(keys) if key in keys[:number])
        raise BodyError(INVALID_REQUEST, f"the key {repeated[:64]!r} occurs more than once in one object")
    return made


def _integer(text: str) -> int:
    value = int(text) if len(text) <= _LONGEST_NUMBER else _LARGEST_INTEGER + 1
    if not _SMALLEST_INTEGER <= value <= _LARGEST_INTEGER:
        raise BodyError(INVALID_REQUEST, "a number does not fit into 64 bits: send it as a string")
    return value


def _number(text: str) -> float:
    value = float(text) if len(text) <= _LONGEST_NUMBER else float("inf")
    if value in {float("inf"), float("-inf")}:
        raise BodyError(INVALID_REQUEST, "a number is too large or too long: send it as a string")
    return value


def _constant(text: str) -> NoReturn:
    raise BodyError(PARSE_ERROR, f"{text} is not JSON")


def _check_depth(loaded: Any, depth: int) -> None:
    level = [loaded]
    for _ in range(depth):
        level = [
            inner
            for value in level
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise BodyError(INVALID_REQUEST, f"the body nests deeper than {depth} levels")


def _message(loaded: Any) -> Message:
    if isinstance(loaded, list):
        raise BodyError(INVALID_REQUEST, "batches are not part of MCP: send one message a request")
    if not isinstance(loaded, dict) or loaded.get("jsonrpc") != "2.0":
        raise BodyError(INVALID_REQUEST, 'the body must be one JSON-RPC message, with "jsonrpc": "2.0"')
    given = loaded.get("id")
    known = given if type(given) is int or _is_id(given) else None
    if not loaded.keys() <= _ENVELOPE:
        _check_case(loaded, _ENVELOPE, known)
    if known is None and "id" in loaded and not ("error" in loaded and given is None):
        raise BodyError(INVALID_REQUEST, "the id must be a string or an integer")
    if "method" not in loaded:
        return _response(loaded, known)
    if "result" in loaded or "error" in loaded:
        raise BodyError(INVALID_REQUEST, "a message is a request or a response, not both", known)
    method, params = loaded["method"], loaded.get("params", _NO_PARAMS)
    if not isinstance(method, str) or not 0 < len(method) <= _LONGEST_METHOD or not method.isprintable():
        raise BodyError(INVALID_REQUEST, "the method must be a name", known)
    if not isinstance(params, dict):
        raise BodyError(INVALID_REQUEST, "params must be an object", known)
    if not params.keys() <= _PARAMS:
        _check_case(params, _PARAMS, known)
    arguments = params.get("arguments")
    if isinstance(arguments, dict):
        check_arguments(arguments, known)
    return Message("request" if "id" in loaded else "notification", known, method, params)


def check_arguments(arguments: dict[str, Any], known: RequestId | None = None) -> None:
    """Raises BodyError, with the request's id if it is known, for names that some readers take for one."""
    if len(arguments) > 1:
        _check_case(arguments, _NOTHING, known)


_NO_PARAMS: Final[dict[str, Any]] = {}
_NOTHING: Final[frozenset[str]] = frozenset()


def _response(loaded: dict[str, Any], known: RequestId | None) -> Message:
    if ("result" in loaded) == ("error" in loaded) or "id" not in loaded:
        raise BodyError(INVALID_REQUEST, "the body is neither a request nor a response")
    return Message("response", known, "", _NO_PARAMS)


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_ID
    return isinstance(value, int) and not isinstance(value, bool)


def _check_case(mapping: dict[str, Any], reserved: frozenset[str], known: RequestId | None) -> None:
    """Go's encoding/json, and what is built on it, matches keys without regard to case."""
    folded = {key.casefold() for key in mapping}
    if len(folded) != len(mapping):
        raise BodyError(INVALID_REQUEST, "two keys of one object differ only in case", known)
    if folded != mapping.keys():
        for key in mapping:
            if key not in reserved and key.casefold() in _FOLDED[reserved]:
                raise BodyError(INVALID_REQUEST, f"the key {key[:64]!r} is written in another case", known)


_FOLDED: Final = {names: frozenset(name.casefold() for name in names) for names in (_ENVELOPE, _PARAMS, _NOTHING)}
