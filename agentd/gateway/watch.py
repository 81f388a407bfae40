"""Reading an upstream's answer as it passes: which message is the final one, and which must be held back. Pure.

What is forwarded is decided here, byte by byte; sending it is somebody else's.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

from .jsonrpc import BodyError, load
from .sse import Event, EventReader
from .types import LIST_METHODS, Call, RequestId, UpstreamError

__all__ = ["LARGEST_HELD", "Filter", "StreamWatch", "check_answer", "error_code", "filter_answer", "is_answer"]

# Takes the method and the result, returns the result as the caller may see it or None for "as it is".
Filter = Callable[[str, Mapping[str, Any]], Mapping[str, Any] | None]

LARGEST_HELD: Final = 16 * 1024 * 1024  # a JSON answer, or one event, that is read before it is passed on
_LARGEST_WATCHED: Final = 1024 * 1024  # an event that is read after it was passed on
_DEPTH: Final = 256
_BOM: Final = b"\xef\xbb\xbf"
# Which list a result is, where only its form tells: on a GET stream, which carries what a lost POST stream did not.
_LISTS: Final = {
    "tools": "tools/list",
    "prompts": "prompts/list",
    "resources": "resources/list",
    "resourceTemplates": "resources/templates/list",
}


def is_answer(message: Any, wanted: RequestId | None) -> bool:
    """Is this the response to the request with the id `wanted`?

    A response without id is, when it is an error: the request was not readable.
    """
    if not isinstance(message, dict) or ("result" in message) == ("error" in message):
        return False
    given = message.get("id")
    if given == wanted and type(given) is type(wanted):
        return True
    return given is None and "error" in message


def error_code(message: Any) -> int | None:
    """The JSON-RPC error code of a response; None for a result."""
    error = message.get("error") if isinstance(message, dict) else None
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) else None


def check_answer(body: bytes, wanted: RequestId | None) -> dict[str, Any]:
    """The JSON answer to the request with the id `wanted`, parsed. Raises UpstreamError when it is not one."""
    try:
        message = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UpstreamError(f"the server's answer is not JSON: {error}", reached=True) from None
    if not is_answer(message, wanted):
        raise UpstreamError("the server answered another request than it was asked", reached=True)
    assert isinstance(message, dict)
    return message


def filter_answer(body: bytes, filtered: Filter, method: str | None) -> bytes:
    """A response with a list, as the caller may see it. `method` None: the result's form tells which list it is.

    Raises UpstreamError for a list that two readers could read differently: what cannot be filtered is not shown.
    """
    try:
        message = load(body, _DEPTH)
    except BodyError as error:
        raise UpstreamError(f"the server's answer cannot be read: {error}", reached=True) from None
    result = message.get("result") if isinstance(message, dict) else None
    if not isinstance(result, dict):
        return body
    if method is None:
        method = next((_LISTS[key] for key in _LISTS if isinstance(result.get(key), list)), None)
        if method is None:
            return body
    seen = filtered(method, result)
    return body if seen is None else orjson.dumps({**message, "result": seen})


class StreamWatch:
    """One stream of events on its way to a caller.

    Most streams pass byte by byte and are read afterwards. Where a list could come, which is the answer to a list
    method and what a GET stream resumes, each event passes when it is whole, because a list must be filtered.
    """

    def __init__(self, call: Call, filtered: Filter) -> None:
        self._call = call
        self._filtered = filtered
        self._resumes = call.request_id is None  # a GET stream
        self._holds = self._resumes or call.method in LIST_METHODS
        self._reader = EventReader(LARGEST_HELD if self._holds else _LARGEST_WATCHED)
        self.answered = False
        self.error: int | None = None
        self.resumable = False  # an event had an id: a client that lost the stream can ask for the rest

    @property
    def between(self) -> bool:
        """May something be put into what the caller gets, because nothing of an event is under way?"""
        return self._holds or self._reader.between

    def pass_on(self, data: bytes) -> bytes:
        """What goes to the caller for these bytes. Raises UpstreamError."""
        events = self._reader.feed(data)
        if not self._holds:
            for event in events:
                self._read(event)
            return data
        if self._reader.oversize:
            raise UpstreamError(f"an event is larger than {LARGEST_HELD} bytes", reached=True)
        return b"".join(self._held(event) for event in events)

    def _read(self, event: Event) -> None:
        if event.last_id:
            self.resumable = True
        if event.data is None or not _could_answer(event.data):
            return
        try:
            message = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            return  # the client will say so; it has the same bytes
        if is_answer(message, self._call.request_id):
            self.answered = True
            self.error = error_code(message)

    def _held(self, event: Event) -> bytes:
        if event.data is None or not _could_answer(event.data):
            self._read(event)
            return event.raw
        seen = filter_answer(event.data, self._filtered, None if self._resumes else self._call.method)
        self._read(event)
        if seen == event.data:
            return event.raw
        kept = [line for line in event.raw.splitlines() if line and not line.removeprefix(_BOM).startswith(b"data")]
        return b"\r\n".join([*kept, b"data: " + seen, b"", b""])


def _could_answer(data: bytes) -> bool:
    """Cheap and never wrong when it says no: most events are notifications, which need not be parsed."""
    return b'"result"' in data or b'"error"' in data or b"\\u" in data
