"""YAML or JSON text to a small tree in which every value knows its line and column.

Reads libyaml's events, not its objects: no tags, no aliases and no merge keys are followed, so a short text cannot
become a large value, and depth and size are bounded before anything is built. Knows nothing of the policy language.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import yaml
from pydantic import JsonValue

from .findings import Findings, Place, PolicyError

__all__ = ["MAX_DEPTH", "MAX_TEXT", "MAX_VALUES", "Items", "Pairs", "Text", "Tree", "read_tree", "tree_of"]

MAX_TEXT: Final = 1024 * 1024  # bytes; a document for 1,000 hosts with 300 grants has about 60 kB
MAX_DEPTH: Final = 16  # the language itself needs 4
MAX_VALUES: Final = 200_000

# libyaml where the wheel has it: the pure Python parser takes seconds for a megabyte.
_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class Text:
    """A scalar, always as text: `no` is a name like any other here, not a truth value.

    `plain`: written without quotes, so that a reader that wants numbers or truth values may see one.
    """

    value: str
    place: Place
    is_null: bool = False
    plain: bool = False


@dataclass(frozen=True, slots=True)
class Items:
    """A sequence."""

    items: tuple["Tree", ...]
    place: Place


@dataclass(frozen=True, slots=True)
class Pairs:
    """A mapping as written: duplicate keys are still there, for the reader to refuse."""

    pairs: tuple[tuple["Tree", "Tree"], ...]
    place: Place


Tree = Text | Items | Pairs


def read_tree(text: str) -> Tree | None:
    """The one document in `text`, None when there is none. Raises PolicyError with the place of the first fault."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        _refuse(
            "syntax", "the text contains half of a surrogate pair, which is no character", _place(text, error.start)
        )
    if size > MAX_TEXT:
        _refuse("too-large", f"the document has {size} bytes; the limit is {MAX_TEXT}", None)
    # JSON allows tabs between tokens where YAML allows only spaces; inside JSON strings they are escaped.
    source = text.replace("\t", " ") if text.lstrip("\ufeff \t\r\n").startswith("{") else text
    try:
        return _Builder(yaml.parse(source, Loader=_Loader)).document()
    except yaml.MarkedYAMLError as error:
        _refuse("syntax", _explain(error), _mark(error.problem_mark or error.context_mark))
    except yaml.reader.ReaderError as error:
        _refuse(
            "syntax", f"the text contains a character that YAML forbids: {error.reason}", _place(text, error.position)
        )
    except RecursionError:  # the pure Python parser only; libyaml keeps its own stack
        _refuse("too-deep", f"the document is nested deeper than {MAX_DEPTH}", None)


def tree_of(value: JsonValue, place: Place, depth: int = 1) -> Tree:
    """A JSON value as if it stood at `place` of a text. Raises PolicyError for one that is nested too deep."""
    if depth > MAX_DEPTH:
        _refuse("too-deep", f"the value is nested deeper than {MAX_DEPTH}", place)
    match value:
        case dict():
            pairs = ((Text(key, place), tree_of(inner, place, depth + 1)) for key, inner in value.items())
            return Pairs(tuple(pairs), place)
        case list():
            return Items(tuple(tree_of(inner, place, depth + 1) for inner in value), place)
        case str():
            return Text(value, place)
        case _:
            return Text(json.dumps(value), place, is_null=value is None, plain=True)


class _Builder:
    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._values = 0

    def document(self) -> Tree | None:
        tree: Tree | None = None
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                if tree is not None:
                    _refuse("syntax", "the text holds more than one document", _mark(event.start_mark))
                tree = self._value(next(self._events), depth=1)
        return tree

    def _value(self, event: Any, depth: int) -> Tree:
        place = _mark(event.start_mark)
        self._values += 1
        if self._values > MAX_VALUES:
            _refuse("too-large", f"the document has more than {MAX_VALUES} values", place)
        if depth > MAX_DEPTH:
            _refuse("too-deep", f"the document is nested deeper than {MAX_DEPTH}", place)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            _refuse("alias", "anchors and aliases (&, *) are not part of the language; quote a star: '*'", place)
        if event.tag is not None:
            _refuse("yaml-tag", f"YAML tags (here {event.tag!r}) are not part of the language", place)
        if isinstance(event, yaml.ScalarEvent):
            plain = bool(event.implicit[0])
            return Text(event.value, place, is_null=plain and event.value in ("", "~", "null"), plain=plain)
        if isinstance(event, yaml.SequenceStartEvent):
            return Items(tuple(self._until(yaml.SequenceEndEvent, depth)), place)
        values = list(self._until(yaml.MappingEndEvent, depth))
        return Pairs(tuple(zip(values[::2], values[1::2], strict=True)), place)

    def _until(self, end: type, depth: int) -> Iterator[Tree]:
        for event in self._events:
            if isinstance(event, end):
                return
            yield self._value(event, depth + 1)


def _explain(error: yaml.MarkedYAMLError) -> str:
    if error.context is not None and "alias" in error.context:
        return "a star that stands alone must be quoted: '*'"
    return ", ".join(part for part in (error.problem, error.context) if part) or "this is not YAML"


def _mark(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark is not None else Place(1, 1)


def _place(text: str, position: int) -> Place:
    before = text[:position]
    return Place(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)


def _refuse(code: str, message: str, place: Place | None) -> NoReturn:
    findings = Findings()
    findings.error(code, message, place)
    raise PolicyError(findings.found)
