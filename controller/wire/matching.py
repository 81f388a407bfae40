"""Text and value matching for MCP policy, in linear time: globs, patterns, hosts, JSON Schema.

Values come from callers, so nothing here may backtrack, fetch or guess: the engine is Rust's `regex` (the RE2 family:
no look-around, no back-references, memory bounded at compile time) by way of jsonschema-rs, which is offline.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from jsonschema_rs import Draft202012Validator, RegexOptions, ValidationError

__all__ = [
    "LONGEST_TEXT",
    "TextTest",
    "check_glob",
    "check_host_pattern",
    "check_pattern",
    "check_schema",
    "check_uri_glob",
    "compile_globs",
    "compile_hosts",
    "compile_pattern",
    "compile_schema",
    "compile_uri_globs",
]

TextTest = Callable[[str], bool]

LONGEST_TEXT: Final = 8192  # characters of a caller's text that is matched; longer never matches
_LONGEST_GLOB: Final = 1024
_REGEX: Final = RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20)
_META: Final = frozenset(r"\.+*?()|[]{}^$#&-~")
_HOST_LABEL: Final = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NUMERIC_LABEL: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)")


def check_glob(value: str) -> str:
    """Accept a name pattern: `*` stands for any characters, everything else for itself."""
    return _check_length(value, "a name pattern")


def check_uri_glob(value: str) -> str:
    """Accept a URI pattern: `*` stands for any characters but `/`, `**` for any characters; `*` alone for every URI."""
    return _check_length(value, "a URI pattern")


def _check_length(value: str, what: str) -> str:
    if not value or len(value) > _LONGEST_GLOB or not value.isprintable():
        raise ValueError(f"{value!r} is not {what}: use 1-{_LONGEST_GLOB} printable characters, with * for any others")
    return value


def check_pattern(value: str) -> str:
    """Accept a regular expression of the RE2 family that compiles within bounds."""
    if len(value) > _LONGEST_GLOB:
        raise ValueError(f"the pattern is {len(value)} characters long: at most {_LONGEST_GLOB} are read")
    try:
        _compiled(_whole(value))
        _compiled(value)  # `a)|(b` is a pattern only inside the parentheses that make it whole
    except ValidationError as error:
        raise ValueError(
            f"{value!r} is not a pattern that can be matched in linear time: use RE2 syntax (no look-around, no "
            "back-references, no huge repetition)"
        ) from error
    return value


def check_schema(value: dict[str, Any]) -> dict[str, Any]:
    """Accept a JSON Schema (2020-12) that refers to nothing outside itself."""
    try:
        compile_schema(value)
    except ValidationError as error:
        raise ValueError(f"the JSON Schema cannot be used: {error.message}") from error
    return value


def check_host_pattern(value: str) -> str:
    """Accept `api.example.com`, `*.example.com`, an address or `[2001:db8::1]`, each with `:port` or without."""
    host, port = split_host(value.removeprefix("*."))
    wildcard = value.startswith("*.")
    if host is None or (wildcard and _is_address(host)):
        raise ValueError(
            f"{value!r} is not a host: write it like api.example.com, *.example.com, 192.0.2.1 or [2001:db8::1]:443"
        )
    shown = f"[{host}]" if ":" in host else host
    return ("*." if wildcard else "") + shown + (f":{port}" if port is not None else "")


def compile_pattern(pattern: str) -> TextTest:
    """The test whether `pattern` matches a whole text."""
    return _text_test(_whole(pattern))


def compile_globs(globs: Iterable[str], *, fold: bool = False) -> TextTest:
    """The test whether any of `globs` matches a whole name. `fold`: without regard to case."""
    bodies = sorted({_translate(glob, ".*", ".*") for glob in globs})
    return _any_of(bodies, "(?si)" if fold else "(?s)")


def compile_uri_globs(globs: Iterable[str]) -> TextTest:
    """The test whether any of `globs` matches a whole URI."""
    return _any_of(sorted({_translate(glob, "[^/]*", ".*") for glob in globs}), "(?s)")


def compile_schema(schema: dict[str, Any]) -> Callable[[Any], bool]:
    """The test whether a value is valid. Formats are asserted, `$ref` reaches only into the schema itself."""
    return Draft202012Validator(schema, pattern_options=_REGEX, offline=True, validate_formats=True).is_valid


def compile_hosts(patterns: Iterable[str]) -> TextTest:
    """The test whether a text is a URL or an authority whose host one of `patterns` names."""
    exact: set[tuple[str, int | None]] = set()
    suffixes: list[tuple[str, int | None]] = []
    for pattern in patterns:
        host, port = split_host(pattern.removeprefix("*."))
        if host is None:
            raise ValueError(f"{pattern!r} is not a host")
        if pattern.startswith("*."):
            suffixes.append(("." + host, port))
        else:
            exact.add((host, port))

    def test(text: str) -> bool:
        host, port = _host_of(text) if len(text) <= LONGEST_TEXT else (None, None)
        if host is None:
            return False
        if (host, None) in exact or (host, port) in exact:
            return True
        return not _is_address(host) and any(
            host.endswith(suffix) and wanted in (None, port) for suffix, wanted in suffixes
        )

    return test


@lru_cache(maxsize=256)  # the grants of one call ask about the same text
def _host_of(text: str) -> tuple[str | None, int | None]:
    return split_host(_authority(text))


_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443", "ws": ":80", "wss": ":443", "ssh": ":22", "ftp": ":21"}
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")


def _authority(text: str) -> str:
    """The `host:port` of a URL, or the text itself; "" when two readers could disagree about where the host ends.

    RFC 3986 ends the authority at `/`, `?` or `#`; WHATWG URL parsers take `\\` for `/` and drop tabs and newlines;
    `@` makes everything before it a user name. Whatever depends on the reader is refused.
    """
    if not text.isascii() or not text.isprintable() or "\\" in text or " " in text:
        return ""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    if not _SCHEME.fullmatch(scheme):
        return ""
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    has_port = re.search(r":[0-9]+\Z", authority) is not None
    return authority if has_port else authority + _DEFAULT_PORTS.get(scheme.lower(), "")


def split_host(text: str) -> tuple[str | None, int | None]:
    """Split `host`, `host:port`, `[v6]` or `[v6]:port` into canonical host and port; (None, None) when it is neither.

    Numbers that only some resolvers take for an address (`127.1`, `0x7f000001`, `2130706433`) are no hosts.
    """
    text = text.lower()
    if text.startswith("["):
        inside, bracket, tail = text[1:].partition("]")
        host = _canonical_address(inside, 6) if bracket else None
    else:
        host, colon, digits = text.partition(":")
        tail = colon + digits
        host = _canonical_name(host.removesuffix("."))
    port = _port(tail) if host is not None else None
    if host is None or (tail and port is None):
        return None, None
    return host, port


def _port(tail: str) -> int | None:
    digits = tail[1:]
    if tail[:1] != ":" or not digits.isdigit() or not digits.isascii() or len(digits) > 5:
        return None
    return int(digits) if 0 < int(digits) < 65536 else None


def _canonical_name(host: str) -> str | None:
    labels = host.split(".")
    if _NUMERIC_LABEL.fullmatch(labels[-1]):
        return _canonical_address(host, 4)
    return host if len(host) <= 253 and all(_HOST_LABEL.fullmatch(label) for label in labels) else None


def _canonical_address(text: str, version: int) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return str(address) if address.version == version and "%" not in text else None


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _translate(glob: str, one: str, many: str) -> str:
    parts = re.split(r"(\*+)", glob)
    return "".join(
        (one if part == "*" else many) if part[:1] == "*" else "".join(_escaped(c) for c in part) for part in parts
    )


def _escaped(character: str) -> str:
    return "\\" + character if character in _META else character


def _whole(pattern: str) -> str:
    return rf"\A(?:{pattern})\z"


def _any_of(bodies: list[str], flags: str) -> TextTest:
    if not bodies:
        return lambda _text: False
    return _text_test(flags + _whole("|".join(bodies)))


def _text_test(expression: str) -> TextTest:
    matches = _compiled(expression)

    def test(text: str) -> bool:
        if len(text) > LONGEST_TEXT or not (text.isascii() or _SURROGATE.search(text) is None):
            return False  # a lone surrogate has no UTF-8 form: it matches nothing
        return matches(text)

    return test


@lru_cache(maxsize=4096)
def _compiled(expression: str) -> Callable[[Any], bool]:
    return Draft202012Validator(
        {"type": "string", "pattern": expression}, pattern_options=_REGEX, offline=True
    ).is_valid
