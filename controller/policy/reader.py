"""Helpers that take a tree apart and note what is not as the language wants it; they never stop at the first fault.

Knows shapes (mapping, list, text), not the sections of a policy.
"""

import math
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, TypeVar

from pydantic import JsonValue, ValidationError

from .document import Allowance
from .findings import Findings, suggestion
from .ports import ALL_PORTS, parse_ports
from .tree import Items, Pairs, Text, Tree

__all__ = ["Reader"]

T = TypeVar("T")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,308})(\.[0-9]{1,308})?([eE][+-]?[0-9]{1,3})?")  # RFC 8259 section 6
_WORDS: Final = {"true": True, "false": False}


class Reader:
    """Reads values out of a tree into `findings`; every method answers None, or less, for what it had to refuse."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def entries(self, tree: Tree, what: str) -> Iterator[tuple[Text, Tree]]:
        """The pairs of a mapping, each key once. Null is an empty mapping."""
        if isinstance(tree, Text) and tree.is_null:
            return
        if not isinstance(tree, Pairs):
            self.findings.error("type", f"{what} must be a mapping (key: value)", tree.place)
            return
        seen: dict[str, Text] = {}
        for key, value in tree.pairs:
            if not isinstance(key, Text) or key.is_null:
                self.findings.error("type", f"a key of {what} must be text", key.place)
            elif key.value in seen:
                first = seen[key.value].place.line
                self.findings.error("duplicate-key", f"{key.value!r} is already given on line {first}", key.place)
            else:
                seen[key.value] = key
                yield key, value

    def fields(self, tree: Tree, what: str, known: tuple[str, ...]) -> dict[str, Tree]:
        """The values of a mapping whose keys are fixed."""
        found: dict[str, Tree] = {}
        for key, value in self.entries(tree, what):
            if key.value in known:
                found[key.value] = value
            else:
                near = suggestion(key.value, known)
                names = ", ".join(known)
                self.findings.error("unknown-key", f"{what} has no {key.value!r}{near}; it may have {names}", key.place)
        return found

    def sequence(self, tree: Tree | None, what: str) -> tuple[Tree, ...]:
        """The items of a list. Null is an empty list."""
        if tree is None or (isinstance(tree, Text) and tree.is_null):
            return ()
        if isinstance(tree, Items):
            return tree.items
        self.findings.error("type", f"{what} must be a list", tree.place)
        return ()

    def one_or_more(self, tree: Tree, what: str, read: Callable[[Text], T | None]) -> tuple[T, ...]:
        """A list, or one item in its place, without duplicates. An empty one is an error: it would name nobody."""
        items = tree.items if isinstance(tree, Items) else (tree,)
        if not items:
            self.findings.error("empty", f"{what} is empty: name something or remove the entry", tree.place)
        values: dict[T, None] = {}
        for item in items:
            text = self.text(item, f"an item of {what}")
            value = read(text) if text is not None else None
            if value is not None:
                values.setdefault(value)
        return tuple(values)

    def text(self, tree: Tree, what: str) -> Text | None:
        if isinstance(tree, Text) and not tree.is_null:
            return tree
        self.findings.error("type", f"{what} must be text", tree.place)
        return None

    def checked(self, text: Text, check: Callable[[str], T], code: str) -> T | None:
        """What `check` makes of the text, or an error with the ValueError's own words."""
        try:
            return check(text.value)
        except ValueError as error:
            self.findings.error(code, str(error), text.place)
            return None

    def texts(self, tree: Tree, what: str, check: Callable[[str], str]) -> tuple[str, ...]:
        """A list of texts, or one, each as `check` returns it."""
        return self.one_or_more(tree, what, lambda text: self.checked(text, check, "value"))

    def number(self, tree: Tree, what: str) -> int | float | None:
        value = self.json(tree)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        self.findings.error("type", f"{what} must be a number", tree.place)
        return None

    def truth(self, tree: Tree, what: str) -> bool:
        if isinstance(tree, Text) and tree.plain and tree.value in _WORDS:
            return _WORDS[tree.value]
        self.findings.error("type", f"{what} must be true or false", tree.place)
        return False

    def choice(self, tree: Tree, what: str, known: tuple[str, ...]) -> str | None:
        """One of `known`."""
        text = self.text(tree, what)
        if text is None or text.value in known:
            return text.value if text is not None else None
        near = suggestion(text.value, known)
        self.findings.error("value", f"{what} cannot be {text.value!r}{near}: write {' or '.join(known)}", text.place)
        return None

    def json(self, tree: Tree) -> JsonValue:
        """Any JSON value. Without quotes, null, true, false and JSON's numbers are what they are in JSON."""
        if isinstance(tree, Items):
            return [self.json(item) for item in tree.items]
        if isinstance(tree, Pairs):
            return {key.value: self.json(value) for key, value in self.entries(tree, "an object")}
        if tree.is_null:
            return None
        if tree.plain and tree.value in _WORDS:
            return _WORDS[tree.value]
        match = _NUMBER.fullmatch(tree.value) if tree.plain else None
        if match is None:
            return tree.value
        number = float(tree.value) if match[1] or match[2] else int(tree.value)
        if isinstance(number, float) and math.isinf(number):
            self.findings.error("value", f"{tree.value} is larger than any number that can be compared", tree.place)
        return number

    def built(self, make: Callable[[], T], tree: Tree) -> T | None:
        """A message of the wire, or errors at `tree` with the words of what its own checks refused."""
        try:
            return make()
        except ValidationError as error:
            for fault in error.errors(include_url=False, include_context=False):
                where = ".".join(str(part) for part in fault["loc"])
                words = fault["msg"].removeprefix("Value error, ")
                self.findings.error("value", f"{where}: {words}" if where else words, tree.place)
            return None

    def has(self, fields: dict[str, Tree], needed: tuple[str, ...], what: str, tree: Tree) -> bool:
        """True when all keys are there; else there is an error that names those that are not."""
        missing = [key for key in needed if key not in fields]
        if missing and not (isinstance(tree, Text) and tree.is_null):
            self.findings.error("missing-key", f"{what} needs {' and '.join(missing)}", tree.place)
        elif missing:
            self.findings.error("type", f"{what} is empty: fill it in or remove it", tree.place)
        return not missing

    def allowance(self, text: Text) -> Allowance | None:
        """One entry of `ip`."""
        return self.checked(text, lambda value: _allowance(value, text), "ip")

    def instant(self, tree: Tree) -> int | None:
        """RFC 3339 with an offset, as whole seconds since the epoch."""
        text = self.text(tree, "expires")
        return None if text is None else self.checked(text, _instant, "expires")


def _allowance(value: str, text: Text) -> Allowance:
    if value == "*":
        return Allowance("*", ALL_PORTS, value, text.place)
    protocol, colon, ports = value.partition(":")
    if protocol == "icmp":
        if colon:
            raise ValueError(f"{value!r}: icmp has no ports, write icmp")
        return Allowance("icmp", ALL_PORTS, value, text.place)
    if protocol not in ("tcp", "udp"):
        near = suggestion(protocol, ("tcp", "udp", "icmp"))
        raise ValueError(
            f"{value!r} names no protocol that can pass{near}: write tcp:PORT, udp:PORT, icmp or *;"
            " other protocols (tunnels among them) never pass the mesh"
        )
    if not colon:
        raise ValueError(f"{value!r} lacks ports: write {protocol}:443, {protocol}:8000-8100 or {protocol}:*")
    return Allowance("tcp" if protocol == "tcp" else "udp", parse_ports(ports), value, text.place)


def _instant(value: str) -> int:
    hint = "write it like 2027-01-31T18:00:00Z"
    try:
        instant = datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is not a time: {hint}") from error
    if instant.tzinfo is None:
        raise ValueError(f"{value!r} does not say in which time zone: {hint}")
    try:
        return max(0, int(instant.timestamp()))
    except OverflowError as error:  # year 1 or 9999 with an offset that leaves the calendar
        raise ValueError(f"{value!r} is not a time that a clock can show: {hint}") from error
