"""A checksum in the state files that have none of their own, so that a flipped bit is found and not used.

A flipped bit in a WireGuard key is another WireGuard key. Files of versions that wrote no checksum are read as they
are. Pure; knows no file and no directory.
"""

import hashlib
import json
import re
from typing import Final

__all__ = ["BrokenSealError", "seal", "seal_json", "unseal", "unseal_json"]

# A line after the content: PEM readers ignore it (RFC 7468 section 2, text outside the encapsulation boundaries).
_LINE: Final = re.compile(rb"(?P<content>.*)# sha256 (?P<sha256>[0-9a-f]{64})\n", re.DOTALL)
_FIELD: Final = "sha256"


class BrokenSealError(ValueError):
    """The content is not what was written. It is not repeated: it may still be most of a secret."""

    def __init__(self) -> None:
        super().__init__("its checksum does not match")


def seal(content: bytes) -> bytes:
    """The content, and a line with its checksum."""
    return content + b"# sha256 " + _digest(content).encode() + b"\n"


def unseal(content: bytes) -> bytes:
    """What `seal` was given, or everything when there is no such line. Raises BrokenSealError."""
    match = _LINE.fullmatch(content)
    if match is None:
        return content
    if _digest(match["content"]) != match["sha256"].decode():
        raise BrokenSealError
    return match["content"]


def seal_json(content: bytes) -> bytes:
    """The JSON object, with its checksum as one more field."""
    fields = json.loads(content)
    return json.dumps({**fields, _FIELD: _digest(_canonical(fields))}, indent=2).encode() + b"\n"


def unseal_json(content: bytes) -> bytes:
    """What `seal_json` was given, as canonical JSON; what is no sealed object, as it is. Raises BrokenSealError."""
    try:
        fields = json.loads(content)
    except ValueError:
        return content  # whoever parses it says what is wrong
    if not isinstance(fields, dict) or _FIELD not in fields:
        return content
    sealed = fields.pop(_FIELD)
    if _digest(_canonical(fields)) != sealed:
        raise BrokenSealError
    return _canonical(fields)


def _canonical(fields: object) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
