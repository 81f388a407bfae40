"""Selectors of a policy: the grammar of `from`, `to`, `on` and groups, by the names that the document declares.

Whether such a name exists in the mesh is not asked here.
"""

from typing import Final

from controller.wire.base import check_name, check_tag

from .document import ANYONE, Host, Selector, Tag
from .findings import Findings, suggestion
from .reader import Reader
from .tree import Text

__all__ = ["SelectorReader"]

_NOT_HERE: Final = {
    "svc": " can only stand in 'to': here, name the nodes (tag:, node:, host:, group: or *)",
    "user": ": 'user' is no kind of selector: users own tags, and traffic comes from nodes",
}


class SelectorReader(Reader):
    """Reads selectors; a subclass puts in the names that the document declares, before it reads any."""

    def __init__(self, findings: Findings) -> None:
        super().__init__(findings)
        self._hosts: dict[str, Host] = {}
        self._tags: dict[str, Tag] | None = None  # None: the document declares none, so every tag is one
        self._group_names: set[str] = set()
        self._service_names: set[str] = set()

    def _target(self, text: Text) -> Selector | None:
        """A selector of `to`, where services may stand, too."""
        kind, colon, name = text.value.partition(":")
        if kind != "svc" or not colon:
            return self._selector(text)
        checked = self.checked(Text(name, text.place), check_name, "selector")
        if checked is not None and checked not in self._service_names:
            near = suggestion(checked, self._service_names)
            self.findings.error("unknown-service", f"there is no service {checked!r}{near}", text.place)
            return None
        return None if checked is None else Selector("svc", checked, text.place)

    def _selector(self, text: Text) -> Selector | None:
        value = text.value
        if value == ANYONE:
            return Selector("any", "", text.place)
        kind, colon, name = value.partition(":")
        if not colon:
            return self._bare(text)
        if kind == "tag":
            return self._tag_selector(text)
        if kind in ("node", "host", "group"):
            return self._named(kind, Text(name, text.place))
        if kind in _NOT_HERE:
            self.findings.error("selector", f"{value!r}{_NOT_HERE[kind]}", text.place)
            return None
        near = suggestion(kind, ("tag", "node", "host", "group", "svc"))
        self.findings.error(
            "selector",
            f"{value!r}: {kind!r} is no kind of selector{near}; use tag:, node:, host:, group:, svc: or *",
            text.place,
        )
        return None

    def _tag_selector(self, text: Text) -> Selector | None:
        tag = self.checked(text, check_tag, "selector")
        if tag is None:
            return None
        name = tag.removeprefix("tag:")
        if self._tags is not None and name not in self._tags:
            near = suggestion(tag, (f"tag:{known}" for known in self._tags))
            self.findings.error("unknown-tag", f"{tag!r} is not declared under tags{near}", text.place)
            return None
        return Selector("tag", name, text.place)

    def _named(self, kind: str, text: Text) -> Selector | None:
        name = self.checked(text, check_name, "selector")
        if name is None:
            return None
        if kind == "node":
            return Selector("node", name, text.place)
        known: set[str] = set(self._hosts) if kind == "host" else self._group_names
        if name not in known:
            near = suggestion(name, known)
            self.findings.error(f"unknown-{kind}", f"there is no {kind} {name!r}{near}", text.place)
            return None
        return Selector("host" if kind == "host" else "group", name, text.place)

    def _bare(self, text: Text) -> Selector | None:
        name = self.checked(text, check_name, "selector")
        if name is None:
            return None
        if name in self._hosts:
            return Selector("host", name, text.place, bare=True)
        if name in self._group_names:
            return Selector("group", name, text.place, bare=True)
        return Selector("node", name, text.place, bare=True)
