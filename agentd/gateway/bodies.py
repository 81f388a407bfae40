"""Bodies like one that was read before: the same message, but for its id and its arguments. Pure.

JSON in which one value takes another's place is JSON, and says the same but for that value. So of a body that agrees
with a known one in every byte around the two, only these have to be read; that is done as strictly as in `jsonrpc`.
"""

import secrets
from typing import Any, Final

import orjson

from .jsonrpc import BodyError, check_arguments, load

__all__ = ["BodyForm"]

_LARGEST: Final = 4096  # bytes around the two values: callers choose them, and they are remembered
_LONGEST_ID: Final = 18  # digits: any number of so many fits into 64 bits
_AROUND: Final = 2  # levels around the arguments: the message and its params
# What stands for the values while the bytes around them are found; nobody's text can contain it.
_ID, _ARGUMENTS = f"id-{secrets.token_hex(16)}", f"arguments-{secrets.token_hex(16)}"


class BodyForm:
    """The bytes around id and arguments, in the order in which a client writes them. Some calls have no arguments."""

    __slots__ = ("_after", "_before", "_between", "_id_first")

    def __init__(self, before: bytes, between: bytes | None, after: bytes, *, id_first: bool) -> None:
        self._before = before
        self._between = between
        self._after = after
        self._id_first = id_first

    @classmethod
    def of(cls, body: bytes) -> "BodyForm | None":
        """The form of a request that was accepted. None: it is not compact, too large, or its id is not a number."""
        message = orjson.loads(body)
        params = message.get("params")
        if type(message["id"]) is not int or not isinstance(params, dict) or orjson.dumps(message) != body:
            return None
        message["id"] = _ID
        if "arguments" in params:
            params["arguments"] = _ARGUMENTS
        text = orjson.dumps(message)
        if len(text) > _LARGEST:
            return None
        before, _, after = text.partition(orjson.dumps(_ID))
        if "arguments" not in params:
            return cls(before, None, after, id_first=True)
        arguments = orjson.dumps(_ARGUMENTS)
        if arguments in after:
            between, _, after = after.partition(arguments)
            return cls(before, between, after, id_first=True)
        before, _, between = before.partition(arguments)
        return cls(before, between, after, id_first=False)

    def read(self, body: bytes, depth: int) -> tuple[int, dict[str, Any] | None] | None:
        """The id and the arguments of a body of this form; None for any other, and for one that is to be refused.

        `depth` is the one under which the first was accepted.
        """
        if not body.startswith(self._before) or not body.endswith(self._after):
            return None
        start, end, between = len(self._before), len(body) - len(self._after), self._between
        if between is None:
            return _number(body[start:end], None)
        if self._id_first:
            at = body.find(between, start, start + _LONGEST_ID + len(between))
            id_text, text = body[start:at], body[at + len(between) : end]
        else:
            at = body.rfind(between, max(start, end - _LONGEST_ID - len(between)), end)
            id_text, text = body[at + len(between) : end], body[start:at]
        if at < 0:
            return None
        try:
            arguments = load(text, depth - _AROUND)
            if type(arguments) is not dict:
                return None
            check_arguments(arguments)
        except BodyError:
            return None  # who reads the whole body says why
        return _number(id_text, arguments)


def _number(text: bytes, arguments: dict[str, Any] | None) -> tuple[int, dict[str, Any] | None] | None:
    """With the id that is written as JSON writes a number; none that begins with a zero that means nothing."""
    if not text.isdigit() or len(text) > _LONGEST_ID or (text[0] == 0x30 and len(text) > 1):
        return None
    return int(text), arguments
