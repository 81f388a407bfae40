"""Is this path below that one, in every reading that a server could give it?

Lexical only: a host that can see the file system follows symbolic links on top of this. What has one reading is
judged; what two readers could take differently (`..`, backslashes, control characters) is refused with a reason.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import unquote_to_bytes

__all__ = ["PathError", "check_base", "compile_under", "readings", "segments"]

_LONGEST_PATH: Final = 4096  # PATH_MAX of Linux
_PERCENT: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_DOTS: Final = re.compile(r"\.[. ]*|[ ]+")  # `.`, `..`, and what Windows reads as one of them: `...`, `.. `
# Drawn like a slash, backslash or dot, or folded into one by some file systems and frameworks.
_LOOK_ALIKE: Final = frozenset(
    "\u2044\u2215\u29f8\u29f5\u29f9\u2216\ufe68\uff0f\uff3c\uff0e\u2024\ufe52\u2025\u2026\ufe19\ufe30"
)
_FORBIDDEN_CATEGORIES: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})


class PathError(ValueError):
    """The path is not below the base, or cannot be judged. The message says why and does not repeat the path."""


def check_base(value: str) -> str:
    """Accept a directory that rules name, and return its canonical text: `/srv/project`, `docs`, `.`, `/`."""
    try:
        found = segments(value)
    except PathError as error:
        raise ValueError(f"{value!r} cannot stand in a rule: {error}") from error
    if readings(value) != [value]:
        raise ValueError(f"{value!r} cannot stand in a rule: write it plainly, without encodings")
    return ("/" if value.startswith("/") else "") + "/".join(found) or "."


def compile_under(bases: Iterable[str]) -> Callable[[str], None]:
    """The check whether a path is at or below one of `bases` (as `check_base` returned them): raises PathError if not.

    An absolute base holds absolute paths only, a relative base relative ones.
    """
    bases = tuple(bases)
    parsed = tuple((base.startswith("/"), () if base == "." else tuple(segments(base))) for base in bases)

    def check(value: str) -> None:
        found = _all_readings(value)
        if isinstance(found, PathError):
            raise PathError(str(found))
        for absolute, names in found:
            if not any(absolute == rooted and names[: len(base)] == base for rooted, base in parsed):
                raise PathError(f"it is not below {' or '.join(bases)}")

    return check


@lru_cache(maxsize=256)  # the grants of one call ask about the same path; an error is an answer, too
def _all_readings(value: str) -> tuple[tuple[bool, tuple[str, ...]], ...] | PathError:
    try:
        return tuple((reading.startswith("/"), tuple(segments(reading))) for reading in readings(value))
    except PathError as error:
        return error.with_traceback(None)


def readings(value: str) -> list[str]:
    """`value` and what servers that decode or normalise it would see: percent-decoding, NFKC, ignored characters.

    Raises PathError when a decoding is malformed or does not end.
    """
    if len(value) > _LONGEST_PATH:
        raise PathError(f"it has {len(value)} characters: at most {_LONGEST_PATH} are read")
    if "%" not in value and value.isascii():
        return [value]
    found = [value]
    for reading in found:  # grows while it is read, until nothing new is seen
        for other in (_decoded(reading), _folded(reading)):
            if other not in found:
                found.append(other)
        if len(found) > 8:
            raise PathError("it is encoded too many times: write the path plainly")
    return found


def segments(path: str) -> list[str]:
    """The names of a path, without empty ones and `.`. Raises PathError for what has more than one reading."""
    if not path:
        raise PathError("it is empty")
    if "\\" in path:
        raise PathError("it has a backslash: write '/'")
    if not (path.isascii() and path.isprintable()):
        _check_characters(path)
    if path.startswith("//"):
        raise PathError("it starts with two slashes, which some systems read as a host: write one")
    names = [name for name in path.split("/") if name not in ("", ".")]
    for name in names:
        if _DOTS.fullmatch(name) or name[-1] == " ":
            raise PathError(f"it has the segment {name!r}: write the whole path without")
    if not path.startswith("/") and names and (":" in names[0] or names[0][0] == "~"):
        raise PathError(f"it starts with {names[0]!r}, which is no directory: write a plain path")
    return names


def _check_characters(path: str) -> None:
    for character in path:
        if unicodedata.category(character) in _FORBIDDEN_CATEGORIES or character in _LOOK_ALIKE:
            raise PathError(f"it has the character U+{ord(character):04X}, which is not read alike everywhere")


def _decoded(text: str) -> str:
    if "%" not in text:
        return text
    if re.search(r"%u[0-9A-Fa-f]{4}", text, re.IGNORECASE):
        raise PathError("it has %uXXXX, which only some servers decode: write the path plainly")
    if not _PERCENT.search(text):
        return text
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeError as error:  # also overlong forms such as %c0%ae, which some decoders take for a dot
        raise PathError("it does not decode to UTF-8: write the path plainly") from error


def _folded(text: str) -> str:
    """As file systems compare: compatibility forms replaced, format characters ignored (HFS+ drops them)."""
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", "".join(c for c in text if unicodedata.category(c) != "Cf"))
