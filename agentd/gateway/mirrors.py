"""Which arguments of a tool come a second time, as `Mcp-Param-*` headers, and whether header and argument agree.

A tool says so by `x-mcp-header` in its inputSchema (revision 2026-07-28, basic/transports/streamable-http, custom
headers from tool parameters). What lies between us and the server may route by the header while policy decided on the
argument: both must say the same. Memory of what upstreams listed; knows nothing of policy and sends nothing.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from .eras import decoded_value
from .types import Call, Caller, Era, value

__all__ = ["Mirror", "Mirrors", "Reader", "declared", "disagreement", "reader"]

_PREFIX: Final = b"mcp-param-"
_KEY: Final = "x-mcp-header"
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 section 5.6.2
_MIRRORED_TYPES: Final = frozenset({"string", "integer", "boolean"})
# A whole number as a header may spell it: compared by its value, so that 42.0 is 42.
_WHOLE: Final = re.compile(r"(-?[0-9]{1,64})(?:\.0+)?")
# Where JSON Schema 2020-12 has schemas within schemas, beside `properties`. Everything else is data.
_SCHEMA: Final = frozenset(
    {
        "additionalProperties",
        "contains",
        "contentSchema",
        "else",
        "if",
        "items",
        "not",
        "propertyNames",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_SCHEMAS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_NAMED_SCHEMAS: Final = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties"})

# Upstreams choose what is remembered of them, and callers how often: mostly some 300 bytes each time.
_MOST_TOOLS: Final = 4096
_MOST_TOLD = 16_384  # not Final, which would be compiled in
_MOST_BYTES = 16 * 1024 * 1024
_LONGEST_NAME: Final = 256

Reader = tuple[str, int]


@value
class Mirror:
    """An argument that a header repeats. `path` leads to it through the arguments; `header` is in lower case."""

    header: bytes
    shown: str
    path: tuple[str, ...]
    numeric: bool

    def read(self, arguments: Mapping[str, Any]) -> Any:
        """The argument; None when it is absent, which is the same as null."""
        found: Any = arguments
        for key in self.path:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def says(self, header: bytes, argument: Any) -> bool:
        """Does the header say this argument?"""
        said = decoded_value(header)
        if said is None:
            return False
        if isinstance(argument, bool):
            return said == ("true" if argument else "false")
        if self.numeric and (isinstance(argument, int) or (isinstance(argument, float) and argument.is_integer())):
            whole = _WHOLE.fullmatch(said)
            if whole is not None:
                return int(whole[1]) == argument
        return isinstance(argument, str | int | float) and said == str(argument)


class Mirrors:
    """What one upstream said of its tools, to each caller and last to anybody. Bounded."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[Mirror, ...]] = {}
        self._told: dict[tuple[Reader, str], tuple[Mirror, ...]] = {}
        self._bytes = 0  # of both, about

    def __bool__(self) -> bool:
        return bool(self._last)

    def learn(self, reader: Reader, result: Mapping[str, Any]) -> None:
        """The result of a tools/list, as the upstream gave it to this reader, or a page of it."""
        for tool in result.get("tools", ()):
            name = tool.get("name") if isinstance(tool, dict) else None
            if not isinstance(name, str) or len(name) > _LONGEST_NAME:
                continue
            found = declared(tool.get("inputSchema"))
            if not found and name not in self._last:
                continue  # as nearly all tools: nothing to remember
            told, size = (reader, name), _size(found)
            self._make_room(2 * size)
            self._bytes += 2 * size - _size(self._last.get(name)) - _size(self._told.get(told))
            self._last[name] = self._told[told] = found

    def _make_room(self, size: int) -> None:
        if len(self._told) >= _MOST_TOLD or self._bytes + size > _MOST_BYTES:
            self._told.clear()  # callers choose their tokens: they must not make us forget what tools have mirrored
            self._bytes = sum(map(_size, self._last.values()))
        if len(self._last) >= _MOST_TOOLS or self._bytes + size > _MOST_BYTES:
            self._last.clear()
            self._told.clear()
            self._bytes = 0

    def contradiction(
        self, caller: Caller, call: Call, fields: Mapping[bytes, bytes], repeated: frozenset[bytes]
    ) -> str | None:
        """How the headers of a call contradict what is known to be mirrored in them; None when they do not."""
        if not self._last or call.method != "tools/call" or call.name is None:
            return None
        mirrors = self.of(reader(caller, fields), call.name)
        if not mirrors:
            return None
        return disagreement(mirrors, call.arguments or {}, fields, repeated, call.era)

    def of(self, reader: Reader, tool: str) -> tuple[Mirror, ...]:
        """As the reader was told, who is to do as it says; one that was told nothing, as the last one was."""
        found = self._told.get((reader, tool))
        return self._last.get(tool, ()) if found is None else found


def _size(mirrors: tuple[Mirror, ...] | None) -> int:
    """Bytes, about, that remembering them takes; none are remembered as None."""
    if mirrors is None:
        return 0
    return 200 + sum(200 + 2 * len(one.header) + sum(50 + len(key) for key in one.path) for one in mirrors)


def reader(caller: Caller, fields: Mapping[bytes, bytes]) -> Reader:
    """For whom a list is meant: servers may list by the token that they are shown, and may not by anything else."""
    return caller.node_id, hash(fields.get(b"authorization"))


def declared(schema: Any) -> tuple[Mirror, ...]:
    """The arguments that a tool's inputSchema has mirrored.

    None of them, when one is not as the revision has it: clients must not use such a tool, and send no headers for it.
    """
    found: dict[bytes, Mirror] = {}
    for path, one in _schemas(schema):
        if _KEY not in one:
            continue
        token, kind = one[_KEY], one.get("type")
        if not path or not isinstance(token, str) or not _TOKEN.fullmatch(token):
            return ()
        header = _PREFIX + token.lower().encode()
        if not isinstance(kind, str) or kind not in _MIRRORED_TYPES or header in found:
            return ()
        found[header] = Mirror(header, f"Mcp-Param-{token}", path, kind == "integer")
    return tuple(found.values())


def _schemas(root: Any) -> Iterator[tuple[tuple[str, ...] | None, dict[str, Any]]]:
    """Every schema in a schema, with the argument that it is of; None for those that are of no single argument."""
    stack: list[tuple[tuple[str, ...] | None, Any]] = [((), root)]
    while stack:
        path, schema = stack.pop()
        if not isinstance(schema, dict):
            continue
        yield path, schema
        for key, inner in schema.items():
            if key == "properties" and isinstance(inner, dict):
                stack += ((None if path is None else (*path, name), one) for name, one in inner.items())
            elif key in _SCHEMA:
                stack.append((None, inner))
            elif key in _SCHEMAS and isinstance(inner, list):
                stack += ((None, one) for one in inner)
            elif key in _NAMED_SCHEMAS and isinstance(inner, dict):
                stack += ((None, one) for one in inner.values())


def disagreement(
    mirrors: tuple[Mirror, ...],
    arguments: Mapping[str, Any],
    fields: Mapping[bytes, bytes],
    repeated: frozenset[bytes],
    era: Era,
) -> str | None:
    """How headers (by name) and arguments contradict each other; None when they do not.

    Clients of the legacy era know of no such headers: there, only what is said must be true.
    """
    for mirror in mirrors:
        header, argument = fields.get(mirror.header), mirror.read(arguments)
        where = f"the argument {'.'.join(mirror.path)!r}"
        if header is None:
            if era == "modern" and isinstance(argument, str | int | float):
                return f"{mirror.shown} header is missing, and must say {where}"
        elif mirror.header in repeated:
            return f"{mirror.shown} header appears more than once"
        elif argument is None:
            return f"{mirror.shown} header is there, but {where} is not"
        elif not mirror.says(header, argument):
            return f"{mirror.shown} header does not match {where}"
    return _other_spelling(mirrors, fields)


def _other_spelling(mirrors: tuple[Mirror, ...], fields: Mapping[bytes, bytes]) -> str | None:
    """Servers behind CGI or WSGI cannot tell `_` from `-`: a header that they would take for a mirror must be one."""
    exact = {mirror.header: mirror for mirror in mirrors}
    folded = {name.replace(b"_", b"-"): mirror for name, mirror in exact.items()}
    for name in fields:
        if name.startswith(_PREFIX) and name not in exact and (mirror := folded.get(name.replace(b"_", b"-"))):
            return f"{name.decode('latin-1')} header can be taken for {mirror.shown}"
    return None
