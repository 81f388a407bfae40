"""Helpers that take a tree apart and note what is not as the language wants it; they never stop at the first fault.

Knows shapes (mapping, list, text), not the sections of a policy.
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

from .document import Allowance
from .findings import Findings, suggestion
from .ports import ALL_PORTS, parse_ports
from .tree import Items, Pairs, Text, Tree

__all__ = ["Reader"]

T = TypeVar("T")


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
